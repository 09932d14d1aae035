"""The documents: every block runs or is listed with a reason, links lead somewhere, the site builds."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ffalora_jax import cli, registry
from ffalora_jax.errors import InputError
from tests.docs_pages import blocks_of, commands_of, follow, without_figures, words_of
from tests.test_docs import OFFLINE, write_what_readers_bring

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "_build" not in path.parts
)
RUN_ELSEWHERE = {"search.md": "test_docs.py"}
NOT_RUN = {
    "tutorial.md": ["installs into an environment", "fetches a model and data"],
    "howto/cluster.md": ["needs several machines"],
    "scaling.md": ["needs several machines"],
    "pilot.md": ["takes minutes"],
    "ja/pilot.md": ["takes minutes"],
}
"""Blocks that no test runs, by page, with how their reasons begin; their commands and options are checked."""
LONG = {"howto/privacy_choices.md", "howto/own_model.md", "howto/cluster.md", "scaling.md"}
"""Half a minute each: run by `make test-all`."""
FOLLOWED = [
    page
    for page in PAGES
    if page not in RUN_ELSEWHERE
    and any(b.kind and not b.not_run for b in blocks_of((DOCS / page).read_text()))
]
LINKING = [*PAGES, "../README.md", "../CONTRIBUTING.md", "../SECURITY.md", "../CHANGELOG.md"]
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)")
LLAMA_7B = """{"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": false}"""


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with what readers bring themselves, and a command ``ffalora``."""
    write_what_readers_bring(tmp_path)
    for name in ("answers.jsonl", "leaves.zip", "pairs.csv", "new_leaf.png"):
        (tmp_path / name).unlink()
    (tmp_path / "my.toml").write_text(OFFLINE.replace("readme", "my"))
    (tmp_path / "llama-7b").mkdir()
    (tmp_path / "llama-7b" / "config.json").write_text(LLAMA_7B)
    command = tmp_path / "bin" / "ffalora"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ffalora_jax.cli "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(
        "JAX_COMPILATION_CACHE_DIR", os.path.join(os.environ["FFALORA_CACHE"], "xla")
    )
    return tmp_path


@pytest.mark.thorough
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow if p in LONG else []) for p in FOLLOWED]
)
def test_every_block_of_a_page_runs_and_prints_what_is_shown(page, folder):
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs_pages", str(DOCS / page)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_only_block_without_a_language_is_a_formula():
    bare = [page for page in PAGES for block in blocks_of(text_of(page)) if not block.kind]
    assert bare == ["memory.md"]


def test_blocks_that_are_not_run_are_these():
    found = {
        page: [block.not_run for block in blocks_of(text_of(page)) if block.not_run]
        for page in PAGES
    }
    found = {page: reasons for page, reasons in found.items() if reasons}
    assert found.keys() == NOT_RUN.keys()
    for page, reasons in found.items():
        assert len(reasons) == len(NOT_RUN[page]), page
        for reason, begin in zip(reasons, NOT_RUN[page], strict=True):
            assert reason.startswith(begin)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists_and_has_the_options_that_are_shown(page):
    """Of blocks that are run and of those that are not."""
    for block in blocks_of(text_of(page)):
        for line in commands_of(block.text) if block.kind == "sh" else ():
            words = words_of(line)
            if "ffalora" not in words[:6] or "--command" in words:
                continue
            command, *rest = words[words.index("ffalora") + 1 :]
            assert command in cli.COMMANDS, line
            options = [word.partition("=")[0] for word in rest if word.startswith("--")]
            missing = [option for option in options if not is_option(command, option)]
            assert not missing, f"{line}: {missing}"


def is_option(command: str, option: str) -> bool:
    shown = help_of(command) + (help_of("run") if "SETTING VALUE" in help_of(command) else "")
    return re.search(rf"(?<![\w-]){re.escape(option)}\b", shown) is not None


