"""A run that starts from another one's adapter: what both cost together, where the data are the same."""

import json
from pathlib import Path

import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import export, lint, pretrained, warm_start
from ffalora_jax.config import Experiment
from ffalora_jax.data._columns import codes
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import from_table
from ffalora_jax.load import class_order, load_model
from ffalora_jax.loaded_run import load_run
from ffalora_jax.prepare import prepare
from tests.peft_files import write
from tests.test_export import SETTINGS, columns


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("warm")


@pytest.fixture(scope="module")
def experiment(place):
    base = write(place / "base", "roberta")
    return from_table(SETTINGS).replace(**{"model.name": str(base)})


@pytest.fixture(scope="module")
def first(place, experiment):
    run = ffa.simulate(experiment, columns(), out=place / "first")
    export.export_run(load_run(place / "first"), place / "adapter")
    return run


def privacy(folder):
    return json.loads((folder / "privacy.json").read_text())


@pytest.mark.thorough
def test_on_the_same_data_the_two_epsilons_and_deltas_are_added(place, experiment, first):
    again = experiment.replace(**{"method.start": str(place / "adapter")})
    second = ffa.simulate(again, columns(), out=place / "second")
    found = privacy(place / "second")["started_from"]
    assert found["same_data"]
    assert found["epsilon"] == first.epsilon
    assert found["epsilon_in_all"] == pytest.approx(first.epsilon + second.epsilon)
    assert found["delta_in_all"] == pytest.approx(2 * experiment.privacy.delta)
    export.export_run(load_run(place / "second"), place / "adapter-2")
    said = json.loads((place / "adapter-2" / "run.json").read_text())
    assert said["privacy"]["epsilon"] == second.epsilon
    assert [bill["privacy"]["epsilon"] for bill in said["started_from"]] == [first.epsilon]
    card = (place / "adapter-2" / "README.md").read_text()
    assert f"on the same data: epsilon {found['epsilon_in_all']:.4g}" in card
    rules = {one.rule: one.text for one in lint.before(prepare(again, columns()))}
    assert "privacy.json adds the two up" in rules["start-taken-as-public"]


@pytest.mark.thorough
def test_the_adapter_of_a_run_folder_tells_its_cost_as_an_exported_one_does(
    place, experiment, first
):
    """It is the folder that is handed on; and what was trained without privacy has no epsilon later."""
    start = {"method.start": str(first.path / "adapter")}
    again = ffa.simulate(experiment.replace(**start), columns(), out=place / "from-run")
    assert again.privacy["started_from"]["epsilon_in_all"] > first.epsilon
    without = experiment.replace(**start, **{"privacy.mechanism": "none"})
    opened = ffa.simulate(without, columns(), out=place / "opened")
    start = {"method.start": str(opened.path / "adapter")}
    last = ffa.simulate(experiment.replace(**start), columns(), out=place / "last")
    found = last.privacy["started_from"]
    assert found["epsilon_in_all"] is None
    assert "without privacy" in found["no_sum"]
    assert not last.privacy["releasable"]
    assert "without privacy" in last.privacy["release_note"]
    with pytest.raises(InputError, match=r"this is a run, give .*adapter"):
        prepare(experiment.replace(**{"method.start": str(first.path)}), columns())


def test_a_setting_that_an_older_adapter_does_not_know_of_makes_no_other_data(experiment):
    now = warm_start.trained_on(experiment)
    older = {**now, "partition": {"name": "iid"}, "data": {**now["data"], "text": "text"}}
    assert warm_start._same(older, now)


def test_another_split_or_seed_of_the_same_examples_is_no_other_data(experiment):
    csv = experiment.replace(**{"data.name": "csv", "data.path": "a/texts.csv"})
    now = warm_start.trained_on(csv)
    for changes in ({"seed": 7}, {"partition.num_clients": 9}, {"data.max_examples": 50}):
        assert warm_start._same(now, warm_start.trained_on(csv.replace(**changes)))
    moved = csv.replace(**{"data.path": "elsewhere/texts.csv"})
    assert warm_start._same(now, warm_start.trained_on(moved))
    other = csv.replace(**{"data.path": "a/others.csv"})
    assert not warm_start._same(now, warm_start.trained_on(other))
    made = experiment.replace(**{"data.name": "synthetic"})
    seeds = [warm_start.trained_on(made.replace(seed=seed)) for seed in (1, 1, 2)]
    assert warm_start._same(*seeds[:2])
    assert not warm_start._same(*seeds[1:])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("glue/mnli", None), ("glue/mnli_mismatched", None), True),
        (("glue/sst2", None), ("glue/sst2", "somewhere"), True),
        (("glue/sst2", None), ("glue/mnli", None), False),
        (("csv", "."), ("csv", "{here}"), True),
        (("csv", "a.csv"), ("jsonl", "a.csv"), False),
    ],
)
def test_the_same_examples_under_another_spelling_are_the_same_data(one, other, same, experiment):
    paths = [None if path is None else path.format(here=Path.cwd()) for _, path in (one, other)]
    said = [
        warm_start.trained_on(experiment.replace(**{"data.name": name, "data.path": path}))
        for (name, _), path in zip((one, other), paths, strict=True)
    ]
    assert warm_start._same(*said) is same
    assert warm_start._same(*said[::-1]) is same


