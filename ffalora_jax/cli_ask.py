"""``ffalora pilot --ask``: one question after another, each with an answer that Enter takes.

Answers become the flags that they stand for, so nothing can be answered that could not be given as well.
"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ffalora_jax.data import csv as csv_files
from ffalora_jax.errors import InputError

Read = Callable[[list[str]], tuple[Any, Any, str | None]]
"""Flags -> the experiment, what is asked of the pilot, the folder; raises InputError."""


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
    Question("Privacy: the epsilon that you would like to promise", ("privacy.epsilon",)),
    Question(
        "What the sites' machines do, GFLOP/s: one number for all, or one each, by commas",
        ("sites.speed",),
    ),
    Question(
        "Their lines, Mbit/s: one number for all, or one each, by commas",
        ("sites.up", "sites.down"),
    ),
    Question("What a gigabyte sent or received costs a site", ("pilot.price_per_gb",)),
    Question("In which currency", ("pilot.currency",)),
    Question("How often a month the model is trained anew", ("pilot.trainings_per_month",)),
    Question("How many minutes the pilot may take", ("pilot.minutes",)),
    Question("Language of the page, en or ja", ("pilot.language",)),
)


def asked(arguments: Sequence[str], read: Read, ask: Callable[[str], str] = input) -> list[str]:
    """Asks, and returns the arguments with the answers behind them.

    Args:
        arguments: what was given already; it is what Enter takes.
        read: checks an answer.
        ask: shows a line and returns the next one that is typed.

    Raises:
        InputError: what was given already cannot be used, or the answers end before the questions do.
    """
    given = list(arguments)
    print(
        "Enter takes what stands in brackets. Ctrl-C ends; nothing is written before the last answer."
    )
    given, path = _answer(PATH, given, read, ask)
    if path:
        given.append("--data.name=csv")
        given = _about_columns(path, given, read, ask)
    for question in LAST:
        if question.settings != ("pilot.currency",) or read(given)[1].price_per_gb is not None:
            given, _ = _answer(question, given, read, ask)
    print(f"The same without questions: {shlex.join(['ffalora', 'pilot', *given])}")
    return given


def _about_columns(path: str, given: list[str], read: Read, ask: Callable) -> list[str]:
    known = columns_of(path)
    print(f"Its columns: {', '.join(known)}.")
    for question in COLUMNS:
        given, _ = _answer(question, given, read, ask, known)
    if Path(path).is_dir():
        return given
    given, site = _answer(SITE, given, read, ask, known)
    if site or read(given)[0].data.client:
        return given
    return _answer(COUNT, [*given, "--partition.name=iid"], read, ask)[0]


def _answer(
    question: Question, given: list[str], read: Read, ask: Callable, known: Sequence[str] = ()
) -> tuple[list[str], str]:
    """Asks until the answer can be used; returns the arguments with it, and the answer."""
    shown = _value(question.settings[0], *read(given)[:2])
    default = question.unset if shown in (None, "") else shown
    while True:
        try:
            answer = ask(f"{question.words} [{default}]: ").strip()
        except EOFError:
            raise InputError(
                f"The answers ended before the question {question.words!r}: give flags, or an experiment "
                "file, where nobody can be asked."
            ) from None
        if not answer:
            if not known or shown in (None, "", *known):
                return given, ""
            answer = str(shown)
        try:
            if known and answer not in known:  # so is what Enter takes
                raise InputError(f"No column {answer!r}: choose from {', '.join(known)}.")
            if question is PATH:
                columns_of(answer)
            more = [*given, *(f"--{_flag(name)}={answer}" for name in question.settings)]
            read(more)
            return more, answer
        except InputError as error:
            print(error)


def _value(setting: str, experiment: Any, pilot: Any) -> Any:
    """Returns a setting's value now."""
    table, name = setting.split(".")
    return getattr(pilot if table == "pilot" else getattr(experiment, table), name)


def _flag(setting: str) -> str:
    return setting.replace("_", "-")


def columns_of(path: str) -> list[str]:
    """Returns the columns of a CSV file, or of a folder's first.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    where = Path(path)
    files = sorted(where.glob("*.csv")) if where.is_dir() else [where]
    if not files or not files[0].is_file():
        raise InputError(f"Expected a CSV file, or a folder with some, got {path!r}.")
    try:
        return list(csv_files.read(files[0]))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {str(files[0])!r}: {error}.") from None
