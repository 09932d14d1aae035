"""A search leaves runs like those made alone, their table, and goes on where it stopped."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

import ffalora_jax as ffa
from ffalora_jax import cli, rng, run_folder, sweep_results
from ffalora_jax.adapter_file import read_adapter
from ffalora_jax.errors import BAD_INPUT, InputError
from ffalora_jax.many_runs import ManyRuns
from tests.command import here

pytestmark = pytest.mark.thorough
RATE = "optimizer.learning_rate"
SMALL = {
    "name": "small",
    "rounds": 4,
    "local_steps": 1,
    "batch_size": 8,
    "evaluate_every": 2,
    "data.name": "synthetic",
    "data.max_examples": 240,
    "model.name": "tiny",
    "model.max_tokens": 16,
    "partition.num_clients": 2,
    "method.rank": 2,
    "privacy.noise_multiplier": 0.8,
    "privacy.delta": 1e-3,
}
SEARCH = ffa.SearchConfig(over={RATE: [0.2, 0.6]}, seeds=2, compare=RATE)
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


def small(**changes):
    return ffa.Experiment().replace(**(SMALL | changes))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two learning rates, two seeds each, with a given noise seed."""
    path = tmp_path_factory.mktemp("sweep") / "found"
    heard = []
    made = ffa.sweep(small(noise_seed=5), SEARCH, out=path, observe=heard.append)
    assert [event.rounds_done for event in heard][-1] == 4
    said = [(event.stage, event.rounds_done) for event in heard]
    place = said.index(("compiling the program of the next ones", 0))
    assert said[place + 1] == ("runs", 0)  # what it does now, not what it did
    return made


def test_a_search_is_opened_again_as_it_was(found, tmp_path):
    again = ffa.load_sweep(found.path)
    assert again.rows == json.loads(json.dumps(found.rows))
    assert again.summary == json.loads(json.dumps(found.summary))
    assert again.best.path == found.best.path
    with pytest.raises(InputError, match="Expected the folder of a search"):
        ffa.load_sweep(found.best.path)
    shutil.copytree(
        found.path, tmp_path / "stopped", ignore=shutil.ignore_patterns("runs", "summary*")
    )
    with pytest.raises(InputError, match="stopped before its summary was written: go on"):
        ffa.load_sweep(tmp_path / "stopped")
    shutil.copy(found.path / "summary.json", tmp_path / "stopped")
    lines = (found.path / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "stopped" / "results.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="went on after its summary"):
        ffa.load_sweep(tmp_path / "stopped")


def leaves(path):
    shared, _, _ = read_adapter(path / "adapter")
    return {(a, b): leaf for a, layer in shared.items() for b, leaf in layer.items()}


def test_each_run_is_that_run_made_alone(found, tmp_path):
    own = rng.noise_seed_of(5, 1, 1)
    alone = ffa.simulate(small(noise_seed=own, seed=1, **{RATE: 0.6}), out=tmp_path / "alone")
    run = ffa.load_run(found.path / "runs" / "001-1")
    mine, theirs = leaves(alone.path), leaves(run.path)
    assert mine.keys() == theirs.keys()
    for name, leaf in mine.items():
        np.testing.assert_allclose(leaf, theirs[name], rtol=1e-5, atol=1e-7)
    assert run.privacy | {"warnings": []} == alone.privacy | {"warnings": []}
    assert run.communication == alone.communication
    assert run.accuracy == alone.accuracy
    for one, two in zip(run.metrics, alone.metrics, strict=True):
        assert one.keys() == two.keys()
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["participants"] == two["participants"]


def test_the_tables_say_the_same_in_three_forms(found):
    rows = found.rows
    assert [(row["trial"], row["repeat"], row["seed"]) for row in rows] == [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 0),
        (1, 1, 1),
    ]
    assert all(row["status"] == "done" and row["rounds"] == 4 for row in rows)
    lines = [json.loads(x) for x in (found.path / "results.jsonl").read_text().splitlines()]
    table = pd.read_csv(found.path / "results.csv")
    whole = pd.read_parquet(found.path / "results.parquet")
    for name in (RATE, "test_accuracy", "epsilon_spent", "bytes_per_client"):
        values = [row[name] for row in rows]
        assert values == [line[name] for line in lines] == whole[name].tolist()
        np.testing.assert_allclose(table[name], values)
    assert found.frame().shape[0] == 4


