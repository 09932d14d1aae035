"""Unequal sites: machines, links and presence, and what a round takes in simulated seconds.

All of it is public and drawn from the public seed, so who is there and who is late depends on no example.
A round's clients are those of the draw that are there and in time; each pays for privacy as if it came to
every round. Units: GFLOP/s, Mbit/s (10^6 bits), seconds.
"""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffalora_jax import rng
from ffalora_jax.cohort import Presence
from ffalora_jax.compression import compression_of
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.messages import bytes_of
from ffalora_jax.methods import Method
from ffalora_jax.types import Adapters

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
ORDER = (*UNSET, "local_steps", "rank")
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


class Times(NamedTuple):
    """Simulated seconds of a round at each site; arrays (..., client)."""

    compute: np.ndarray
    upload: np.ndarray
    download: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """From the server's message to the arrival of the upload."""
        return self.compute + self.upload + self.download


def sites_of(experiment: Experiment, names: tuple[str, ...]) -> Sites | None:
    """Returns every site's machine, link and presence; None where nothing is said about them.

    Raises:
        InputError: a value that is no number, list or distribution, or outside its bounds.
    """
    config, count = experiment.sites, len(names)
    if not config.is_set:
        return None
    preset = PRESETS[config.preset]
    limits = {"local_steps": experiment.local_steps, "rank": experiment.method.rank}
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
    steps, rank = (found.pop(name).astype(np.int32) for name in ("local_steps", "rank"))
    return Sites(**found, latency=latency, available=present, local_steps=steps, rank=rank)


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
        whole = "local_steps" if name == "local_steps" else "method.rank"
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


def times_of(sites: Sites, flops_per_step: float, up, down) -> Times:
    """Returns the seconds of a round at each site.

    A message of b bytes takes latency + 8 b / (10^6 rate (1 - loss)); a step flops / speed.

    Args:
        sites: all of them.
        flops_per_step: operations of one local step.
        up: bytes that a site sends, a number or (..., client).
        down: bytes that it receives.
    """
    kept = 1e6 * (1 - sites.loss)
    return Times(
        compute=sites.local_steps * flops_per_step / (1e9 * sites.speed),
        upload=sites.latency + 8 * np.asarray(up) / (kept * sites.up),
        download=sites.latency + 8 * np.asarray(down) / (kept * sites.down),
    )


def in_time(sites: Sites, flops_per_step: float, up, down, deadline: float) -> Sites:
    """Returns the sites with as many local steps as each can finish, from 1 to its own number."""
    times = times_of(sites, flops_per_step, up, down)
    left = deadline - times.upload - times.download
    fits = np.floor(left * 1e9 * sites.speed / flops_per_step)
    steps = np.clip(fits, 1, sites.local_steps).astype(np.int32)
    return sites._replace(local_steps=steps)


def presence_of(
    experiment: Experiment,
    method: Method,
    sites: Sites,
    flops_per_step: float,
    adapters: Adapters,
    slots: int,
) -> tuple[Sites, Presence]:
    """Returns the sites, adapted to the deadline where that is asked for, and who is there and in time.

    Raises:
        InputError: ranks that the method cannot mix; a deadline that nobody can keep.
    """
    config, rank = experiment.sites, None
    if (sites.rank < experiment.method.rank).any():
        if not method.mixed_ranks:
            raise InputError(
                f"method.name {experiment.method.name!r} needs one rank at all sites, and sites.rank differs "
                "from method.rank: take hetlora, flexlora or flora, or leave sites.rank out."
            )
        rank = sites.rank
    rounds = _round_of_each_phase(method, experiment.rounds)
    form = compression_of(experiment.compression)
    if form is not None and rank is not None:
        raise InputError(
            "Expected compression = 'none' with sites.rank: a lower rank is the compression there."
        )
    both = experiment.optimizer.control_variates
    sizes = [bytes_of(method, adapters, slots, index, rank, form, both) for index in rounds]
    if config.adapt == "deadline":
        assert config.deadline is not None
        up, down = (np.asarray([size[way] for size in sizes]).max(0) for way in (0, 1))
        sites = in_time(sites, flops_per_step, up, down, config.deadline)
    least = len(method.local_parts)
    if (sites.local_steps < least).any():
        raise InputError(
            f"Expected at least {least} local steps at every site with method.name "
            f"{experiment.method.name!r}, got {int(sites.local_steps.min())}."
        )
    seconds = np.stack([times_of(sites, flops_per_step, up, down).total for up, down in sizes])
    deadline = math.inf if config.deadline is None else config.deadline
    if seconds.min() > deadline:
        raise InputError(
            f"No site can finish a round by sites.deadline = {deadline:g} s: the fastest takes "
            f"{seconds.min():.3g} s. Raise it, or set --sites.adapt deadline."
        )
    wanted = None  # who comes keeps nobody out: else one client more would move a sum by two
    if config.over_select > 1:
        wanted = experiment.cohort_size or len(sites.speed)
    facts = sites.available, config.sticky, seconds, method.phase_at, deadline, wanted
    return sites, Presence(*facts)


def own_numbers(
    sites: Sites | None, experiment: Experiment
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns the clients' own local steps and ranks, each None where all have the experiment's."""
    if sites is None:
        return None, None
    steps, rank = sites.local_steps, sites.rank
    return (
        steps if (steps < experiment.local_steps).any() else None,
        rank if (rank < experiment.method.rank).any() else None,
    )


def num_asked(experiment: Experiment, cohort_size: int, num_clients: int) -> int:
    """Returns how many clients are drawn for a round of which ``cohort_size`` are wanted."""
    return min(num_clients, math.ceil(cohort_size * experiment.sites.over_select))


def _round_of_each_phase(method: Method, rounds: int) -> list[int]:
    """Returns a late round of every phase, whose messages are those of the run once it goes."""
    last = {int(method.phase_at(index)): index for index in range(rounds)}
    return [last.get(phase, 0) for phase in range(len(method.parts))]
