"""The fourteen experiments: what they ask for, their files of results and the page made from them."""

import ast
import json
import random

import pytest

from experiments import _frame, _record, compare_with_paper, results_page, run_all
from experiments._verdicts import (
    NOT_SHOWN,
    Judged,
    above,
    cell,
    chosen,
    differences,
)
from ffalora_jax import config_search, sweeps
from ffalora_jax.cache import shared_folder
from ffalora_jax.search import every_combination


@pytest.mark.parametrize("name", _frame.ORDER)
def test_an_experiment_says_claim_command_times_and_limits(name):
    study = _frame.study_of(name)
    assert study.name == name
    for said in (study.title, study.source, study.claim, study.limits, *study.budgets):
        assert said
    assert study.command == f"python -m experiments.{name}"
    assert study.seeds[0] <= study.seeds[1]


def test_all_fourteen_are_run_and_no_module_is_forgotten():
    assert len(_frame.ORDER) == 14
    assert sorted(run_all.CHEAPEST_FIRST) == sorted(_frame.ORDER)
    with_study = [
        path.stem
        for path in _frame.HERE.glob("*.py")
        if any(
            isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "STUDY"
            for node in ast.parse(path.read_text()).body
        )
    ]
    assert sorted(with_study) == sorted(_frame.ORDER)


def stored():
    return sorted(_frame.RESULTS.glob("*.json"))


def test_a_file_of_results_is_that_of_an_experiment():
    names = {_frame.study_of(name).file for name in _frame.ORDER}
    assert {path.name for path in stored()} <= names


@pytest.mark.parametrize("path", stored(), ids=lambda path: path.stem)
def test_the_verdict_follows_from_the_rows_that_are_stored(path):
    record = json.loads(path.read_text())
    study = _frame.study_of(record["name"])
    found = json.loads(json.dumps(_record.verdict_of(study.judge(record["rows"]))))
    for name in ("verdict", "head", "table"):
        assert found[name] == record[name]
    for ours, theirs in zip(found["parts"], record["parts"], strict=True):
        numbers = ("mean", "low", "high")
        assert {k: v for k, v in ours.items() if k not in numbers} == {
            k: v for k, v in theirs.items() if k not in numbers
        }
        for number in numbers:
            stored_one = theirs[number]
            close = None if stored_one is None else pytest.approx(stored_one, rel=1e-4, abs=1e-9)
            assert ours[number] == close


@pytest.mark.parametrize("path", stored(), ids=lambda path: path.stem)
def test_a_file_of_results_says_where_it_ran_and_counts_its_runs(path):
    record = json.loads(path.read_text())
    assert record["size"] in ("small", "full")
    assert {"cpu", "cores", "accelerator", "date", "versions"} <= set(record["machine"])
    statuses = [row["status"] for row in record["rows"] if "status" in row]
    assert sum(record["runs"].values()) == len(statuses)


def test_the_page_is_what_the_files_give():
    assert results_page.PAGE.read_text() == results_page.page(), "make results"


def test_the_page_says_what_was_not_run(tmp_path):
    text = results_page.page(tmp_path).partition("\n## ")[0]
    assert text.count(f"| {results_page.NOT_YET} | - |") == len(_frame.ORDER)


def test_a_verdict_reaches_the_page(tmp_path):
    (source, *_) = stored()
    record = json.loads(source.read_text()) | {"verdict": NOT_SHOWN}
    (tmp_path / source.name).write_text(json.dumps(record))
    text = results_page.page(tmp_path)
    line = next(line for line in text.splitlines() if line.startswith(f"| {record['number']} |"))
    assert f"**{NOT_SHOWN}**" in line
    assert record["machine"]["date"] in line


def test_settings_that_differ_are_named():
    theirs = {"model": "large", "rank": 8, "max_examples": "all"}
    assert compare_with_paper.different({"model": "small", "rank": 8.0}, theirs) == (
        "model large / small"
    )
    assert compare_with_paper.different(theirs, theirs) == "nothing"


