"""What the command says before any run: help, lists, privacy, mistakes."""

import json
import re
import subprocess
import sys

import pytest

from ffalora_jax import _version, cli, registry
from tests.command import ffalora, python

PAPER = (
    "privacy --num-examples 22449 --batch-size 200 --steps 10000 --delta 1e-5 --accountant rdp"
).split()
NEITHER = "privacy --num-examples 1000 --batch-size 10 --steps 10".split()
HEAVY = ("jax", "flax", "optax", "orbax", "transformers", "datasets", "pandas", "matplotlib")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], [*PAPER, "--epsilon", "6"], ["init"]]
)
def test_what_needs_no_jax_loads_none(arguments):
    code = (
        "import sys; from ffalora_jax import cli\n"
        f"assert cli.main({arguments!r}) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, ffalora_jax.cli; print([n for n in {HEAVY!r} if n in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


def test_help_names_every_command():
    shown = ffalora("--help")
    for command in cli.COMMANDS:
        assert re.search(rf"^  {command}\b", shown, re.MULTILINE)
    assert ffalora() == shown


@pytest.mark.parametrize("command", ["run", "resume", "predict", "evaluate", "report", "privacy"])
def test_every_command_has_help_of_its_own(command):
    assert command in ffalora(command, "--help")


def test_help_of_run_shows_every_table_of_settings():
    shown = ffalora("run", "--help")
    for flag in ("--rounds", "--data.path", "--method.rank", "--privacy.epsilon", "--model.head"):
        assert flag in shown


def test_version_is_the_packages():
    assert ffalora("--version").strip() == _version.__version__


@pytest.mark.parametrize("shelf", registry.SHELVES)
def test_list_prints_one_name_a_line(shelf):
    assert ffalora("list", shelf).splitlines() == registry.available(shelf)
    assert registry.available(shelf) == sorted(set(registry.available(shelf)))


def test_lists_hold_what_the_readers_of_scripts_rely_on():
    assert {"ffa_lora", "fedavg_lora"} <= set(registry.available("methods"))
    assert {"dp_sgd", "none"} <= set(registry.available("mechanisms"))
    assert {"minilm", "tiny"} <= set(registry.available("models"))
    assert {"csv", "synthetic", "vader"} <= set(registry.available("datasets"))


def test_privacy_agrees_with_the_papers_noise():
    answer = json.loads(ffalora(*PAPER, "--epsilon", 6, "--json"))
    assert answer["noise_multiplier"] == pytest.approx(0.989, abs=0.003)
    assert 5.9 < answer["epsilon"] <= 6


def test_privacy_in_json_has_the_promised_fields():
    answer = json.loads(ffalora(*PAPER, "--noise-multiplier", 0.995, "--json"))
    assert answer["epsilon"] == pytest.approx(5.93, abs=0.01)
    assert answer["sampling_probability"] == pytest.approx(200 / 22449)
    assert set(answer) == {
        "epsilon",
        "delta",
        "noise_multiplier",
        "sampling_probability",
        "steps",
        "accountant",
        "neighbours",
    }
    assert (answer["delta"], answer["steps"], answer["accountant"]) == (1e-5, 10000, "rdp")


@pytest.mark.thorough
def test_privacy_without_json_says_the_same_in_lines():
    shown = dict(line.split(maxsplit=1) for line in ffalora(*NEITHER, "--epsilon", 3).splitlines())
    answer = json.loads(ffalora(*NEITHER, "--epsilon", 3, "--json"))
    assert float(shown["noise_multiplier"]) == pytest.approx(answer["noise_multiplier"], rel=1e-5)
    assert shown["accountant"] == answer["accountant"] == "pld"


def test_a_warning_of_privacy_stays_out_of_the_json():
    arguments = [*NEITHER, "--noise-multiplier", "1", "--delta", "0.01", "--json"]
    done = python("-m", "ffalora_jax.cli", *arguments)
    assert json.loads(done.stdout)["delta"] == 0.01
    assert done.stderr.startswith("warning: delta 0.01 is not below 1 / 1000")


def test_a_mistake_ends_with_code_2_and_one_line():
    done = python("-m", "ffalora_jax.cli", "run", "--ronds", "3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ffalora: ")
    assert done.stderr.count("\n") == 1


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m ffalora_jax.cli init | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("# An experiment")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
