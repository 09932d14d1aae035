"""The plan: the run's own numbers before it runs, operations as XLA counts them, other devices on paper."""

import json
import subprocess
import sys
from functools import partial

import jax
import pytest

import ffalora_jax as ffa
from ffalora_jax import adapters as leaves
from ffalora_jax import cli, flops
from ffalora_jax.cli_plan import text_of
from ffalora_jax.devices import device_of
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import to_toml
from ffalora_jax.plan import plan
from ffalora_jax.prepare import prepare
from tests.tiny_runs import tiny

COMMAND = "plan --model.name tiny --data.name synthetic --rounds 3 --noise-seed 4".split()


@pytest.fixture(scope="module")
def run():
    return prepare(tiny())


def test_operations_are_those_that_xla_counts(run):
    def loss(trained, frozen, inputs, label):
        adapters = leaves.merge(frozen.adapters, trained)
        return run.task.loss(partial(run.model.apply, frozen.backbone, adapters), inputs, label)

    one = {name: leaf[0] for name, leaf in run.data.inputs.items()}
    compiled = jax.jit(jax.grad(loss)).lower(
        run.state.adapters, run.frozen, one, run.data.labels[0]
    )
    theirs = compiled.compile().cost_analysis()["flops"]
    ours = flops.of_example(run.model, run.task, run.frozen, run.state.adapters, run.data)
    assert 0.6 < ours / theirs < 1.02  # XLA counts what is no product, too: much of a tiny model


def test_a_kept_prefix_and_higher_adapters_cost_less(run):
    upper = tiny(**{"method.layers": "1"})
    counted = [
        flops.of_example(r.model, r.task, r.frozen, r.state.adapters, r.data)
        for r in (run, prepare(upper.replace(prefix_cache="never")), prepare(upper))
    ]
    assert counted[0] > counted[1] > counted[2]


def test_privacy_bytes_and_chunk_are_those_of_the_run(run, tmp_path):
    found = plan(run, measure=False)
    done = ffa.simulate(tiny(), out=tmp_path / "run")
    assert found["privacy"]["epsilon"] == done.epsilon
    assert found["bytes"]["run"] == done.communication["bytes_total"]
    assert found["client_chunk"] == done.folder.read_json("environment.json")["client_chunk"]
    assert found["seconds"] is None


@pytest.mark.thorough
def test_a_measured_plan_says_how_long(run):
    seconds = plan(run)["seconds"]
    assert all(value > 0 for value in seconds.values())
    parts = seconds["training"] + seconds["evaluating"] + seconds["compiling"]
    assert seconds["run"] == pytest.approx(parts)


def test_a_million_clients_are_on_paper_only(run):
    small, large = (plan(run, "h200", count, 4) for count in (4, 1_000_000))
    assert large["memory"]["data"] == pytest.approx(250_000 * small["memory"]["data"], rel=0.01)
    assert large["memory"]["moved_per_round"] <= small["memory"]["data"]
    assert large["bytes"] == small["bytes"]
    assert large["client_data"] == "host"
    assert not large["measured"]
    everyone = plan(run, "v5e-256", 1_000_000)
    assert everyone["clients_in_a_round"] == 1_000_000
    assert everyone["mesh"] == "clients=256"


def test_of_other_numbers_of_whole_clients_no_epsilon_is_told():
    run = prepare(
        tiny(**{"privacy.mechanism": "dp_fedavg", "privacy.noise_multiplier": 1.0}, local_steps=1)
    )
    own, others = plan(run, "h200"), plan(run, "h200", 1_000_000, 512)
    assert own["privacy"]["epsilon"] > 0
    assert others["privacy"] is None
    assert "not computed for other numbers of clients" in text_of(others)
    assert "not computed" not in text_of(own)


def test_many_chips_are_a_device_and_others_are_refused():
    assert device_of("v5e-256").chips == 256
    assert device_of("H200").chips == 1
    for name in ("h300", "v5e-", "v5e-x", "tpu"):
        if name == "v5e-":
            assert device_of(name).chips == 1
            continue
        with pytest.raises(InputError, match=r"h200"):
            device_of(name)


def test_the_command_prints_one_object_or_lines_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*COMMAND, "--json", "--no-measure"]) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["rounds"] == 3
    assert cli.main([*COMMAND, "--device", "v5e-16", "--clients", "1000"]) == cli.DONE
    said = capsys.readouterr().out
    assert "1,000 of 1,000 in a round" in said
    assert "on paper" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--device", "h300"], "No device 'h300'"),
        (["--clients", "many"], "Expected --clients to be a number"),
        (["--cohort", "9", "--clients", "3"], "Expected --cohort <= 3"),
        (["--out", "x"], "writes nothing"),
        (["--device"], "after --device"),
    ],
)
def test_mistakes_are_one_line(more, words, capsys):
    assert cli.main([*COMMAND, "--no-measure", *more]) == cli.BAD_INPUT
    assert words in capsys.readouterr().err


def test_plan_has_a_help_of_its_own(capsys):
    assert cli.main(["plan", "--help"]) == cli.DONE
    said = capsys.readouterr().out
    assert said.startswith("usage: ffalora plan")
    assert all(len(line) <= 110 for line in said.splitlines())


def test_help_of_the_command_stays_quick(tmp_path):
    (tmp_path / "e.toml").write_text(to_toml(tiny()))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ffalora_jax.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "plan [EXPERIMENT.toml]" in done.stdout
    assert not [line for line in done.stderr.splitlines() if line.endswith((" jax", " numpy"))]
