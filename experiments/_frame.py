"""The frame of the fourteen experiments: a study, its command line, its runs, its file of results.

    STUDY --main--> searches in sweeps/results/NAME (resumable) --rows--> judge --> results/NN_NAME.json

``docs/results.md`` is made from those files by ``results_page``.
"""

import argparse
import importlib
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ffalora_jax as ffa
from experiments import _record
from experiments._verdicts import RATE, Judged, Row
from ffalora_jax import cli
from ffalora_jax.cache import write_atomically
from ffalora_jax.console import progress
from ffalora_jax.errors import InputError

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
ORDER = (
    *("table_1", "heterogeneity", "ranks", "alpha_and_rate", "inits", "freezing", "local_steps"),
    *("many_clients", "unequal_sites", "images", "next_token", "noise_amplification"),
    *("fedsvd_is_orthonormal_ffa", "sampler_truth"),
)
"""The modules, numbered from 1."""


class Ask(NamedTuple):
    """What one call of an experiment is to do."""

    size: str
    folder: Path
    seeds: int
    rounds: int | None
    """In place of the experiment's own, and one rate alone: to see whether it starts."""
    until: float
    settings: dict[str, Any]
    """Filled while it runs: what each search had in common."""

    @property
    def small(self) -> bool:
        """Whether it is the size for two cores."""
        return self.size == "small"

    def check(self) -> None:
        """Stops if the time is over.

        Raises:
            KeyboardInterrupt: it is.
        """
        if time.monotonic() > self.until:
            raise KeyboardInterrupt

    def tell(self, name: str, base: ffa.Experiment, over: dict[str, Any], **more: Any) -> None:
        """Notes what runs have in common, for the file of results."""
        self.settings[name] = _record.settings_of(base) | {"over": over, **more}

    def kept(self, name: str, make: Callable[[], list[Row]]) -> list[Row]:
        """Returns rows that a stopped call has left, or makes them: for what is no search."""
        file = self.folder / f"{name}-{self.rounds or 'all'}-rounds.json"
        if not file.is_file():
            self.check()
            write_atomically(file, json.dumps(make()))
        return json.loads(file.read_text())

    def length(self, experiment: ffa.Experiment) -> ffa.Experiment:
        """Returns the experiment with the rounds that were asked for."""
        if self.rounds is None:
            return experiment
        return experiment.replace(rounds=self.rounds, evaluate_every=self.rounds)


class Study(NamedTuple):
    """An experiment. What it says of itself stands in its module's docstring, and is read from there."""

    name: str
    doc: str
    seeds: tuple[int, int]
    """Of the small size and of the full one."""
    run: Callable[[Ask], list[Row]]
    judge: Callable[[list[Row]], Judged]

    @property
    def number(self) -> int:
        """Its place in the list."""
        return ORDER.index(self.name) + 1

    @property
    def file(self) -> str:
        """Name of its file of results."""
        return f"{self.number:02}_{self.name}.json"

    @property
    def title(self) -> str:
        """The first line."""
        return self.doc.splitlines()[0].rstrip(".")

    @property
    def source(self) -> str:
        """Whose claim it is, and where it stands."""
        return self._said(r"^Claim \((.*?)\):")

    @property
    def claim(self) -> str:
        """One sentence."""
        return self._said(r"^Claim \(.*?\):(.*?)^Run:")

    @property
    def command(self) -> str:
        """How it is run."""
        return self._said(r"^Run:(.*?)Time:")

    @property
    def budgets(self) -> tuple[str, str]:
        """Time of both sizes, stated beforehand."""
        return self._said(r"Time:(.*?); full:"), self._said(r"; full:(.*?)^Limits:")

    @property
    def limits(self) -> str:
        """What it cannot say, and what would change it."""
        return self._said(r"^Limits:(.*)\Z")

    def _said(self, pattern: str) -> str:
        found = re.search(pattern, self.doc, flags=re.S | re.M)
        if found is None:
            raise ValueError(f"The docstring of {self.name} has no part {pattern}")
        return " ".join(found[1].split())


def study_of(name: str) -> Study:
    """Returns an experiment by its module's name."""
    return importlib.import_module(f"experiments.{name}").STUDY


