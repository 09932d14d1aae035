"""Whatever a user can get wrong is one line that says what and how to go on; nothing is written."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from ffalora_jax import cli
from ffalora_jax.models.minilm import SOURCE
from tests.refusals import FAST, assert_says

TINY = f"run --model.name tiny {FAST}"
SYNTHETIC = f"{TINY} --data.name synthetic"
CSV = f"{TINY} --data.name csv --partition.name iid --partition.num-clients 2 --data.path"
PRIVATE = (
    "run --model.name tiny --data.name synthetic --rounds 1 --local-steps 1 "
    "--privacy.noise-multiplier 2"
)
PRICE = "privacy --num-examples 1000 --batch-size 10 --steps 10"

FILES = {
    "good.csv": "text,label\n" + "a good film,pos\na bad film,neg\n" * 40,
    "no_label.csv": "text,stars\n" + "a good film,5\na bad film,1\n" * 40,
    "empty.csv": "",
    "header.csv": "text,label\n",
    "one_class.csv": "text,label\n" + "a good film,pos\n" * 80,
    "sites.csv": "text,label,site\n"
    + "fine,pos,north\nbad,neg,north\n" * 40
    + "fine,pos,tiny_site\n",
    "tabs.csv": "text\tlabel\n" + "fine\tpos\n" * 40,
    "semicolons.csv": "text;label\n" + "fine;pos\n" * 40,
    "other.csv": "text,label\n" + "".join(f"text {n},text {n}\n" for n in range(40)),
    "strange.csv": "text,label\nfine,wonderful\nbad,negative\n",
    "good.toml": "rounds = 3\n",
    "broken.toml": "rounds = 3\nseed = = 4\n",
    "table.toml": "[privat]\nepsilon = 3\n",
    "type.toml": 'rounds = "three"\n',
}

CASES = {
    "no such command": ("trian", ["'trian'", "run", "resume", "privacy"]),
    "misspelt option": ("run --metod.name ffa_lora", ["'--metod.name'", "'--method.name'"]),
    "option without a value": ("run --rounds", ["rounds"]),
    "text for a number": ("run --rounds many", ["rounds", "many", "int"]),
    "two files": ("run good.toml type.toml", ["type.toml"]),
    "no TOML": ("run good.csv", ["Broken TOML", "good.csv", "line 1"]),
    "unknown option of privacy": (f"{PRICE} --epsilon 3 --sigma 2", ["--sigma"]),
    "unknown shelf": ("list widgets", ["widgets", "methods"]),
    "method": (f"{SYNTHETIC} --method.name ffalora", ["'ffalora'", "fedavg_lora", "'ffa_lora'"]),
    "model": (f"run --data.name synthetic {FAST} --model.name tny", ["'tny'", "minilm", "'tiny'"]),
    "model family": (f"run --data.name synthetic {FAST} --model.name bert", ["'bert'", "family"]),
    "model directory": (f"{SYNTHETIC} --model.name ./nowhere", ["nowhere", "--model.name"]),
    "data set": (f"{TINY} --data.name sintetic", ["'sintetic'", "csv", "vader", "'synthetic'"]),
    "mechanism": (
        "run --model.name tiny --data.name synthetic --privacy.mechanism dp_sdg",
        ["'dp_sdg'", "none", "'dp_sgd'"],
    ),
    "init": (f"{SYNTHETIC} --method.init xavier", ["'xavier'", "gaussian", "kaiming"]),
    "optimiser": (f"{SYNTHETIC} --optimizer.name adm", ["'adm'", "adam"]),
    "no such function": (
        f"{SYNTHETIC} --method.name os:nothing",
        ["os:nothing", "module:function"],
    ),
    "broken TOML": ("run broken.toml", ["broken.toml", "line 2"]),
    "unknown table": ("run table.toml", ["'privat'", "'privacy'", "table.toml"]),
    "wrong type": ("run type.toml", ["int", "rounds", "'three'", "type.toml"]),
    "missing experiment": ("run nowhere.toml", ["nowhere.toml", "ffalora init"]),
    "missing data": (f"{CSV} nowhere.csv", ["'nowhere.csv'", "--data.path"]),
    "data without a path": (f"{TINY} --data.name csv", ["--data.path"]),
    "no label column": (f"{CSV} no_label.csv", ["'label'", "'text'", "'stars'", "--data.label"]),
    "empty file": (f"{CSV} empty.csv", ["empty.csv", "no examples"]),
    "header only": (f"{CSV} header.csv", ["header.csv", "no examples"]),
    "tabs": (f"{CSV} tabs.csv", ["tabs.csv", "tabs", "commas"]),
    "semicolons": (f"{CSV} semicolons.csv", ["semicolons.csv", "semicolons", "commas"]),
    "an archive for a CSV": (f"{CSV} archive.csv", ["archive.csv is a zip archive"]),
    "not UTF-8": (f"{CSV} latin.csv", ["latin.csv", "line 2", "UTF-8"]),
    "text for the label": (f"{CSV} other.csv --data.label text", ["'text'", "two things"]),
    "no classes": (f"{CSV} other.csv", ["40 different values", "--data.label"]),
    "out twice": (f"{SYNTHETIC} --out a --out b", ["--out is given twice"]),
    "out under a file": (f"{SYNTHETIC} --out good.csv/x", ["good.csv/x", "good.csv"]),
    "out that is a file": (f"{SYNTHETIC} --out good.csv", ["'good.csv' exists and is no run"]),
    "file after the flags": ("run --rounds 1 good.toml", ["comes first", "run good.toml"]),
    "no shelf": ("list", ["datasets|inits|mechanisms|methods|models"]),
    "epsilon infinite": ("run --privacy.epsilon inf", ["finite", "privacy.epsilon", "inf"]),
    "shares above all": (
        f"{SYNTHETIC} --partition.test-share .6 --partition.validation-share .5",
        ["partition.validation_share + partition.test_share < 1"],
    ),
    "one class": (f"{CSV} one_class.csv", ["one class", "'pos'"]),
    "site smaller than a batch": (
        f"{TINY} --data.name csv --data.path sites.csv --data.client site",
        ["'tiny_site'", "batch of 8", "--batch-size"],
    ),
    "rank 0": (f"{SYNTHETIC} --method.rank 0", ["method.rank", "0"]),
    "rank as wide as the layer": (f"{SYNTHETIC} --method.rank 32", ["method.rank", "width 32"]),
    "epsilon 0": ("run --privacy.epsilon 0", ["privacy.epsilon > 0"]),
    "epsilon negative": ("run --privacy.epsilon -1", ["privacy.epsilon > 0", "-1"]),
    "delta 0.1": ("run --privacy.delta 0.1", ["privacy.delta < 0.1"]),
    "delta of 100 / n": (
        f"{PRIVATE} --data.max-examples 6000 --privacy.delta 0.099",
        ["0.099", "1050 examples"],
    ),
    "learning rate NaN": ("run --optimizer.learning-rate nan", ["learning_rate > 0", "nan"]),
    "resume of no run": ("resume .", ["No run in '.'", "experiment.toml"]),
    "resume of nothing": ("resume nowhere", ["No run in 'nowhere'"]),
    "cohort above the clients": (f"{SYNTHETIC} --cohort-size 5", ["cohort_size <= 4", "5"]),
    "natural without owners": (
        f"{TINY} --data.name csv --data.path good.csv",
        ["natural", "--data.client", "iid"],
    ),
    "proportions": (
        f"{SYNTHETIC} --partition.name proportions --partition.proportions '.1 .9 .5'",
        ["partition.proportions", "2 class weights", "'.1 .9 .5'"],
    ),
    "no regular expression": (
        f"{SYNTHETIC} --method.targets '*query'",
        ["method.targets", "'*query'"],
    ),
    "targets match nothing": (f"{SYNTHETIC} --method.targets .*qv", ["'.*qv'", "attention.query"]),
    "layers": (f"{SYNTHETIC} --method.layers first", ["method.layers", "'first'"]),
    "more tokens than positions": (
        f"{SYNTHETIC} --model.max-tokens 513",
        ["512", "--model.max-tokens"],
    ),
    "rdp for a run": (
        "run --privacy.accountant rdp",
        ["'pld'", "ffalora privacy --accountant rdp"],
    ),
    "capacity below the batch": (
        f"{PRIVATE} --batch-size 32 --privacy.capacity 31",
        ["privacy.capacity >= batch_size = 32", "31"],
    ),
    "budget below one round": (
        f"{PRIVATE} --privacy.epsilon 1e-4",
        ["budget", "0.0001", "privacy.epsilon"],
    ),
    "neither epsilon nor noise": (PRICE, ["exactly one", "--epsilon", "--noise-multiplier"]),
    "both epsilon and noise": (f"{PRICE} --epsilon 1 --noise-multiplier 1", ["exactly one"]),
    "noise 0": (f"{PRICE} --noise-multiplier 0", ["noise_multiplier > 0"]),
    "price of epsilon 0": (f"{PRICE} --epsilon 0", ["epsilon > 0"]),
    "price of no steps": (
        "privacy --num-examples 1000 --batch-size 10 --steps 0 --epsilon 1",
        ["--steps >= 1", "0"],
    ),
    "price of a batch above n": (
        "privacy --num-examples 10 --batch-size 11 --steps 1 --epsilon 1",
        ["batch_size = 11", "10"],
    ),
    "price with rdp and a cap": (
        f"{PRICE} --epsilon 1 --accountant rdp --capacity 40",
        ["capped", "pld"],
    ),
    "price of delta 100 / n": (f"{PRICE} --epsilon 1 --delta 0.1", ["delta", "100 / examples"]),
    "report on no run": ("report .", ["No run in '.'"]),
    "predict with no run": ("predict . --input good.csv", ["No run in '.'"]),
    "evaluate with no run": ("evaluate nowhere", ["No run in 'nowhere'"]),
    "evaluate with nothing": ("evaluate", ["run folder"]),
}

RUN_CASES = {
    "folder exists": (f"{SYNTHETIC} --out {{run}}", ["exists", "--out", "ffalora resume"]),
    "input missing": ("predict {run} --input nowhere.csv", ["'nowhere.csv'"]),
    "column missing": (
        "predict {run} --input good.csv --text words",
        ["'words'", "'text', 'label'"],
    ),
    "input empty": ("predict {run} --input empty.txt", ["empty.txt", "no texts"]),
    "input is a header": ("predict {run} --input header.csv", ["header.csv", "no texts"]),
    "input is an empty csv": ("predict {run} --input empty.csv", ["empty.csv"]),
    "unknown classes": (
        "evaluate {run} --data.name csv --data.path strange.csv",
        ["'wonderful'", "'negative', 'positive'"],
    ),
    "evaluate without label": (
        "evaluate {run} --data.name csv --data.path no_label.csv",
        ["'label'", "'stars'"],
    ),
    "fewer rounds": ("resume {run} --rounds -1", ["--rounds >= 0", "-1"]),
    "report with no run": ("report {run} .", ["No run in '.'"]),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty place to work in, with the files of the table."""
    folder = tmp_path / "here"
    folder.mkdir()
    for name, content in {**FILES, "empty.txt": ""}.items():
        (folder / name).write_text(content)
    (folder / "archive.csv").write_bytes(b"PK\x03\x04\xff\xff")
    (folder / "latin.csv").write_bytes("text,label\ncaf\xe9,pos\n".encode("latin-1"))
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


@pytest.mark.parametrize(("command", "words"), CASES.values(), ids=CASES)
def test_a_mistake_is_one_line_and_nothing_is_written(command, words, refused):
    assert_says(refused(command), words)


@pytest.mark.parametrize(("command", "words"), RUN_CASES.values(), ids=RUN_CASES)
def test_a_mistake_with_a_run_is_one_line_and_nothing_is_written(command, words, refused, finished):
    shutil.copytree(finished, "run")
    assert_says(refused(command.format(run="run")), words)


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