def test_our_figures_stand_beside_the_papers_with_what_differs(tmp_path, made_up):
    study = _frame.study_of("ranks")
    asked = ask(tmp_path, seeds=2, rounds=None)
    rows = study.run(asked)
    record = {"rows": rows, "settings": asked.settings}
    (tmp_path / study.file).write_text(json.dumps(record))
    found = {line[1]: line for line in compare_with_paper.lines(tmp_path)}
    assert found["FFA-LoRA at epsilon 6, MNLI matched"][3] == "not run yet"
    *_, paper, ours, differs = found["LoRA without privacy, rank 16, SST-2"]
    best = chosen(
        [row for row in rows if row["search"] == "no privacy"], ["method.name", "method.rank"]
    )
    assert (paper, ours) == ("93.98", cell(best["fedavg_lora", 16]))
    assert "model FacebookAI/roberta-large / minilm" in differs
    assert "rounds 1000 / 6" in differs
    assert "data" not in differs
    assert "rank" not in differs
    assert found["FFA-LoRA at epsilon 1, ranks 2 to 16, QNLI"][3].count(" / ") == 2


def test_the_papers_noise_and_messages_are_what_we_compute():
    assert compare_with_paper.noise() == pytest.approx(0.99, abs=0.005)
    assert (compare_with_paper.sent(2), compare_with_paper.sent(1)) == (786_432, 393_216)


def ask(tmp_path, **changes):
    found = _frame.Ask("small", tmp_path, 1, 2, float("inf"), {})
    return found._replace(**changes)


def test_a_budget_that_is_spent_stops(tmp_path):
    ask(tmp_path).check()
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, until=0.0).check()


def started(name, tmp_path):
    arguments = ["--small", "--seeds", "1", "--rounds", "2", "--out", str(tmp_path / "runs")]
    study = _frame.study_of(name)
    assert _frame.main(study, arguments) == 0
    record = json.loads((tmp_path / "runs" / study.file).read_text())
    assert record["rows"]
    assert record["parts"]
    assert record["table"]
    return record


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["noise_amplification", "sampler_truth", "alpha_and_rate"])
def test_an_experiment_that_needs_nothing_starts_and_leaves_its_file(name, tmp_path):
    before = [path.read_bytes() for path in stored()]
    record = started(name, tmp_path)
    assert record["number"] == _frame.ORDER.index(name) + 1
    assert [path.read_bytes() for path in stored()] == before, "a trial overwrote the results"


def two_methods(asked):
    from flax import nnx

    from experiments import _bases, alpha_and_rate

    base = _bases.toy(**{"data.max_examples": 400, "method.targets": "middle"})
    base = base.replace(batch_size=16, **{"privacy.epsilon": 6.0, "model.head": "frozen"})
    over = {"method.name": ["fedavg_lora", "ffa_lora"], "optimizer.learning_rate": [0.3, 1.0]}
    model = alpha_and_rate.Toy(nnx.Rngs(0))
    return _frame.searched(asked, "both", base, over, model=model)


def lead(rows):
    found = chosen(rows, ["method.name"])
    part = above("lead", differences(found["ffa_lora",], found["fedavg_lora",]))
    return Judged(
        [part], ["method", "accuracy"], [[key, cell(one)] for (key,), one in found.items()]
    )


@pytest.mark.thorough
def test_an_experiment_stopped_by_its_budget_goes_on_and_leaves_its_file(tmp_path, capsys):
    doc = _frame.study_of("local_steps").doc
    study = _frame.Study("local_steps", doc, (2, 2), two_methods, lead)
    folder = tmp_path / "runs"
    arguments = ["--rounds", "2", "--out", str(folder)]
    assert _frame.main(study, [*arguments, "--minutes", "1e-6"]) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert not (folder / study.file).exists()
    assert _frame.main(study, arguments) == 0
    record = json.loads((folder / study.file).read_text())
    assert record["runs"] == {
        "done": 4,
        "failed": 0,
        "refused": 0,
    }  # one rate: to see whether it starts
    assert [row["seed"] for row in record["rows"]] == [0, 1, 0, 1]
    assert record["parts"][0]["count"] == 2
    assert record["settings"]["both"]["over"]["optimizer.learning_rate"] == [0.3]
    made = (folder / study.file).read_bytes()
    assert _frame.main(study, arguments) == 0
    again = json.loads((folder / study.file).read_text())
    assert again["rows"] == json.loads(made)["rows"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in _frame.ORDER
        if name not in ("noise_amplification", "sampler_truth", "alpha_and_rate", "local_steps")
    ],
)
def test_every_experiment_starts_and_leaves_its_file(name, tmp_path):
    started(name, tmp_path)


