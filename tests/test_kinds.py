"""Every kind of data end to end, by the commands that a user types: train, predict, evaluate."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import ffalora_jax as ffa
from ffalora_jax import cli
from ffalora_jax.console import show_run
from ffalora_jax.load import prompt_room
from ffalora_jax.report import words
from tests.family_files import ROBERTA, VIT, write_family
from tests.llama_files import write_llama
from tests.test_codec import write_tokenizer

FAST = "--rounds 2 --local-steps 1 --batch-size 8 --evaluate-every 2 --noise-seed 5 --method.rank 2".split()
DEALT = "--partition.name iid --partition.num-clients 2".split()
COLOURS = {"ash": (70, 110, 60), "beech": (200, 160, 40), "yew": (20, 40, 90)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    """Runs a command that must end well; returns what it printed."""
    capsys.readouterr()
    code = cli.main(list(arguments))
    said = capsys.readouterr()
    assert code == cli.DONE, said.err
    return said.out


@pytest.mark.slow
def test_a_roberta_directory_learns_pairs_of_texts_from_a_csv(here, capsys):
    folder = write_family(here / "roberta", ROBERTA, pad_token_id=1)
    trainer = trainers.BpeTrainer(vocab_size=99, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    rows = [(f"is {i} even", f"{i} is a number", "no" if i % 2 else "yes") for i in range(80)]
    tokenizer.train_from_iterator([f"{a} {b}" for a, b, _ in rows], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    lines = ["question,sentence,label", *(",".join(row) for row in rows)]
    (here / "pairs.csv").write_text("\n".join(lines))
    columns = "--data.text question --data.text-pair sentence".split()
    source = ["--data.name", "csv", "--data.path", "pairs.csv", *columns]
    run(
        capsys,
        "run",
        *source,
        *DEALT,
        *FAST,
        "--model.name",
        str(folder),
        "--model.max-tokens",
        "16",
        "--out",
        "r",
    )
    asked = ["--input", "pairs.csv", "--text", "question", "--text-pair", "sentence", "--json"]
    found = json.loads(run(capsys, "predict", "r", *asked))
    assert {one["label"] for one in found["predictions"]} <= {"yes", "no"}
    assert len(found["predictions"]) == 80
    assert "80" in run(capsys, "evaluate", "r", "--data.path", "pairs.csv")
    found = ffa.load_run("r")
    found.metrics[-1]["test_metrics"] = {"f1": 0.8125}  # as QQP's and MRPC's runs have it
    show_run(found)
    assert "F1 0.812" in capsys.readouterr().out
    assert "(F1 0.812)" in words.answer(found)
    del found.metrics[-1]["majority_accuracy"]  # as before its last evaluation
    assert words.success(found) == "right on unseen texts (commonest class: –)"


@pytest.mark.slow
def test_a_zip_of_class_folders_trains_a_vit_directory(here, capsys):
    folder = write_family(here / "checkpoint", VIT)
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(here / "trees.zip", "w") as archive:
        for name, colour in COLOURS.items():
            for number in range(30):
                pixels = np.clip(draw.normal(colour, 20, (17, 15, 3)), 0, 255).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                archive.writestr(f"{name}/{number}.png", file.getvalue())
    source = ["--data.name", "images", "--data.path", "trees.zip"]
    run(capsys, "run", *source, *DEALT, *FAST, "--model.name", str(folder), "--out", "r")
    Image.new("RGB", (20, 10), COLOURS["yew"]).save(here / "new.png")
    found = json.loads(run(capsys, "predict", "r", "--input", "new.png", "--json"))
    assert set(found["predictions"][0]["probabilities"]) == set(COLOURS)
    assert "90" in run(capsys, "evaluate", "r", "--data.path", "trees.zip")
    page = (here / "r" / "report.html").read_text()
    assert "right on unseen images (commonest class: " in page
    assert "training images" in page
    assert "texts" not in page.partition("<h2>What was run")[0]
    content = bytearray((here / "trees.zip").read_bytes())
    content[content.index(b"IDAT", len(content) // 2) + 8] ^= 1
    (here / "broken.zip").write_bytes(content)
    assert cli.main(["evaluate", "r", "--data.path", "broken.zip"]) == 2
    assert ".png" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_llama_directory_learns_worked_answers_and_is_judged_by_their_numbers(here, capsys):
    folder = write_llama(here / "llama")
    write_tokenizer(folder)
    problems = [
        {"question": f"what is one plus {w}", "answer": f"{w} #### {i}"}
        for i, w in enumerate(["two", "three"] * 20)
    ]
    (here / "gsm").mkdir()
    for part in ("train", "test"):
        (here / "gsm" / f"{part}.jsonl").write_text("\n".join(map(json.dumps, problems)))
    sizes = [
        "--model.max-tokens",
        "16",
        "--model.max-new-tokens",
        "4",
        "--partition.test-share",
        "0",
    ]
    source = ["--data.name", "gsm8k", "--data.path", "gsm", *DEALT, *FAST, *sizes]
    said = run(capsys, "run", *source, "--model.name", str(folder), "--out", "r")
    assert "share of the responses' tokens" in said
    assert "exact match of answers" in said
    found = ffa.load_run("r")
    exact = found.metrics[-1]["test_metrics"]
    assert exact["exact_match_low"] <= exact["exact_match"] <= exact["exact_match_high"]
    assert "95 % interval" in words.answer(found)
    page = (here / "r" / "report.html").read_text()
    assert "<span>of the tokens of unseen responses predicted</span>" in page
    assert "commonest class" not in page
    assert len(found.generate(["what is one"])) == 1
    # Prompts give way to answers that need their positions; answers that need all are refused at once.
    loaded, settings = found.ready.loaded, found.experiment.model
    positions = loaded.model.max_positions
    assert prompt_room(loaded, settings) == 16
    longer = dataclasses.replace(settings, max_new_tokens=positions - 10)
    assert prompt_room(loaded, longer) == 10
    most = f"--model.max-new-tokens={positions}"
    assert cli.main(["run", *source, "--model.name", str(folder), most, "--out", "r2"]) == 2
    assert "lower --model.max-new-tokens" in capsys.readouterr().err
