"""``ffalora pilot --ask``: one question after another, each with an answer that Enter takes.

Answers become the flags that they stand for, so nothing can be answered that could not be given as well.
"""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from ffalora_jax.config_pilot import default_experiment
from ffalora_jax.data import csv as csv_files
from ffalora_jax.data._columns import codes
from ffalora_jax.data._files import files_of
from ffalora_jax.errors import InputError
from ffalora_jax.network import check_numbers

Read = Callable[[list[str]], tuple[Any, Any, str | None]]
"""Flags -> the experiment, what is asked of the pilot, the folder; raises InputError."""
Ask = Callable[[str], str]
"""A line to show -> the next one that is typed."""


class Question(NamedTuple):
    """What is asked, and the settings that the answer goes to."""

    words: str
    settings: tuple[str, ...]
    unset: str = "not known"
    """What it means where nothing is set."""


PATH = Question(
    "Your data: a CSV file, or a folder with one CSV for each site",
    ("data.path",),
    "the reviews of `make demo`",
)
COLUMNS = (
    Question("Column of the texts", ("data.text",)),
    Question("Column of the classes, numbers or words", ("data.label",)),
)
SITE = Question("Column that names each row's site", ("data.client",), "there is none")
COUNT = Question("Then rows are dealt out by chance: to how many sites", ("partition.num_clients",))
LAST = (
    Question(
        "Privacy: the epsilon that you would like to promise (smaller is safer: 1 strong, 6 weak)",
        ("privacy.epsilon",),
    ),
    Question(
        "What the sites' machines do, GFLOP/s (a PC without GPU 20 to 100): one number for all, or one each",
        ("sites.speed",),
    ),
    Question(
        "Their lines, Mbit/s: one number for all, or one each, in that order",
        ("sites.up", "sites.down"),
    ),
    Question("What a gigabyte sent or received costs a site", ("pilot.price_per_gb",)),
    Question("In which currency", ("pilot.currency",)),
    Question("How often a month the model is trained anew", ("pilot.trainings_per_month",)),
    Question("How many minutes the pilot may take", ("pilot.minutes",)),
    Question("Language of the page, en or ja", ("pilot.language",)),
)


def _typed(line: str) -> str:
    """Shows a line beside what is printed, and returns the next one that is typed."""
    print(line, end="", file=sys.stderr, flush=True)
    return input()


def asked(arguments: Sequence[str], read: Read, ask: Ask = _typed) -> list[str]:
    """Asks, and returns the arguments with the answers behind them.

    Args:
        arguments: what was given already; it is what Enter takes.
        read: checks an answer.
        ask: what shows a question and takes its answer.

    Raises:
        InputError: what was given already cannot be used, or the answers end before the questions do.
    """
    given, read = list(arguments), _once(read)
    _say(
        "Enter takes what stands in brackets. Ctrl-C ends; nothing is written before the last answer."
    )
    names: tuple[str, ...] = ()
    if read(given)[0].data.name in ("csv", default_experiment().data.name):
        given, names = _about_data(given, read, ask)
    if names:
        _say(f"{len(names)} sites, in this order: {', '.join(names)}.")
    for question in LAST:
        asked_so_far = read(given)[1]
        needless = {
            "pilot.currency": asked_so_far.price_per_gb is None,
            "pilot.minutes": asked_so_far.quick,
        }
        if not needless.get(question.settings[0]):
            ready = partial(_of_sites, question, len(names))
            given, _ = _answer(question, given, read, ask, ready)
    _say(f"The same without questions: {shlex.join(['ffalora', 'pilot', *given])}")
    return given


def _about_data(given: list[str], read: Read, ask: Ask) -> tuple[list[str], tuple[str, ...]]:
    """Returns the arguments with the answers, and the sites' names, where they have some."""
    given, _ = _answer(PATH, given, read, ask, _path)
    data = read(given)[0].data
    if data.path is None:
        return given, ()
    table, files = _columns(data.path), _files(data.path)
    _say(f"Its columns: {', '.join(table)}.")
    if data.name != "csv":
        given = [*given, "--data.name=csv"]
    for question in COLUMNS:
        given, _ = _answer(question, given, read, ask, partial(_column, table))
    if len(files) > 1:
        names = _sites_of(files, read(given)[0].data.client)
    else:
        if data.client not in (None, *table):
            given = [*given, "--data.client=None"]
        given, site = _answer(SITE, given, read, ask, partial(_column, table))
        if not site:
            return _answer(COUNT, [*given, "--partition.name=iid"], read, ask)[0], ()
        names = codes(table[site], site, str(files[0]))[1]
    is_natural = read(given)[0].partition.name == "natural"
    return given if is_natural else [*given, "--partition.name=natural"], names


def _answer(
    question: Question,
    given: list[str],
    read: Read,
    ask: Ask,
    ready: Callable[[str], str] = str,
) -> tuple[list[str], str]:
    """Asks until the answer can be used; returns the arguments with it, and the answer.

    ``ready`` makes an answer ready, or refuses it; so it does what Enter takes.
    """
    now = [str(_value(name, *read(given)[:2]) or "") for name in question.settings]
    shown = " and ".join(dict.fromkeys(now)) or question.unset
    while True:
        try:
            answer = ask(f"{question.words} [{shown}]: ").strip()
        except EOFError:
            raise InputError(
                f"The answers ended before the question {question.words!r}: give flags, or an experiment "
                "file, where nobody can be asked."
            ) from None
        try:
            if not answer:
                return given, ready(now[0]) if now[0] else ""
            answer = ready(answer)
            more = [*given, *(f"--{name.replace('_', '-')}={answer}" for name in question.settings)]
            read(more)
            return more, answer
        except InputError as error:
            _say(str(error))


def _path(answer: str) -> str:
    found = os.path.expanduser(answer.strip("\"'"))
    _columns(found)
    return found


def _column(table: dict[str, list], answer: str) -> str:
    if answer not in table:
        raise InputError(f"No column {answer!r}: choose from {', '.join(table)}.")
    return answer


def _of_sites(question: Question, count: int, answer: str) -> str:
    for name in question.settings:
        if name.startswith("sites."):
            check_numbers(name, answer, count)
    return answer


def _once(read: Read) -> Read:
    """Reads the same arguments once: each time takes a moment, and every question looks at them."""
    kept = cache(lambda given: read(list(given)))
    return lambda given: kept(tuple(given))


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _value(setting: str, experiment: Any, pilot: Any) -> Any:
    """Returns a setting's value now."""
    table, name = setting.split(".")
    return getattr(pilot if table == "pilot" else getattr(experiment, table), name)


def _columns(path: str) -> dict[str, list]:
    """Reads a CSV file, or a folder's first.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    files = _files(path)
    if not files or not files[0].is_file():
        raise InputError(f"Expected a CSV file, or a folder with some, got {path!r}.")
    try:
        table = csv_files.read(files[0])
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {str(files[0])!r}: {error}.") from None
    if not table:
        raise InputError(f"{str(files[0])!r} is empty: expected a header and rows.")
    return table


def _files(path: str) -> list[Path]:
    where = Path(path)
    return files_of(where, ".csv") if where.is_dir() else [where]


def _sites_of(files: list[Path], column: str | None) -> tuple[str, ...]:
    """Returns the sites in the order in which runs have them: one a file, or as a column says."""
    if column is None:
        return codes([file.stem for file in files], "file", str(files[0].parent))[1]
    each = [csv_files.read(file).get(column, []) for file in files]
    return codes([name for names in each for name in names], column, str(files[0].parent))[1]