def test_figures_of_the_paper_name_experiments_and_settings_that_exist():
    import tomllib

    told = tomllib.loads(compare_with_paper.FIGURES.read_text())
    known = set(_record.settings_of(_frame.ffa.Experiment())) | {"scored"}
    for figure in told["figure"]:
        assert figure["study"] in _frame.ORDER
        assert set(told["setting"] | figure["setting"]) <= known
    assert {one["computed"] for one in told["exact"]} == set(compare_with_paper.COMPUTED)


@pytest.fixture
def made_up(monkeypatch):
    """Searches that run nothing, without data that need files."""
    monkeypatch.setattr(_frame.ffa, "sweep", stubbed)
    monkeypatch.setattr(_frame, "loaded", lambda make, base: None)


def stubbed(experiment, search, data=None, *, model=None, out=None, observe=None):
    """Checks a search as ``ffa.sweep`` does before its first run, and makes figures up."""
    asked = sweeps._asked(search)
    space = config_search.space_of(asked, experiment)
    sweeps._check_names(space)
    draw = random.Random(str(out))
    rows = []
    for trial in every_combination(space):
        experiment.replace(**trial.settings)
        for repeat in range(asked.seeds):
            facts = {"trial": trial.number, "seed": experiment.seed + repeat, **trial.settings}
            scores = {n: draw.random() for n in ("validation_accuracy", "test_accuracy")}
            sizes = {"rank": 8, "trained_parameters": 100, "epsilon_spent": 6.0}
            rows.append({**facts, "status": "done", "majority_accuracy": 0.5, **scores, **sizes})
    return sweeps.Sweep(out, rows, {})


SEARCHES = "table_1 heterogeneity ranks inits freezing local_steps many_clients".split()


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("name", SEARCHES)
def test_all_searches_of_both_sizes_can_be_asked_for_and_judged(name, size, tmp_path, made_up):
    study = _frame.study_of(name)
    asked = ask(tmp_path, size=size, seeds=3, rounds=None)
    rows = json.loads(json.dumps(study.run(asked)))
    judged = study.judge(rows)
    assert judged.parts
    assert all(part.count == 3 for part in judged.parts), "a part found no pairs of runs"
    assert all(len(line) == len(judged.head) and line.count("-") <= 1 for line in judged.table)
    assert set(asked.settings) == {row["search"] for row in rows}


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "parts"), [("images", 2), ("next_token", 1)])
def test_searches_on_shared_data_can_be_asked_for_and_judged(name, parts, tmp_path, monkeypatch):
    if shared_folder("data", "gsm8k") is None:
        pytest.skip("needs FFALORA_SHARED")
    monkeypatch.setattr(_frame.ffa, "sweep", stubbed)
    study = _frame.study_of(name)
    judged = study.judge(study.run(ask(tmp_path, seeds=3)))
    assert [part.count for part in judged.parts] == [3] * parts


@pytest.mark.parametrize("name", SEARCHES)
def test_one_seed_shows_nothing(name, tmp_path, made_up):
    study = _frame.study_of(name)
    rows = study.run(ask(tmp_path, rounds=None))
    assert study.judge(rows).verdict == NOT_SHOWN


def test_a_stopped_call_keeps_what_is_no_search(tmp_path):
    asked = ask(tmp_path)
    assert asked.kept("one", lambda: [{"seed": 0}]) == [{"seed": 0}]
    assert asked.kept("one", lambda: [{"seed": 1}]) == [{"seed": 0}]
    assert asked._replace(rounds=3).kept("one", lambda: [{"seed": 2}]) == [{"seed": 2}]
    with pytest.raises(KeyboardInterrupt):
        asked._replace(until=0.0).kept("two", lambda: [])
