"""Gaussian noise on a tree, and how many rounds a budget pays for."""

import bisect

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ffalora_jax import accounting, rng
from ffalora_jax.config import PrivacyConfig
from ffalora_jax.mechanisms import Schedule
from ffalora_jax.types import Tree


def add_noise(key: Array, total: Tree, stddev: Float[Array, ""] | float) -> Tree:
    """Adds independent Gaussian noise to every entry of a sum, in float32.

    Guarantee: N(0, stddev^2) in every entry, each leaf from a key of its own. The Gaussian is a
    floating-point one: right for simulation, not a secure sampler (SECURITY.md).
    """
    leaves, structure = jax.tree.flatten(total)
    noised = list(leaves)
    # Leaves of one shape are drawn together: the same numbers, and the program stays small.
    for shape in dict.fromkeys(leaf.shape for leaf in leaves):
        places = [index for index, leaf in enumerate(leaves) if leaf.shape == shape]
        keys = jax.vmap(lambda index: rng.leaf(key, index))(jnp.asarray(places))
        drawn = jax.vmap(lambda one, shape=shape: jax.random.normal(one, shape, jnp.float32))(keys)
        for place, sample in zip(places, drawn, strict=True):
            noised[place] = leaves[place] + stddev * sample
    return jax.tree.unflatten(structure, noised)


def affordable_rounds(
    draw: accounting.Sampling,
    noise_multiplier: float,
    schedule: Schedule,
    steps_a_round: int,
    settings: PrivacyConfig,
) -> int:
    """Returns the most of the schedule's rounds that keep to the budget, by bisection."""
    if settings.budget is None:
        return schedule.rounds

    def spent(count):
        sums = schedule.sums(count, steps_a_round)
        return accounting.epsilon_of(draw, noise_multiplier, sums, settings.delta)

    return bisect.bisect_right(range(1, schedule.rounds + 1), settings.budget, key=spent)