def record_of(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """Returns what was written down of an experiment; None if it was not run."""
    file = folder / study_of(name).file
    return json.loads(file.read_text()) if file.is_file() else None


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [list(head), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def searched(
    ask: Ask,
    name: str,
    base: ffa.Experiment,
    over: dict[str, list],
    data: Any = None,
    model: Any = None,
    **more: Any,
) -> list[Row]:
    """Runs one search of an experiment (or reads what is there), and returns its rows.

    Args:
        ask: what to do.
        name: of the search's folder; stands in every row as ``search``.
        base: what its runs have in common.
        over: what is varied.
        data: as in ``ffa.sweep``, or a function that makes it from the base.
        model: as in ``ffa.sweep``.
        more: further settings of the search.
    """
    base, path = ask.length(base), ask.folder / name
    if ask.rounds is not None and RATE in over:
        over = over | {RATE: over[RATE][:1]}
    ask.tell(name, base, over, **more)
    if callable(data):
        data, base = loaded(data, base), base.replace(**{"data.max_examples": None})
    search = {"over": over, "seeds": ask.seeds, **more}
    with progress(name) as show:

        def observe(event: Any) -> None:
            show(event)
            if event.rounds:  # between two runs: what was done is saved
                ask.check()

        found = ffa.sweep(base, search, data, model=model, out=path, observe=observe)
    return [{"search": name} | _record.condensed(row, over) for row in found.rows]


def loaded(make: Callable[[ffa.Experiment], Any], base: ffa.Experiment) -> Any:
    """Returns an experiment's data."""
    return make(base)


def main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Runs an experiment from its command line; returns an exit code."""
    options = _options(study, arguments)
    name = "full" if options.full else "small"
    folder = options.out or Path("sweeps", "results", f"{study.name}-{name}")
    folder.mkdir(parents=True, exist_ok=True)
    cli.use_jax()
    begin = time.monotonic()
    until = begin + 60 * options.minutes if options.minutes else math.inf
    ask = Ask(name, folder, options.seeds or study.seeds[options.full], options.rounds, until, {})
    try:
        rows = study.run(ask)
    except InputError as error:
        print(f"{study.name}: {error}", file=sys.stderr)
        return cli.BAD_INPUT
    except KeyboardInterrupt:
        minutes = _minutes(folder, begin)
        print(f"{study.name}: stopped after {minutes:.1f} minutes in all; the same command goes on")
        return cli.INTERRUPTED
    rows = json.loads(json.dumps(rows))  # judged as they will be read
    asked = {"size": name, "seeds": ask.seeds, "minutes": round(_minutes(folder, begin), 1)}
    record = {"number": study.number, "name": study.name, **asked}
    record |= _record.facts(rows, ask.settings) | _record.verdict_of(study.judge(rows))
    target = (options.results or (folder if options.rounds else RESULTS)) / study.file
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(_record.text_of(record))
    show(study, record)
    print(target)
    return cli.DONE


def _options(study: Study, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{study.name}")
    parser.description = f"{study.number}. {study.title}: {study.claim}"
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--small", action="store_true", help=f"the default; {study.budgets[0]}")
    sizes.add_argument("--full", action="store_true", help=study.budgets[1])
    parser.add_argument("--seeds", type=int, help="in place of the size's own")
    parser.add_argument("--rounds", type=int, help="fewer, and one rate: whether it starts")
    parser.add_argument("--minutes", type=float, help="stop after; the same command goes on")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument("--results", type=Path, help="folder of the file of results")
    return parser.parse_args(arguments)


def _minutes(folder: Path, begin: float) -> float:
    """Returns the minutes of all calls on this folder; those of this one are added to its file."""
    file = folder / "minutes.json"
    before = json.loads(file.read_text()) if file.is_file() else 0.0
    minutes = before + (time.monotonic() - begin) / 60
    file.write_text(json.dumps(minutes))
    return minutes


def show(study: Study, record: dict[str, Any]) -> None:
    """Prints verdict, parts and table."""
    print(f"\n{study.number}. {study.title}: {record['verdict'].upper()} ({study.claim})")
    for part in record["parts"]:
        print(
            f"  {part['verdict']:9} {part['asked']}: {_record.interval(part)}, claimed {part['rule']}"
        )
    for line in [record["head"], *record["table"]]:
        print("  " + " | ".join(f"{entry:>14}" for entry in line))
