"""Shelf of searches. To add one, add a file whose ``build`` returns waves of trials.

    build(search, space, rounds, seed, secret) -> Waves

A generator yields a wave, is sent the score of each of its trials, and yields the next one; the same
arguments and scores give the same waves, so a search that stopped is gone through again from its results.
"""

import itertools
import math
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax.config_search import Range, SearchConfig, Space


class Trial(NamedTuple):
    """One combination of settings."""

    number: int
    settings: dict[str, Any]


class Wave(NamedTuple):
    """Trials that may be computed side by side, and after how many rounds each is scored."""

    trials: list[Trial]
    rounds: int


Waves = Generator[Wave, list[float], None]
"""Sent back: scores in the order of the trials, higher is better, -inf of one that failed."""


def every_combination(space: Space) -> list[Trial]:
    """Returns the grid; the setting named last changes fastest."""
    lists = [values for values in space.values() if isinstance(values, list)]
    assert len(lists) == len(space), "a grid has no ranges"
    found = itertools.product(*lists)
    return [Trial(number, dict(zip(space, one, strict=True))) for number, one in enumerate(found)]


def sampled(space: Space, draw: np.random.Generator, count: int) -> list[Trial]:
    """Returns so many independent uniform draws (in the logarithm where a range says so)."""

    def one(values: Range | list[Any]) -> Any:
        if isinstance(values, Range):
            return values.at(draw.random())
        return values[int(draw.integers(len(values)))]

    return [
        Trial(number, {name: one(values) for name, values in space.items()})
        for number in range(count)
    ]


def rungs(search: SearchConfig, rounds: int) -> list[int]:
    """Returns the rounds after which successive halving chooses; the last ones are all."""
    done = [min(rounds, search.first_rounds or math.ceil(rounds / 9))]
    while done[-1] < rounds:
        done.append(min(rounds, math.ceil(done[-1] * search.keep)))
    return done


def size_of(space: Space) -> float:
    """Returns the number of combinations; infinite with a range."""
    if any(isinstance(values, Range) for values in space.values()):
        return float("inf")
    return float(np.prod([len(values) for values in space.values()]))
