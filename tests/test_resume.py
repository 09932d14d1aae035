"""A run that was stopped, killed or lengthened: the same bits, the ledger carried over."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import ffalora_jax as ffa
from ffalora_jax import cli, errors, loop
from ffalora_jax.errors import InputError
from tests.tiny_runs import TINY, same_bits, timeless, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    return ffa.simulate(tiny(), out=tmp_path_factory.mktemp("runs") / "whole")


class StopAfter:
    """An observer that sends Ctrl-C once a round is done."""

    def __init__(self, rounds):
        self.rounds = rounds

    def __call__(self, event):
        if event.line is not None and event.rounds_done == self.rounds:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("rounds", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_stopped_by_ctrl_c_and_resumed_ends_in_the_same_bits(whole, tmp_path, rounds):
    with pytest.raises(loop.Interrupted, match="ffalora resume"):
        ffa.simulate(tiny(), out=tmp_path / "cut", observe=StopAfter(rounds))
    assert len(ffa.load_run(tmp_path / "cut").metrics) < 6
    resumed = ffa.resume(tmp_path / "cut")
    assert same_bits(whole, resumed)
    assert timeless(resumed) == timeless(whole)
    assert resumed.privacy == whole.privacy
    assert resumed.communication == whole.communication


@pytest.mark.thorough
def test_a_run_killed_in_the_middle_and_resumed_ends_in_the_same_bits(whole, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(out), json.dumps(TINY)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = out / "metrics.jsonl"
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    resumed = ffa.resume(out)
    assert same_bits(whole, resumed)
    assert timeless(resumed) == timeless(whole)


@pytest.mark.thorough
def test_a_run_killed_in_its_first_call_goes_on_from_the_beginning(whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop.Engine, "__call__", die)
        with pytest.raises(Killed):
            ffa.simulate(tiny(), out=tmp_path / "run")
    assert same_bits(whole, ffa.resume(tmp_path / "run"))


KILLED = """
import json, sys, time
import ffalora_jax as ffa
from ffalora_jax.experiment_file import from_table
ffa.simulate(from_table(json.loads(sys.argv[2])), out=sys.argv[1],
             observe=lambda event: time.sleep(0.3 if event.line else 0))
"""


@pytest.mark.thorough
def test_every_kind_of_state_survives_a_stop(tmp_path):
    changes = {
        "model.head": "personal",
        "optimizer.name": "adam",
        "optimizer.learning_rate": 0.01,
        "cohort_size": 2,
        "rounds": 4,
        "server.optimizer": "adam",
        "server.learning_rate": 0.01,
        "optimizer.control_variates": True,
    }
    at_once = ffa.simulate(tiny(**changes), out=tmp_path / "whole")
    with pytest.raises(loop.Interrupted):
        ffa.simulate(tiny(**changes), out=tmp_path / "cut", observe=StopAfter(1))
    resumed = ffa.resume(tmp_path / "cut")
    assert same_bits(at_once, resumed)
    assert timeless(resumed) == timeless(at_once)
    one, other = (load_file(r.path / "personal" / "leaves.safetensors") for r in (at_once, resumed))
    assert all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.thorough
def test_adding_rounds_carries_the_ledger_over(whole, tmp_path):
    short = ffa.simulate(tiny(rounds=4), out=tmp_path / "short")
    longer = ffa.resume(tmp_path / "short", rounds=2)
    assert same_bits(whole, longer)
    assert longer.epsilon == pytest.approx(whole.epsilon)
    assert longer.epsilon > short.epsilon
    assert "test_accuracy" not in longer.metrics[3]
    assert "test_accuracy" in longer.metrics[5]


def test_a_finished_run_says_so_and_stays_as_it_is(whole):
    before = (whole.path / "metrics.jsonl").read_bytes()
    said = []
    ffa.resume(whole.path, observe=lambda event: said.append(event.stage))
    assert any("nothing to do" in stage for stage in said)
    assert (whole.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.thorough
def test_a_run_stops_before_the_budget_is_passed_and_goes_on_with_a_larger_one(
    whole, tmp_path, capsys
):
    budget = (whole.metrics[2]["epsilon"] + whole.metrics[3]["epsilon"]) / 2
    out = tmp_path / "budget"
    run = ffa.simulate(tiny(**{"privacy.epsilon": budget}), out=out)
    assert len(run.metrics) == 3
    assert run.epsilon <= budget
    assert run.privacy["stopped_at_budget"]
    assert run.accuracy is not None
    assert cli.main(["resume", str(out)]) == errors.BUDGET
    assert "--epsilon" in capsys.readouterr().err
    assert cli.main(["resume", str(out), "--epsilon", "100"]) == cli.DONE
    assert same_bits(whole, ffa.load_run(out))


@pytest.mark.slow
def test_added_rounds_need_a_larger_budget_than_what_is_spent(tmp_path):
    out = tmp_path / "run"
    run = ffa.simulate(
        tiny(rounds=1, **{"privacy.epsilon": 5.0, "privacy.noise_multiplier": None}), out=out
    )
    with pytest.raises(InputError, match="--rounds 2 --epsilon"):
        ffa.resume(out, rounds=2)
    for less in (run.epsilon / 2, float("nan"), -1.0):
        with pytest.raises(InputError, match="spent already"):
            ffa.resume(out, rounds=2, epsilon=less)
    longer = ffa.resume(out, rounds=1, epsilon=50.0)
    assert longer.epsilon > run.epsilon
    before, after = (r.privacy["clients"][0]["noise_multiplier"] for r in (run, longer))
    assert before == after


@pytest.mark.thorough
def test_resuming_on_other_data_is_refused(tmp_path):
    columns = {
        "text": [f"{'good' if i % 2 else 'bad'} film" for i in range(90)],
        "label": [i % 2 for i in range(90)],
        "site": [i % 3 for i in range(90)],
    }
    out = tmp_path / "run"
    ffa.simulate(tiny(rounds=1, **{"data.client": "site"}), columns, out=out)
    changed = {**columns, "text": [*columns["text"][:-1], "another text"]}
    with pytest.raises(InputError, match="not those that the run"):
        ffa.resume(out, changed, rounds=1)
    fewer = {name: values[:60] for name, values in columns.items()} | {
        "site": [i % 2 for i in range(60)]
    }
    with pytest.raises(InputError, match="3 clients"):
        ffa.resume(out, fewer, rounds=1)
    assert len(ffa.resume(out, columns, rounds=1).metrics) == 2


@pytest.mark.slow
def test_a_last_line_that_was_cut_off_is_repaired(whole, tmp_path):
    with pytest.raises(loop.Interrupted):
        ffa.simulate(tiny(), out=tmp_path / "cut", observe=StopAfter(1))
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"round_index": 5, "acc')
    assert timeless(ffa.resume(tmp_path / "cut")) == timeless(whole)