def help_of(command: str, _kept: dict[str, str] = {}) -> str:  # noqa: B006
    if command not in _kept:
        done = subprocess.run(
            [sys.executable, "-m", "ffalora_jax.cli", command, "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        _kept[command] = done.stdout
    return _kept[command]


@pytest.mark.parametrize("page", PAGES)
def test_every_toml_block_is_toml(page):
    for block in blocks_of(text_of(page)):
        if block.kind == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("page", LINKING)
def test_relative_links_and_their_anchors_exist(page):
    file = (DOCS / page).resolve()
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in LINK.findall(text):
        if re.match(r"https?://[\w.-]+(/\S*)?$", target):
            continue
        assert not re.match(r"\w+:", target), f"{page}: {target}"
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        assert there.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors_of(there), f"{page}: {target}"


def anchors_of(file: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.S | re.M)
    heads = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_site_names_every_command_and_every_shelf():
    shown = re.findall(r"```\{help\} (\w+)", text_of("reference/commands.md"))
    assert shown == list(cli.COMMANDS)
    shelves = re.findall(r"```\{members\} (\w+)", text_of("reference/shelves.md"))
    assert sorted(shelves) == sorted(registry.SHELVES)


def test_the_reference_names_every_public_name():
    import ffalora_jax as ffa

    shown = re.findall(r"\.\. auto\w+:: ([\w.]+)", text_of("reference/python.md"))
    assert {name for name in shown if "." not in name} == set(ffa.__all__) - {"__version__", "plot"}
    assert ffa.plot.__name__ in shown


def test_the_reference_has_a_table_for_every_table_of_settings():
    import dataclasses

    from ffalora_jax.config import Experiment
    from ffalora_jax.experiment_file import settings

    kinds = [s.kind for s in settings(Experiment).values() if dataclasses.is_dataclass(s.kind)]
    wanted = {"Experiment", "SearchConfig", "PilotConfig", *(kind.__name__ for kind in kinds)}
    assert set(re.findall(r"```\{settings\} (\w+)", text_of("reference/settings.md"))) == wanted


def test_the_mathematics_of_every_method_has_a_section():
    heads = set(re.findall(r"^### (\w+)$", text_of("explanation/methods.md"), flags=re.M))
    assert heads == set(registry.members("methods"))


def test_every_mechanism_is_named_where_one_chooses():
    page = text_of("howto/privacy_choices.md")
    assert all(f"`{name}`" in page for name in registry.members("mechanisms"))


@pytest.mark.parametrize("page", ["index.md", "pilot.md"])
def test_japanese_pages_show_the_same_commands_as_the_english_ones(page):
    def commands(name):
        blocks = [block.text for block in blocks_of(text_of(name)) if block.kind == "sh"]
        return {word for text in blocks for word in words_of(text) if word.startswith("--")}

    assert commands(page) <= commands(f"ja/{page}") | {"--language"}


@pytest.mark.thorough
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_asks_no_other_server(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "-E", "-d", str(tmp_path / "doctrees"),
         str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (tmp_path / "html").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//", text)
    python = (tmp_path / "html" / "reference" / "python.html").read_text(encoding="utf-8")
    assert ">Type<" not in python, "a colon in an attribute's docstring was read as its type"
    assert "<math" in (tmp_path / "html" / "explanation" / "methods.html").read_text()


def test_a_page_that_shows_what_is_not_printed_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    follow("```python\nprint('accuracy 0.5')\n```\n\n```text\naccuracy 0.7\n```\n")
    with pytest.raises(AssertionError, match="shows"):
        follow("```python\nprint('accuracy 0.5')\n```\n\n```text\nepsilon 0.5\n```\n")


def test_a_page_whose_code_or_experiment_is_wrong_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NameError):
        follow("```python\nprint(nothing)\n```\n")
    with pytest.raises(InputError, match="epsilom"):
        follow("```toml\n[privacy]\nepsilom = 6\n```\n")
    with pytest.raises(AssertionError, match="ended with 2"):
        follow("```sh\nffalora list nothing\n```\n")
    with pytest.raises(AssertionError, match="say what it is"):
        follow("```ruby\nputs 1\n```\n")


def test_figures_alone_may_differ():
    assert without_figures("sent 34.9 kB  140 kB") == without_figures("sent 1 MB 2 kB")
    assert without_figures("epsilon 6.00") != without_figures("delta 6.00")
