"""A page of the documents as a reader would follow it: its blocks, and a process that runs them in order.

    python -m tests.docs_pages docs/tutorial.md      in an empty folder, with the project on PYTHONPATH

What a block means: ``python`` is run, all of a page in one namespace; ``sh`` is run, ``ffalora`` in this
process where it can be; ``toml`` is an experiment (``# NAME.toml`` in its first line: written to that file);
``text`` are lines that the blocks since the last one printed, figures aside. An HTML comment above a block
says what is special: ``<!-- not run: REASON -->`` or ``<!-- exit 2 -->``.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

NOTE = re.compile(r"<!--\s*(.*?)\s*-->")
APART = ("--processes", "--mesh")
"""Options that must be read before JAX is in use."""
SHELL = re.compile(r"[|&;$`<]")


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    text: str
    not_run: str = ""
    code: int = 0


def blocks_of(page: str) -> list[Block]:
    """Returns the blocks of a page's text, those without a language too; directives of the site are none."""
    found, before, lines = [], "", iter(page.splitlines())
    for line in lines:
        if line.startswith("```"):
            inside = list(itertools.takewhile(lambda one: one.rstrip() != "```", lines))
            if re.fullmatch(r"\w*", kind := line[3:].strip()):
                found.append(_block(kind, "\n".join(inside) + "\n", before))
        before = line
    return found


def _block(kind: str, text: str, before: str) -> Block:
    said = NOTE.fullmatch(before)
    what, _, more = (said[1] if said else "").partition(" ")
    if what == "exit":
        return Block(kind, text, code=int(more))
    return Block(kind, text, more.removeprefix("run: ") if what == "not" else "")


def commands_of(text: str) -> list[str]:
    """Returns the command lines of a ``sh`` block, continued ones as one."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def words_of(line: str) -> list[str]:
    """Returns the words of a command line, its comment left out."""
    return shlex.split(line, comments=True)


def follow(page: str) -> None:
    """Runs a page's blocks in order.

    Raises:
        AssertionError: an exit code that the page does not name, or lines shown that nothing printed.
    """
    names: dict = {"__name__": "__page__"}
    printed = ""
    for number, block in enumerate(blocks_of(page), 1):
        where = f"block {number} ({block.kind})"
        if block.not_run or not block.kind:
            continue
        if block.kind == "text":
            _check_shown(block.text, printed, where)
            printed = ""
            continue
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            _run(block, names, where, shown)
        printed += shown.getvalue()


def _run(block: Block, names: dict, where: str, shown: io.StringIO) -> None:
    if block.kind == "python":
        exec(compile(block.text, where, "exec"), names)
    elif block.kind == "toml":
        _experiment(block.text, where)
    elif block.kind == "sh":
        for line in commands_of(block.text):
            code = _command(line, shown)
            said = shown.getvalue()[-2000:]
            assert code == block.code, (
                f"{where}: {line} ended with {code}, not {block.code}: {said}"
            )
    else:
        raise AssertionError(f"{where}: say what it is: python, sh, toml or text")


def _experiment(text: str, where: str) -> None:
    from ffalora_jax.config_pilot import load_pilot
    from ffalora_jax.config_search import load_search

    named = re.match(r"# (\S+\.toml)\n", text)
    file = Path(named[1] if named else "nameless.toml")
    file.write_text(text)
    load_pilot(file) if "[pilot]" in text else load_search(file)


def _command(line: str, shown: io.StringIO) -> int:
    words = words_of(line)
    if words[0] == "ffalora" and not SHELL.search(line) and not set(APART) & set(words):
        return _here(words[1:], shown)
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=False, timeout=500
    )
    shown.write(done.stdout + done.stderr)
    return done.returncode


def _here(words: list[str], shown: io.StringIO) -> int:
    from ffalora_jax import cli

    if ">" not in words:
        return cli.main(words)
    place = words.index(">")
    with open(words[place + 1], "w") as file, contextlib.redirect_stdout(file):
        return cli.main(words[:place])


def _check_shown(text: str, printed: str, where: str) -> None:
    there = {without_figures(line) for line in printed.splitlines()}
    whole = without_figures(" ".join(printed.split()))
    for line in filter(None, text.splitlines()):
        bare = without_figures(line)
        assert bare in there or bare in whole, (
            f"{where} shows {line!r}, printed was: {printed[-3000:]}"
        )


def without_figures(line: str) -> str:
    """Returns a line with single spaces and every figure, sign and unit of bytes aside."""
    line = re.sub(r"\b\d+(\.\d+)?(e[+-]?\d+)?\b( [kMG]B\b)?", "#", " ".join(line.split()))
    return re.sub(r"(# ?)+", "# ", line).strip()


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "250")
    follow(Path(sys.argv[1]).read_text(encoding="utf-8"))
