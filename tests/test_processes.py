"""Several processes are one run: same numbers, one folder, one plain line when one of them is lost."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

import ffalora_jax as ffa
from ffalora_jax import cli
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import to_toml
from ffalora_jax.processes import num_processes
from tests.tiny_runs import tiny

CASES = {
    "a call of several rounds": {"rounds": 4},
    "poisson cohorts": {"rounds": 4, "cohort_size": 2, "cohort_sampling": "poisson"},
    "personal head": {"rounds": 4, "model.head": "personal", "cohort_size": 3},
}


def command(*arguments):
    return [sys.executable, "-m", "ffalora_jax.cli", *map(str, arguments)]


def run_of(experiment, folder, *arguments):
    """Starts the command on an experiment, with its noise seed (which no run folder has)."""
    file = folder / "given.toml"
    file.write_text(to_toml(experiment))
    return command("run", file, "--out", folder / "run", *arguments)


def done(arguments):
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    return found


def differences(one, other):
    """Largest difference of every file of leaves."""
    for file in sorted(p.name for p in (one.path / "adapter").glob("*.safetensors")):
        a, b = (load_file(run.path / "adapter" / file) for run in (one, other))
        yield max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.mark.slow
def test_a_lost_process_stops_the_others_in_plain_words_and_any_number_goes_on(tmp_path):
    experiment = tiny(rounds=24)
    whole = ffa.simulate(experiment, out=tmp_path / "whole")
    first = subprocess.Popen(
        run_of(experiment, tmp_path, "--processes", "2"), stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    end = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.02)
    (other,) = (p for p in psutil.Process(first.pid).children() if "ffalora_jax.cli" in p.cmdline())
    other.kill()
    complaint = first.communicate(timeout=60)[1]
    assert first.returncode == cli.FAILED
    assert "Process 1 of 2 ended by SIGKILL" in complaint.splitlines()[-1]
    assert "Traceback" not in complaint
    assert metrics.read_text().count("\n") < experiment.rounds
    done(command("resume", tmp_path / "run"))
    resumed = ffa.load_run(tmp_path / "run")
    assert len(resumed.metrics) == experiment.rounds
    assert resumed.privacy == {**whole.privacy, "clients": resumed.privacy["clients"]}
    assert max(differences(whole, resumed)) < 1e-6
    assert resumed.accuracy == pytest.approx(whole.accuracy)
    assert resumed.folder.read_json("environment.json")["processes"] == 2


@pytest.mark.slow
def test_ctrl_c_stops_all_of_them_and_saves(tmp_path):
    first = subprocess.Popen(
        run_of(tiny(rounds=4000), tmp_path, "--processes", "2"), stderr=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    while not first.stderr.readline().startswith("round 1/"):
        assert first.poll() is None
    others = psutil.Process(first.pid).children()
    os.kill(first.pid, signal.SIGINT)
    complaint = first.communicate(timeout=60)[1]
    assert first.returncode == cli.INTERRUPTED
    assert "go on with `ffalora resume" in complaint
    assert not psutil.wait_procs(others, timeout=10)[1]


def test_bad_input_is_told_once(tmp_path):
    arguments = run_of(tiny(batch_size=100_000), tmp_path, "--processes", "2")
    found = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert found.returncode == cli.BAD_INPUT
    assert found.stderr.count("expected batch of 100000") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_numbers_of_one(tmp_path, case):
    experiment = tiny(**CASES[case])
    one = ffa.simulate(experiment, out=tmp_path / "one")
    done(run_of(experiment, tmp_path, "--processes", "2"))
    done(
        command("resume", tmp_path / "run", "--rounds", "2", "--epsilon", "99", "--processes", "3")
    )
    ffa.resume(one.path, rounds=2, epsilon=99)
    one, two = ffa.load_run(one.path), ffa.load_run(tmp_path / "run")
    assert max(differences(one, two)) < 1e-6
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert a["participants"] == b["participants"]
        assert a["drawn"] == b["drawn"]


@pytest.mark.parametrize("setting", ["two", "0", "-1", "1.5", "10000"])
def test_a_number_of_processes_that_is_none_is_refused(setting):
    with pytest.raises(InputError, match="auto, a number or cluster"):
        num_processes(setting)


def test_without_a_launcher_cluster_is_refused_in_one_line(capsys):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI"))}
    found = subprocess.run(
        command("run", "--processes", "cluster"), env=environment, capture_output=True, text=True
    )
    assert found.returncode == cli.BAD_INPUT
    assert len(found.stderr.strip().splitlines()) == 1
    assert "no launcher" in found.stderr