def adapter_said(folder, unit, epsilon, path, before=()):
    """An adapter's folder that says what it cost; what it started from comes after."""
    data = {"name": "csv", "path": path}
    bill = {
        "privacy": {"unit": unit, "epsilon": epsilon, "delta": 1e-5},
        "trained_on": {"data": data, "partition": {}, "seed": 0},
    }
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**bill, "started_from": list(before)}))
    return bill


@pytest.mark.parametrize(
    ("chain", "unit", "in_all", "words"),
    [
        ([("example", 2.0, "a.csv")], "example", 3.0, ""),
        ([("client", 2.0, "a.csv")], "example", None, "protects one client, this run one example"),
        ([("example", 2.0, "a.csv")], "client", None, "protects one example, this run one client"),
        ([(None, None, "a.csv")], "example", None, "without privacy"),
        ([("example", 2.0, "b.csv")], "example", None, ""),
        ([("example", 2.0, "b.csv"), ("example", 4.0, "a.csv")], "example", 5.0, ""),
        ([("example", 2.0, "a.csv"), ("client", 4.0, "a.csv")], "example", None, "and one example"),
    ],
    ids=["same", "of clients", "of examples", "open", "other data", "chain", "chain of both"],
)
def test_bills_of_one_unit_on_the_same_data_are_added_along_a_chain(
    tmp_path, experiment, chain, unit, in_all, words
):
    before = []
    for number, (its_unit, epsilon, path) in reversed(list(enumerate(chain))):
        before.insert(0, adapter_said(tmp_path / str(number), its_unit, epsilon, path, before))
    settings = {"data.name": "csv", "data.path": "x/a.csv", "method.start": str(tmp_path / "0")}
    found = warm_start.started_from(experiment.replace(**settings), unit, 1.0, 1e-5)
    assert found["epsilon_in_all"] == in_all
    assert words in found["no_sum"]
    assert bool(found["no_sum"]) is bool(words)
    later = warm_start.facts_for_later(
        experiment, {"unit": unit, "epsilon": 1.0, "delta": 1e-5, "started_from": found}
    )
    assert [one["privacy"]["epsilon"] for one in later["started_from"]] == [c[1] for c in chain]


@pytest.mark.thorough
def test_on_other_data_nothing_is_added_and_nothing_is_known_of_a_foreign_adapter(
    place, experiment, first
):
    settings = {"method.start": str(place / "adapter"), "data.name": "csv", "data.path": "x.csv"}
    other = experiment.replace(**settings)
    ffa.simulate(other, columns(), out=place / "other")
    found = privacy(place / "other")["started_from"]
    assert not found["same_data"]
    assert found["epsilon_in_all"] is None
    (place / "adapter" / "run.json").unlink()
    ffa.simulate(other, columns(), out=place / "foreign")
    assert privacy(place / "foreign")["started_from"] is None
    assert privacy(place / "first")["started_from"] is None


def test_what_an_adapter_says_of_its_data_holds_no_example_and_no_path(place, experiment, first):
    export.export_run(load_run(place / "first"), place / "adapter-3")
    text = (place / "adapter-3" / "run.json").read_text()
    assert str(place) not in text
    assert not any(word in text for word in columns()["text"][0].split() if len(word) > 5)


@pytest.mark.thorough
def test_a_start_names_its_classes_as_the_data_do_or_is_refused(experiment, first, tmp_path):
    export.export_run(first, tmp_path / "adapter")
    again = experiment.replace(**{"method.start": str(tmp_path / "adapter")})
    names = first.class_names
    same = load_model(again, None, names)
    turned = load_model(again, None, names[::-1])
    for name in ("kernel", "bias"):
        mine, theirs = (np.asarray(getattr(one.model.head, name)[...]) for one in (same, turned))
        np.testing.assert_array_equal(mine[..., ::-1], theirs)
        assert not np.array_equal(mine, theirs)
    others = [f"other {name}" for name in names]
    with pytest.raises(InputError, match="name them alike"):
        load_model(again, None, others)
    load_model(again, None, [str(k) for k in range(len(names))])  # numbers say nothing


def test_a_checkpoints_head_follows_the_order_of_the_datas_classes(tmp_path):
    base = write(tmp_path / "base", "roberta")
    there = pretrained.label_names(base)
    settings = Experiment().replace(**{"model.name": str(base)})
    heads = [
        np.asarray(load_model(settings, None, names).model.head.kernel[...])
        for names in (there, there[::-1], [name.upper() for name in there], [*there[1:], "odd"])
    ]
    np.testing.assert_array_equal(heads[0][:, ::-1], heads[1])
    np.testing.assert_array_equal(heads[0], heads[2])
    np.testing.assert_array_equal(heads[0], heads[3])


def test_classes_are_in_the_same_order_in_every_process():
    assert class_order(["b", "a"], ["A", "B"]) == [1, 0]
    assert class_order(["a", "b"], ["a", "c"]) is None
    assert codes(["2", "01", "1"], "label", "here")[1] == ("01", "1", "2")
