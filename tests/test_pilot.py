"""A pilot answers within its time, goes on where it stopped, and shows what its runs hold."""

import json
import shutil
import stat
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

import ffalora_jax as ffa
from ffalora_jax import cli, piloting, pilots, rng
from ffalora_jax.adapter_file import read_adapter
from ffalora_jax.config_pilot import QUICK_MINUTES, default_experiment
from ffalora_jax.errors import BAD_INPUT, INTERRUPTED, InputError
from ffalora_jax.prepare import prepare

SMALL = {
    "name": "small",
    "rounds": 3,
    "local_steps": 2,
    "batch_size": 8,
    "evaluate_every": 1,
    "data.name": "synthetic",
    "data.max_examples": 240,
    "model.name": "tiny",
    "model.max_tokens": 16,
    "partition.name": "iid",
    "partition.num_clients": 2,
    "method.rank": 2,
    "privacy.epsilon": 6.0,
    "privacy.delta": 1e-3,
}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
QUICK = {"quick": True}


def small(**changes):
    return ffa.Experiment().replace(**(SMALL | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A quick pilot with sites of different speeds, and what was heard of it."""
    path = tmp_path_factory.mktemp("pilot") / "made"
    heard = []
    slow = small(**{"sites.speed": "100, 1", "sites.up": "10"})
    found = ffa.pilot(slow, QUICK | {"minutes": 4.4}, out=path, observe=heard.append)
    return found, heard


def rows_of(made, question):
    """The last lines of the runs of a question."""
    folders = sorted(made.path.glob(f"runs/*-{question}"))
    return [ffa.load_run(folder) for folder in folders]


@pytest.mark.thorough
def test_the_page_shows_what_the_runs_hold(made):
    found, _ = made
    assert found.found["whole"]
    assert found.found["runs"] == len(list(found.path.glob("runs/*")))
    runs = [ffa.load_run(folder) for folder in found.path.glob("runs/*")]
    mine = [
        run
        for run in runs
        if run.experiment.method.name == "ffa_lora"
        and run.experiment.privacy.epsilon == 6
        and run.experiment.privacy.is_private
        and run.experiment.sites.deadline is None
    ]
    assert len(mine) == 3
    at_six = next(one for one in found.found["privacy"] if one["epsilon"] == 6)
    assert at_six["mean"] == pytest.approx(mean(run.accuracy for run in mine))
    light, heavy = found.found["methods"]
    assert light["bytes_per_site"] < heavy["bytes_per_site"]
    assert light["bytes_per_site"] == mine[0].communication["bytes_total"] / 2
    assert f"{100 * at_six['mean']:.1f} %" in found.page.read_text()
    assert json.loads((found.path / "pilot.json").read_text()) == found.found


@pytest.mark.thorough
def test_all_epsilons_and_training_alone_are_looked_at(made):
    found, _ = made
    assert [one["epsilon"] for one in found.found["privacy"]] == [None, 6, 3, 1]
    assert [sorted(one["each"]) for one in found.found["privacy"]] == [
        ["0"],
        ["0", "1", "2"],
        ["0"],
        ["0"],
    ]
    assert {site["name"] for site in found.found["sites"]} == {"client_0", "client_1"}
    alone = [run for question in ("methods", "alone") for run in rows_of(found, question)]
    assert {run.experiment.method.name for run in alone} == {"local_only"}
    assert not any(run.experiment.privacy.is_private for run in alone)
    assert [run.experiment.seed for run in alone] == [0, 0, 1, 2]
    assert found.found["recommendation"]["repetitions"] == 3


@pytest.mark.thorough
def test_the_slow_site_is_named_and_adapting_to_it_saves_time(made):
    found, _ = made
    clock = found.found["clock"]
    assert clock["slowest"] == "client_1"
    assert clock["adapted"]["seconds"] < clock["adapted"]["seconds_before"]
    assert clock["adapted"]["seconds_before"] == found.found["methods"][0]["simulated_seconds"]


@pytest.mark.thorough
def test_each_run_has_noise_of_its_own_and_the_numbers_it_has_alone(made, tmp_path):
    found, _ = made
    kept = json.loads((found.path / "secret.json").read_text())
    assert stat.S_IMODE((found.path / "secret.json").stat().st_mode) == 0o600
    folder = sorted(found.path.glob("runs/*-privacy"))[1]
    numbers = [int(f.name.partition("-")[0]) for f in found.path.glob("runs/*")]
    assert len({rng.noise_seed_of(kept["secret"], k, 0) for k in numbers}) == len(numbers)
    run = ffa.load_run(folder)
    number = int(folder.name.partition("-")[0])
    noise_seed = rng.noise_seed_of(kept["secret"], number, 0)
    alone = ffa.simulate(run.experiment.replace(noise_seed=noise_seed), out=tmp_path / "alone")
    for mine, theirs in zip(
        *(read_adapter(r.path / "adapter")[:2] for r in (run, alone)), strict=True
    ):
        for layer in mine:
            for name in mine[layer]:
                np.testing.assert_allclose(
                    mine[layer][name], theirs[layer][name], rtol=1e-4, atol=1e-6
                )
    spent = [json.loads((f / "privacy.json").read_text()) for f in found.path.glob("runs/*")]
    assert all(one["unit"] is None or one["releasable"] for one in spent)
    whole = found.found["spent"]
    assert whole["private"] == sum(one["unit"] is not None for one in spent)
    assert whole["epsilon"] > max(one["epsilon"] or 0 for one in spent)


@pytest.mark.thorough
def test_gone_on_with_nothing_is_made_again(made, capsys):
    found, _ = made
    before = {f: f.stat().st_mtime_ns for f in found.path.glob("runs/*/metrics.jsonl")}
    assert cli.main(["resume", str(found.path), "--language", "ja", "--price-per-gb", "2"]) == 0
    said = capsys.readouterr().out
    assert (
        "確かさ：" in said or "根拠：" in said
    )  # by what its noise, which is fresh, let it decide
    assert {f: f.stat().st_mtime_ns for f in found.path.glob("runs/*/metrics.jsonl")} == before
    now = json.loads((found.path / "pilot.json").read_text())
    assert now["privacy"] == found.found["privacy"]
    assert now["asked"]["price_per_gb"] == 2
    assert '<html lang="ja">' in found.page.read_text()


@pytest.mark.thorough
def test_the_page_alone_is_written_anew_without_data_or_runs(made, tmp_path, capsys):
    path = tmp_path / "kept"
    path.mkdir()
    for name in ("pilot.toml", "pilot.json", "secret.json"):  # neither runs nor the data
        shutil.copy(made[0].path / name, path)
    again = ["resume", str(path), "--page", "--currency", "EUR", "--price-per-gb"]
    assert cli.main([*again, "3", "--language", "en"]) == 0
    assert str(path / "pilot.html") in capsys.readouterr().out
    assert " EUR</td>" in (path / "pilot.html").read_text()
    before = json.loads((made[0].path / "pilot.json").read_text())
    now = json.loads((path / "pilot.json").read_text())
    assert {n: v for n, v in now.items() if n != "asked"} == {
        n: v for n, v in before.items() if n != "asked"
    }
    # What lies with the secret comes into no file that others may read.
    secret = json.loads((path / "secret.json").read_text())
    (path / "secret.json").write_text(json.dumps({**secret, "given": 7}))
    assert cli.main([*again, "3", "--noise-seed", "7"]) == 0
    assert "noise_seed" not in (path / "pilot.toml").read_text()
    assert cli.main([*again, "3", "--rounds", "7"]) == 2
    assert "of other settings" in capsys.readouterr().err
    (path / "pilot.json").write_text(json.dumps({**now, "about": {}}))
    assert cli.main([*again, "4"]) == 2
    assert "of another version" in capsys.readouterr().err
    assert " EUR</td>" in (path / "pilot.html").read_text()
    (path / "pilot.json").unlink()
    assert cli.main([*again, "4"]) == 2
    assert "has no page yet" in capsys.readouterr().err


@pytest.mark.thorough
def test_when_the_time_is_over_the_page_is_of_what_there_is_and_resume_goes_on(tmp_path):
    short = ffa.pilot(small(), {"minutes": 1e-3}, out=tmp_path / "short")
    assert short.found["runs"] == 1
    assert not short.found["whole"]
    assert "The time was over" in short.page.read_text()
    assert short.found["recommendation"]["decision"] in ("not_shown", "no_learning")
    mine, other = (one["bytes_per_site"] for one in short.found["methods"])
    assert 1.5 < other / mine < 2.5  # of plain LoRA, which was not run
    first = (short.path / "runs/00-methods/metrics.jsonl").stat().st_mtime_ns
    page = short.page.read_text()
    again = ffa.pilot(small(), {"minutes": 1e-3}, out=tmp_path / "short")
    assert (
        again.found["runs"] == 1
    )  # what one run took is known now, and there is no time for another
    assert again.found["asked"]["seconds"] > short.found["asked"]["seconds"]
    assert len(again.page.read_text()) == pytest.approx(len(page), rel=0.1)
    more = ffa.pilot(small(), {"minutes": 0.4}, out=tmp_path / "short")
    assert more.found["runs"] > 1
    assert more.found["spent"]["epsilon"] > short.found["spent"]["epsilon"]
    assert (short.path / "runs/00-methods/metrics.jsonl").stat().st_mtime_ns == first


@pytest.mark.thorough
def test_a_stop_leaves_a_page_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    advance = piloting.ManyRuns.advance
    calls = []

    def stopping(self, members, rounds):
        calls.append(members)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return advance(self, members, rounds)

    monkeypatch.setattr(piloting.ManyRuns, "advance", stopping)
    monkeypatch.setattr(piloting.Piloting, "left", 3600.0)
    out = tmp_path / "stopped"
    assert cli.main(["pilot", *FLAGS, "--out", str(out)]) == INTERRUPTED
    said = capsys.readouterr().err
    assert f"the page {out / 'pilot.html'} is of what there is" in said
    assert f"ffalora resume {out}" in said
    assert json.loads((out / "pilot.json").read_text())["runs"] >= 2


@pytest.mark.thorough
def test_a_page_that_knows_more_outlives_a_resume_that_is_stopped_at_once(made, monkeypatch):
    found, _ = made
    before = found.page.read_bytes()

    def stopping(self, members, rounds):
        raise KeyboardInterrupt

    monkeypatch.setattr(piloting.ManyRuns, "advance", stopping)
    experiment, asked = ffa.load_pilot(found.path / "pilot.toml")
    with pytest.raises(KeyboardInterrupt, match="is of what there is"):
        ffa.pilot(experiment, asked, out=found.path)
    assert found.page.read_bytes() == before


@pytest.mark.thorough
def test_a_pilot_never_goes_on_with_other_data(made):
    found, _ = made
    experiment, asked = ffa.load_pilot(found.path / "pilot.toml")
    rows = {"text": ["a b", "c d"] * 120, "label": [0, 1] * 120}
    with pytest.raises(InputError, match="other data or weights"):
        ffa.pilot(experiment, asked, ffa.as_dataset(rows), out=found.path)


def test_a_folder_holds_one_pilot(tmp_path):
    out = tmp_path / "one"
    out.mkdir()
    shutil.copy(Path(__file__), out / "something.txt")
    with pytest.raises(InputError, match="exists"):
        ffa.pilot(small(), out=out)
    text = pilots.with_table(small(), "pilot", ffa.PilotConfig())
    (out / "pilot.toml").write_text(text)
    (out / "secret.json").write_text('{"secret": 1, "given": null}')
    with pytest.raises(InputError, match="pilot of other settings"):
        ffa.pilot(small(rounds=4), out=out)
    with pytest.raises(InputError, match="pilot of other settings"):
        ffa.pilot(small(), QUICK, out=out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--privacy.mechanism", "none"], "asks what privacy costs"),
        (["--method.name", "rolora"], "compares ffa_lora and fedavg_lora"),
        (["--privacy.noise-multiplier", "1"], "asks what privacy costs"),
        (["--minutes", "0"], "pilot.minutes > 0"),
        (["--language", "fr"], "en, ja"),
        (["--price-per-gb=-1"], "pilot.price_per_gb >= 0"),
        (["--track", "wandb"], "leave them out of a pilot"),
        (["--canaries=-1"], "pilot.canaries >= 0"),
        (["--model.name", "tiny", "--batch-size", "9000"], "expected at least one expected batch"),
        (["nothing.toml"], "Cannot read experiment file"),
    ],
)
def test_what_cannot_be_piloted_is_refused_before_anything_is_made(
    arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pilot", *arguments]) == BAD_INPUT
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_the_pilot_in_a_file_is_read_and_kept_from_a_run(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\n[pilot]\nlanguage = "ja"\nprice_per_gb = 0.5\n')
    experiment, asked = ffa.load_pilot(file)
    assert (experiment.name, asked.language, asked.price_per_gb) == ("mine", "ja", 0.5)
    with pytest.raises(InputError, match="ffalora pilot"):
        ffa.load_experiment(file)


def test_without_a_file_it_is_the_demo_with_noise_of_its_own():
    demo = ffa.load_experiment(Path(__file__).parents[1] / "experiments/quickstart.toml")
    mine = default_experiment()
    assert mine == demo.replace(name="pilot", noise_seed=None)


def test_a_quick_pilot_has_under_five_minutes():
    assert ffa.PilotConfig(quick=True).seconds == 60 * QUICK_MINUTES < 300
    assert ffa.PilotConfig(quick=True, minutes=2).seconds == 120


def test_a_quick_pilot_trains_the_upper_sixth_of_the_blocks():
    many = piloting.ManyRuns()
    blocks = len(many.loader.model(small(), ("no", "yes")).model.layers)
    quick = piloting.quicker(small(), many)
    assert quick.max_test == 300
    first = blocks - max(1, blocks // 6)
    assert quick.method.layers == ("all" if blocks < 3 else f"{first}-{blocks - 1}")
    given = small(max_test=50, **{"method.layers": "0"})
    kept = piloting.quicker(given, many)
    assert (kept.method.layers, kept.max_test) == ("0", 50)


@pytest.mark.thorough
def test_a_deadline_is_tried_where_the_slowest_site_can_keep_it_with_fewer_steps():
    run = prepare(small(**{"sites.speed": "100, 1", "sites.up": "1000"}))
    seconds = piloting.seconds_of_sites(run)
    deadline = piloting.deadline_worth_trying(run)
    assert seconds[0] < deadline < seconds[1]
    adapted = prepare(
        small(
            **{
                "sites.speed": "100, 1",
                "sites.up": "1000",
                "sites.adapt": "deadline",
                "sites.deadline": deadline,
            }
        )
    )
    assert piloting.seconds_of_sites(adapted).max() <= deadline
    assert list(adapted.sites.local_steps) == [2, 1]
    assert piloting.deadline_worth_trying(adapted) is None
    equal = prepare(small(**{"sites.speed": "10"}))
    assert piloting.deadline_worth_trying(equal) is None
    assert piloting.deadline_worth_trying(prepare(small())) is None


def test_a_run_of_an_earlier_call_is_no_measure_of_what_the_next_one_takes(monkeypatch, tmp_path):
    pilot = object.__new__(piloting.Piloting)
    pilot._last = [5.0, 40.0, 6.0, 6.0, 6.0, 6.0]
    assert pilot.longest_run == 6.0  # compiling, once, is not held against later ones
    pilot._last, pilot.path, pilot.answers, pilot.fresh = [], tmp_path, [], False
    pilot.experiment, pilot.secret = small(), 1
    for number in range(4):
        (tmp_path / f"runs/{number:02d}-repeat/adapter").mkdir(parents=True)
    pilot.many = type(
        "Many", (), {"advance": lambda self, members, rounds: [None] * len(members)}
    )()
    monkeypatch.setattr(piloting.Piloting, "_row", lambda *_: {"status": "done", "seconds": 60.0})
    job = piloting.Job("repeat", (("method.name", "ffa_lora"),))
    pilot._make([job._replace(repeat=k) for k in range(4)])
    assert pilot.longest_run == 60.0
    assert not pilot.fresh