def test_the_summary_names_the_best_by_validation_and_compares_seed_by_seed(found):
    summary = found.summary
    assert summary == json.loads((found.path / "summary.json").read_text())
    means = [
        np.mean([r["validation_accuracy"] for r in found.rows if r["trial"] == t]) for t in (0, 1)
    ]
    assert summary["best"] == int(np.argmax(means))
    assert [trial["validation_accuracy"]["mean"] for trial in summary["trials"]] == pytest.approx(
        means
    )
    other = next(one for one in summary["compared"] if one["difference"] is not None)
    tests = np.reshape([row["test_accuracy"] for row in found.rows], (2, 2))
    gaps = tests[other["trial"]] - tests[summary["best"]]
    assert other["difference"]["mean"] == pytest.approx(gaps.mean(), abs=1e-12)
    every = summary["privacy"]["every_run"]["epsilon"]
    assert every > max(row["epsilon_spent"] for row in found.rows)


def test_a_search_that_is_whole_is_only_read(found, monkeypatch):
    monkeypatch.setattr(ManyRuns, "_run", lambda *a: pytest.fail("rounds were made again"))
    again = ffa.sweep(small(noise_seed=5), SEARCH, out=found.path)
    assert (again.rows, again.summary) == (found.rows, found.summary)


def test_another_search_does_not_go_into_the_same_folder(found):
    with pytest.raises(InputError, match="another search"):
        ffa.sweep(small(rounds=5), SEARCH, out=found.path)


def test_no_secret_is_in_what_others_may_read(found):
    secret = json.loads((found.path / "secret.json").read_text())["secret"]
    assert (found.path / "secret.json").stat().st_mode & 0o077 == 0
    for file in found.path.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".toml", ".jsonl", ".csv"):
            assert file.name == "secret.json" or str(secret) not in file.read_text()


