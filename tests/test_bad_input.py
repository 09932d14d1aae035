"""Whatever a user can get wrong is one line that says what and how to go on; nothing is written."""

import json
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from ffalora_jax import cli
from ffalora_jax.models.minilm import SOURCE
from tests import bad_files
from tests.refusals import FAST, assert_says

TINY = f"run --model.name tiny {FAST}"
SYNTHETIC = f"{TINY} --data.name synthetic"
CSV = f"{TINY} --data.name csv --partition.name iid --partition.num-clients 2 --data.path"
PRIVATE = (
    "run --model.name tiny --data.name synthetic --rounds 1 --local-steps 1 "
    "--privacy.noise-multiplier 2"
)
PRICE = "privacy --num-examples 1000 --batch-size 10 --steps 10"

BEGINNINGS = {
    "tiny": TINY,
    "synthetic": SYNTHETIC,
    "csv": CSV,
    "private": PRIVATE,
    "price": PRICE,
    "fast": FAST,
}
CASES = tomllib.loads((Path(__file__).parent / "bad_input.toml").read_text())["case"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty place to work in, with the files of the table."""
    folder = tmp_path / "here"
    folder.mkdir()
    bad_files.make(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One tiny run that the tests share; they copy it before they change it."""
    path = tmp_path_factory.mktemp("finished") / "run"
    assert (
        cli.main([*shlex.split(SYNTHETIC), "--data.max-examples", "200", "--out", str(path)]) == 0
    )
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_mistake_is_one_line_and_nothing_is_written(case, refused, finished):
    if "{run}" in case["command"]:
        shutil.copytree(finished, "run")
    line = refused(case["command"].format(run="run", **BEGINNINGS))
    assert_says(line, case["words"])


def test_the_table_is_large_and_names_no_case_twice():
    assert len({case["name"] for case in CASES}) == len(CASES) >= 100


def test_the_given_folder_is_not_made(refused):
    refused(f"{SYNTHETIC} --method.rank 32 --out deep/er/run")


def test_a_checkpoint_of_another_experiment_is_refused(refused, finished):
    shutil.copytree(finished, "run")
    file = Path("run/experiment.toml")
    file.write_text(file.read_text().replace("seed = 0", "seed = 1"))
    assert_says(refused("resume run --rounds 1"), ["another experiment", "experiment.toml"])


def test_a_run_without_checkpoints_is_refused(refused, finished):
    shutil.copytree(finished, "run", ignore=shutil.ignore_patterns("checkpoints"))
    assert_says(refused("resume run"), ["No checkpoint", "ffalora run"])


def test_a_run_without_an_adapter_is_refused(refused, finished):
    shutil.copytree(finished, "run", ignore=shutil.ignore_patterns("adapter"))
    assert_says(refused("predict run --input good.csv"), ["run.json", "has not come far enough"])


def test_a_changed_file_of_the_default_model_is_refused(refused, monkeypatch, tmp_path):
    monkeypatch.setenv("FFALORA_CACHE", str(tmp_path / "cache"))
    label = f"minilm-{SOURCE.sha256['model.safetensors'][:12]}"
    folder = tmp_path / "cache" / "models" / label
    folder.mkdir(parents=True)
    for name in SOURCE.sha256:
        (folder / name).write_text("changed")
    line = refused(f"run --data.name synthetic {FAST} --model.name minilm")
    assert_says(line, ["sha256", label, "not the published"])


def test_a_run_whose_weights_were_exchanged_is_refused(finished, refused):
    shutil.copytree(finished, "run")
    file = Path("run/adapter/run.json")
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"backbone": "0" * 64}))
    assert_says(refused("predict run --input good.csv"), ["sha256", "000000000000"])


def test_a_delta_above_one_over_n_is_a_warning(here):
    assert cli.main([*shlex.split(PRIVATE), "--privacy.delta", "0.01", "--out", "run"]) == 0
    warnings = json.loads((here / "run" / "privacy.json").read_text())["warnings"]
    assert warnings
    assert all("delta 0.01 is not below 1 / " in warning for warning in warnings)
