"""Shelf of trackers: where a run's figures go beside its folder. To add one, add a file with ``build``.

    build(path, settings) -> Writer

What is tracked is what ``metrics.jsonl`` has: part of it is not private (``privacy.json`` says which; with
``monitor.private`` it is left out).
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ffalora_jax import registry
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import flat_settings, load_experiment


class Writer(NamedTuple):
    """An open tracker."""

    log: Callable[[dict[str, float], int], None]
    """(figures by name, rounds that were made) -> nothing."""
    close: Callable[[], None]


@contextlib.contextmanager
def tracking(*names: str) -> Iterator[Callable[[Any], None]]:
    """Gives an observer for ``simulate``, ``resume`` that hands each round's figures to trackers.

    ``with ffa.tracking("tensorboard") as observe: ffa.simulate(experiment, observe=observe)``

    Raises:
        InputError: no tracker of that name, or its package is not installed.
    """
    makers = [registry.lookup("trackers", name) for name in names]
    for name in names:
        need(name)
    open_now: list[Writer] = []

    def observe(event: Any) -> None:
        if event.path is not None:
            while open_now:  # of the run before
                open_now.pop().close()
            experiment = load_experiment(event.path / "experiment.toml")
            settings = flat_settings(experiment)
            open_now.extend(make(event.path, settings) for make in makers)
        if event.line is not None:
            figures = numbers_of(event.line)
            for writer in open_now:
                writer.log(figures, event.rounds_done)

    try:
        yield observe
    finally:
        for writer in open_now:
            writer.close()


def identity(path: Path) -> str:
    """Returns what a run is known by: the same when it goes on, another of a new one in its place."""
    began = (path / "experiment.toml").stat().st_mtime_ns
    return hashlib.sha256(f"{path.absolute()} {began}".encode()).hexdigest()[:16]


def need(name: str) -> None:
    """Raises InputError unless a tracker's package is installed."""
    import importlib.util

    if ":" not in name and importlib.util.find_spec(name) is None:
        raise InputError(
            f"Tracking with {name} needs its package: pip install 'ffalora_jax[{name}]'."
        )


def numbers_of(line: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Returns the numbers of a line of metrics.jsonl, those of nested tables as ``table/name``."""
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            found |= numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[prefix + name] = float(value)
    found.pop("round_index", None)
    return found


def all_of(observers: Sequence[Callable[[Any], None]]) -> Callable[[Any], None]:
    """Returns an observer that tells several."""

    def observe(event: Any) -> None:
        for one in observers:
            one(event)

    return observe
