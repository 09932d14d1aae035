"""What the documents show is what happens: README's blocks, the quickstart script."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.peft_files import write

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
OFFLINE = """
name = "readme"
noise_seed = 1
rounds = 2
batch_size = 16
[data]
name = "synthetic"
[model]
name = "tiny"
max_tokens = 16
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


@pytest.fixture
def folder(tmp_path):
    """A folder in which README's relative paths mean something small and offline."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.toml").write_text(OFFLINE)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    command = binaries / "ffalora"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ffalora_jax.cli "$@"\n')
    command.chmod(0o755)
    write_what_readers_bring(tmp_path)
    return tmp_path


def write_what_readers_bring(folder: Path) -> None:
    """The files that README's commands name: checkpoints and data of every kind, tiny ones."""
    from PIL import Image

    for family in ("roberta", "vit", "llama"):
        more = {"kind": "plain"} if family == "llama" else {}
        write(folder / "path" / "to" / family, family, **more)
    rows = [f"what is {i},it is {'even' if i % 2 else 'odd'},{i % 2}" for i in range(90)]
    (folder / "pairs.csv").write_text("\n".join(["question,answer,label", *rows]))
    lines = [json.dumps({"prompt": "what is one", "response": "two plus three"})] * 90
    (folder / "answers.jsonl").write_text("\n".join(lines))
    with zipfile.ZipFile(folder / "leaves.zip", "w") as archive:
        for number in range(90):
            file = io.BytesIO()
            Image.new("RGB", (9, 9), (number, 90, 0)).save(file, "PNG")
            archive.writestr(f"{['ash', 'oak'][number % 2]}/{number}.png", file.getvalue())
    Image.new("RGB", (9, 9)).save(folder / "new_leaf.png")


def run(command: list[str], folder: Path) -> str:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_readme_begins_with_the_two_commands():
    first = blocks("sh")[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make demo", "make test"]


@pytest.mark.thorough
def test_readmes_python_runs_and_has_eight_lines(folder):
    code = blocks("python")
    assert len([line for line in code[0].splitlines() if line.strip()]) == 8
    for block in code:
        run([sys.executable, "-c", block], folder)


@pytest.mark.thorough
def test_readmes_commands_run(folder):
    """All blocks in order, in one folder, as a reader would; the model is replaced by the offline one."""
    script = "set -eu\n" + "\n".join(blocks("sh")[1:])
    script = script.replace("--model.name minilm", "--model.name tiny --model.max-tokens 16")
    script = script.replace("path/to/roberta", "path/to/roberta --model.max-tokens 16")
    script = script.replace("--method.layers 4-5", "--method.layers 1")
    script = script.replace("--quick", "--quick --minutes 0.1")
    script = "\n".join(
        line for line in script.splitlines() if not line.startswith(("pip ", "make "))
    )
    shown = run(["sh", "-c", script], folder)
    assert "accuracy" in shown


@pytest.mark.thorough
def test_the_commands_and_lines_of_the_page_on_searches_run(tmp_path):
    """The first command on the tiny model with two seeds, and the Python block as it stands."""
    page = (ROOT / "docs" / "search.md").read_text()
    command, toml, code = re.findall(r"```(?:sh|toml|python)\n(.*?)```", page, flags=re.S)
    (tmp_path / "page.toml").write_text(OFFLINE + toml)
    words = shlex.split(command.replace("\\\n", " "))
    words[2], words[words.index("5")] = "page.toml", "2"
    done = run([sys.executable, "-m", "ffalora_jax.cli", *words[1:]], tmp_path)
    assert "seed by seed" in done
    assert "runs composed" in done
    shown = run([sys.executable, "-c", code], tmp_path)
    assert "test_accuracy" in shown


@pytest.mark.thorough
def test_the_quickstart_compares_three_runs(tmp_path):
    out = tmp_path / "demo"
    command = [
        sys.executable,
        str(ROOT / "experiments" / "quickstart.py"),
        "--model.name",
        "tiny",
        "--data.name",
        "synthetic",
        "--model.max-tokens",
        "16",
        "--rounds",
        "2",
        "--out",
        str(out),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "FFA-LoRA, no privacy" in done.stdout
    assert "plain LoRA (FedAvg), epsilon 6" in done.stdout
    assert "round 2/2  validation" in done.stderr
    page = (out / "report.html").read_text()
    assert "Privacy cost" in page
    assert {path.name for path in out.iterdir()} == {"private", "open", "plain_lora", "report.html"}
