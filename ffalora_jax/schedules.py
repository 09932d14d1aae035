"""Factors by round on the learning rate, the clip norm and the noise, from a line of text.

A schedule multiplies a setting: it is 1 where nothing is scheduled. What is read here is a tuple of numbers,
public and known before the first round, so the plan can price it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError, nearest
from ffalora_jax.types import Leaf

FORMS = "constant, linear TO, cosine TO, exponential TO, steps ROUND:FACTOR ..., warmup ROUNDS [then ...]"
MOST_NOISE_LEVELS = 8
"""Different noises that a run is priced with: each takes a distribution of its own."""


class Rates(NamedTuple):
    """What a round multiplies the settings with; leaves (round,), the last of which stays."""

    learning_rate: Leaf
    clip_norm: Leaf
    noise: Leaf
    """On the noise multiplier: the noise in units of the clip norm of that round."""

    def at(self, round_index) -> "Rates":
        """Returns the factors of one round, traced or not."""
        last = self.noise.shape[0] - 1
        return Rates(*(leaf[jnp.minimum(round_index, last)] for leaf in self))


def read(name: str, text: str, rounds: int) -> tuple[float, ...]:
    """Returns the factor of every round.

    Args:
        name: of the setting, for errors.
        text: one of ``FORMS``; TO is the factor of the last round.
        rounds: over which it runs.

    Raises:
        InputError: another form, or a factor that is not positive.
    """
    first, _, then = text.partition(" then ")
    words = first.split()
    try:
        if words and words[0] == "warmup":
            (warm,) = map(int, words[1:])
            after = read(name, then or "constant", max(1, rounds - warm))
            values = [(index + 1) / (warm + 1) for index in range(warm)] + list(after)
        elif then:
            raise ValueError
        else:
            schedule = _optax_schedule(words, rounds)
            values = [float(schedule(index)) for index in range(rounds)]
    except (ValueError, KeyError, IndexError):
        raise InputError(
            f"Expected {name} to be one of: {FORMS}; got {text!r}."
            + nearest(
                words[0] if words else "",
                ["constant", "linear", "cosine", "exponential", "steps", "warmup"],
            )
        ) from None
    values = values[:rounds]
    if not np.isfinite(values).all() or min(values) <= 0:
        raise InputError(
            f"Expected factors above 0 from {name} = {text!r}, got {min(values):g}: a round that neither "
            "trains nor bounds anything would still be paid for."
        )
    return tuple(values)


def _optax_schedule(words: list[str], rounds: int) -> Callable[[int], float]:
    kind, last = words[0], max(1, rounds - 1)
    if kind == "steps":
        parts = [re.fullmatch(r"(\d+):([0-9.eE+-]+)", word) for word in words[1:]]
        if not parts or not all(parts):
            raise ValueError
        at = {int(part[1]): float(part[2]) for part in parts if part}
        return lambda index: next((at[r] for r in sorted(at, reverse=True) if r <= index), 1.0)
    (to,) = map(float, words[1:]) if kind != "constant" else (1.0,)
    if len(words) > 2 or (kind == "constant" and len(words) > 1):
        raise ValueError
    made = {
        "constant": lambda: optax.constant_schedule(1.0),
        "linear": lambda: optax.linear_schedule(1.0, to, last),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, last, to),
        "exponential": lambda: optax.exponential_decay(1.0, last, to),
    }[kind]()
    return lambda index: float(np.asarray(made(index)))


def in_levels(factors: tuple[float, ...], most: int = MOST_NOISE_LEVELS) -> tuple[float, ...]:
    """Returns the factors with at most so many different values: means over stretches of rounds."""
    if len(set(factors)) <= most:
        return factors
    stretches = np.array_split(np.asarray(factors), most)
    return tuple(float(value) for part in stretches for value in np.full(len(part), part.mean()))


def rates_of(experiment: Experiment) -> Rates | None:
    """Returns the experiment's schedules; None where none is set.

    Raises:
        InputError: one that cannot be read, or of noise where there is none.
    """
    options, privacy = experiment.optimizer, experiment.privacy
    texts = {
        "optimizer.schedule": options.schedule,
        "privacy.clip_schedule": privacy.clip_schedule,
        "privacy.noise_schedule": privacy.noise_schedule,
    }
    if set(texts.values()) == {"constant"}:
        return None
    for name in list(texts)[1:]:
        if texts[name] != "constant" and not privacy.is_private:
            raise InputError(
                f"Expected {name} = 'constant' without privacy, got {texts[name]!r}: nothing is clipped or "
                "noised; take another privacy.mechanism."
            )
    rounds = experiment.schedule_rounds or experiment.rounds
    rate, clip, noise = (read(name, text, rounds) for name, text in texts.items())
    return Rates(*(np.asarray(factors, np.float32) for factors in (rate, clip, in_levels(noise))))