def test_runs_that_were_lost_or_cut_are_made_again_to_the_same_bits(found, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(found.path, path)
    before = {name: leaves(path / "runs" / name) for name in ("000-0", "000-1")}
    shutil.rmtree(path / "runs" / "000-0")
    shutil.rmtree(path / "runs" / "000-1" / "adapter")
    shutil.rmtree(path / "runs" / "000-1" / "checkpoints")
    ffa.sweep(small(noise_seed=5), SEARCH, out=path)
    for name, expected in before.items():
        for place, leaf in leaves(path / "runs" / name).items():
            np.testing.assert_array_equal(leaf, expected[place])


def test_the_command_prints_the_table_and_resumes(found, capsys, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(found.path, path)
    assert cli.main(["resume", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "learning_rate" in shown
    assert "best" in shown
    assert "seed by seed" in shown
    assert "4 runs composed" in shown
    assert "no intervals" in shown
    assert "always naming" in shown
    assert cli.main(["resume", str(path), "--rounds", "3"]) == BAD_INPUT
    assert "is a search" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_spent_in_the_books(found, tmp_path, monkeypatch):
    path = tmp_path / "copy"
    shutil.copytree(found.path, path)
    shutil.rmtree(path / "runs" / "001-1")

    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ManyRuns, "_run", stopped)
    with pytest.raises(KeyboardInterrupt, match="ffalora resume"):
        ffa.sweep(small(noise_seed=5), SEARCH, out=path)
    summary = json.loads((path / "summary.json").read_text())
    assert summary["runs"] == 3
    assert "3 runs composed" in summary["privacy"]["every_run"]["how"]


@pytest.mark.thorough
def test_ctrl_c_before_the_first_round_leaves_a_search_that_can_be_gone_on_with(tmp_path):
    def stop(event):
        if event.stage.startswith("compiling"):
            os.kill(os.getpid(), signal.SIGINT)

    law = dataclasses.replace(
        SEARCH, strategy="random", trials_law="geometric", compare=None, trials=2
    )
    with pytest.raises(KeyboardInterrupt, match="ffalora resume"):
        ffa.sweep(small(), law, out=tmp_path / "cut", observe=stop)
    summary = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert summary["runs"] == 0
    assert "was stopped" in summary["privacy"]["best_alone"]["how"]
    whole = ffa.sweep(small(), law, out=tmp_path / "cut")
    assert whole.rows
    assert "was stopped" not in whole.summary["privacy"]["best_alone"]["how"]


def test_a_folder_with_runs_of_other_settings_is_refused(found, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(found.path, path)
    file = path / "runs" / "000-1" / "experiment.toml"
    file.write_text(file.read_text().replace("learning_rate = 0.2", "learning_rate = 0.3"))
    with pytest.raises(InputError, match="other settings"):
        ffa.sweep(small(noise_seed=5), SEARCH, out=path)


def test_two_processes_cannot_be_at_one_search(found):
    with run_folder.locked(found.path / "sweep.toml"), pytest.raises(InputError, match="Another"):
        ffa.sweep(small(noise_seed=5), SEARCH, out=found.path)


def test_what_cannot_be_made_is_a_row_and_all_of_it_an_error(tmp_path):
    over = {"method.name": ["flora", "ffa_lora"], "privacy.mechanism": ["dp_fedavg"]}
    loose = {"cohort_sampling": "poisson", "cohort_size": 1, "privacy.delta": 1e-2}
    search = ffa.SearchConfig(over=over)
    made = ffa.sweep(small(**loose), search, out=tmp_path / "some")
    flora, ffa_lora = made.rows
    assert (flora["status"], ffa_lora["status"]) == ("refused", "done")
    assert "upload" in flora["why"]
    assert made.summary["best"] == 1
    alone = ffa.SearchConfig(over=over | {"method.name": ["flora"]})
    with pytest.raises(InputError, match="No run of this search"):
        ffa.sweep(small(**loose), alone, out=tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Nothing is varied"),
        (["--over", "method.nme=a"], "Did you mean 'method.name'"),
        (["--over", "method.name"], "NAME=VALUE"),
        (["--over", "method.rank=x"], "Expected int"),
        (["--seeds", "2", "--strategy", "gird"], "grid"),
        (["--over", "method.name=ffa_lora,fedavg"], "Did you mean 'fedavg_lora'"),
        (["--seeds", "2", "--storage", "/no/such/folder/journal"], "Cannot open --storage"),
        (["--seeds", "2", "--track", "tensorboard"], "ffalora run"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys, tmp_path):
    assert cli.main(["sweep", *FLAGS, *arguments, "--out", str(tmp_path / "x")]) == BAD_INPUT
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_intervals_are_students(found):
    from scipy import stats

    values = [0.5, 0.6, 0.8]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert sweep_results.interval_of(values) == pytest.approx((np.mean(values), low, high))
    assert sweep_results.interval_of([0.5]) == (0.5, None, None)
    assert sweep_results.interval_of([]) == (None, None, None)


def test_halving_stops_the_worse_early_and_they_spend_less(tmp_path):
    search = ffa.SearchConfig("halving", {RATE: [1e-4, 0.3, 0.6]}, trials=3, first_rounds=2)
    made = ffa.sweep(small(rounds=6), search, out=tmp_path / "halving")
    rounds = {row["trial"]: row["rounds"] for row in made.rows}
    assert sorted(rounds.values()) == [2, 2, 6]
    assert rounds[made.summary["best"]] == 6
    spent = {row["trial"]: row["epsilon_spent"] for row in made.rows}
    early = min(spent, key=spent.get)
    assert rounds[early] == 2
    assert spent[early] < spent[made.summary["best"]]
    status = {row["trial"]: row["status"] for row in made.rows}
    assert sorted(status.values()) == ["done", "stopped", "stopped"]


def test_a_search_that_was_killed_ends_in_the_same_bits(tmp_path):
    """SIGKILL at three moments, then the same command until it ends."""
    arguments = [*FLAGS, "--noise-seed", "5", "--over", f"{RATE}=0.2,0.6", "--seeds", "2"]
    here("sweep", *arguments, "--out", tmp_path / "whole")
    command = [sys.executable, "-m", "ffalora_jax.cli", "sweep", *arguments, "--out"]
    command.append(str(tmp_path / "killed"))
    runs = tmp_path / "killed" / "runs"
    for wanted in (1, 2, 4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            if runs.is_dir() and len(list(runs.iterdir())) >= wanted:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    for name in ("000-0", "000-1", "001-0", "001-1"):
        mine, theirs = leaves(runs / name), leaves(tmp_path / "whole" / "runs" / name)
        for place, leaf in mine.items():
            np.testing.assert_array_equal(leaf, theirs[place])
        lines = (runs / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["round_index"] for line in lines] == [0, 1, 2, 3]
