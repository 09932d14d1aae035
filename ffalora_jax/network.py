"""Unequal sites: the machine, the link and the presence that each has.

All of it is public and drawn from the public seed. Units: GFLOP/s, Mbit/s (10^6 bits), seconds.
"""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffalora_jax import rng
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError

UNSET = {"speed": 100.0, "up": 100.0, "down": 100.0, "latency": 0.0, "loss": 0.0, "available": 1.0}
PRESETS = {
    "none": {},
    "three-sites": {"speed": "400, 100, 25", "up": "1000, 50, 5", "down": "1000, 200, 20"},
    "old-machines": {"speed": "loguniform 5 200", "up": "20", "down": "100"},
    "phones": {
        "speed": "loguniform 2 50",
        "up": "loguniform 1 20",
        "down": "loguniform 5 100",
        "latency": "50",
        "loss": "0.01",
        "available": "0.7",
    },
}
ORDER = (*UNSET, "local_steps", "rank", "batch_size")
"""Numbers of the draws: never changed, only added to."""


class Sites(NamedTuple):
    """What each site has; arrays (client,)."""

    speed: np.ndarray
    up: np.ndarray
    down: np.ndarray
    latency: np.ndarray
    """Seconds a message."""
    loss: np.ndarray
    available: np.ndarray
    """Probability of being there (round of the trace, client)."""
    local_steps: np.ndarray
    rank: np.ndarray
    batch_size: np.ndarray
    work: np.ndarray
    """Operations of a local step in units of the experiment's, as the batch."""


def sites_of(experiment: Experiment, names: tuple[str, ...]) -> Sites | None:
    """Returns every site's machine, link and presence; None where nothing is said about them.

    Raises:
        InputError: a value that is no number, list or distribution, or outside its bounds.
    """
    config, count = experiment.sites, len(names)
    if not config.is_set:
        return None
    preset = PRESETS[config.preset]
    limits = {
        "local_steps": experiment.local_steps,
        "rank": experiment.method.rank,
        "batch_size": experiment.batch_size,
    }
    found = {}
    for number, name in enumerate(ORDER):
        given = getattr(config, name)
        text = given or preset.get(name, "")
        if not text:
            found[name] = np.full(count, float(UNSET.get(name, limits.get(name, 0))))
            continue
        draw = rng.numpy_rng(experiment.seed, rng.Purpose.SITES, number)
        found[name] = _values(f"sites.{name}", text, count, draw, repeats=not given)
        _check(name, found[name], limits.get(name))
    present = found.pop("available")[None]
    if config.trace is not None:
        present = _trace(Path(config.trace), names)
    latency = found.pop("latency") / 1e3
    whole = {name: found.pop(name).astype(np.int32) for name in limits}
    work = whole["batch_size"] / experiment.batch_size
    return Sites(**found, latency=latency, available=present, **whole, work=work)


def _values(
    name: str, text: str, count: int, draw: np.random.Generator, repeats: bool
) -> np.ndarray:
    """Reads one number, one for each site, or a distribution."""
    words = text.replace(",", " ").split()
    try:
        if words[0] in ("uniform", "loguniform"):
            low, high = map(float, words[1:])
            if not 0 < low <= high:
                raise ValueError
            share = draw.random(count)
            if words[0] == "uniform":
                return low + (high - low) * share
            return np.exp(math.log(low) + math.log(high / low) * share)
        if words[0] == "choice":
            return draw.choice([float(word) for word in words[1:]], count)
        numbers = np.asarray([float(word) for word in words])
    except (ValueError, IndexError):
        raise InputError(
            f"Expected {name} to be a number, one for each of {count} sites, uniform LOW HIGH, loguniform "
            f"LOW HIGH or choice A B ...; got {text!r}."
        ) from None
    if len(numbers) == 1 or (repeats and len(numbers) != count):
        return np.resize(numbers, count)
    if len(numbers) != count:
        raise InputError(
            f"Expected one {name} or {count} of them, one for each site, got {len(numbers)}: {text!r}."
        )
    return numbers


def check_numbers(name: str, text: str, sites: int = 0) -> None:
    """Refuses what can be no setting of so many sites; of 0, their number is not known.

    Raises:
        InputError: no number, list or distribution, or outside its bounds.
    """
    count = sites or len(text.replace(",", " ").split())
    values = _values(name, text, count, rng.numpy_rng(0, rng.Purpose.SITES), repeats=not sites)
    _check(name.partition(".")[2], values, None)


def _check(name: str, values: np.ndarray, most: int | None) -> None:
    """Refuses a speed or a link of nothing, a share outside 0..1, more steps or rank than there are."""
    low, high = (float(values.min()), float(values.max()))
    if not np.isfinite(values).all():
        raise InputError(f"Expected finite numbers for sites.{name}, got {low:g} to {high:g}.")
    if name in ("speed", "up", "down") and low <= 0:
        raise InputError(
            f"Expected sites.{name} > 0, got {low:g}: over such a link or machine no round ends; a site "
            "that is never there has sites.available = 0."
        )
    if name == "latency" and low < 0:
        raise InputError(f"Expected sites.latency >= 0 milliseconds, got {low:g}.")
    if name == "loss" and not (low >= 0 and high < 1):
        raise InputError(f"Expected 0 <= sites.loss < 1, got {low:g} to {high:g}.")
    if name == "available" and not (low >= 0 and high <= 1):
        raise InputError(f"Expected 0 <= sites.available <= 1, got {low:g} to {high:g}.")
    if most is not None and not (low >= 1 and high <= most and (values == values.round()).all()):
        whole = "method.rank" if name == "rank" else name
        raise InputError(
            f"Expected whole numbers from 1 to {whole} = {most} for sites.{name}, got {low:g} to {high:g}."
        )


def _trace(path: Path, names: tuple[str, ...]) -> np.ndarray:
    """Reads presence by round: a column a site, a row a round."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise InputError(
            f"Cannot read sites.trace {str(path)!r} ({error}): expected a CSV with a column for each site."
        ) from None
    missing = [name for name in names if name not in header]
    if missing or not lines:
        what = f"no column for site {missing[0]!r}" if missing else "no row"
        raise InputError(
            f"sites.trace {str(path)!r} has {what}: expected a column for each of {len(names)} sites and a "
            "row for each round of the cycle."
        )
    places = [header.index(name) for name in names]
    try:
        found = np.asarray([[float(line[place]) for place in places] for line in lines if line])
    except (ValueError, IndexError):
        raise InputError(
            f"sites.trace {str(path)!r} holds something that is no probability: expected 0 to 1 everywhere."
        ) from None
    if not ((found >= 0) & (found <= 1)).all():
        raise InputError(f"Expected probabilities from 0 to 1 in sites.trace {str(path)!r}.")
    return found
