"""A clip norm that follows a quantile of the norms, with a noised count to follow (Andrew et al. 2021).

Reference: arXiv:1905.03871, algorithm 1 and theorem 1. Let b be the sum over the units of a draw of +1/2 for
each that was within the norm and -1/2 for each that was cut, and s its noise:

    share = (b + N(0, s^2)) / expected + 1/2,     C <- C exp(-rate (share - quantile))

A unit moves b by 1/2 at most, so both sums together cost what one sum of noise z does if the other gets
z_delta = (z^-2 - (2 s)^-2)^(-1/2).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ffalora_jax.config import PrivacyConfig
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Mechanism, Plan

COUNT_NOISE = 20
"""Expected units of a draw per unit of the count's noise."""


def following(mechanism: Mechanism, settings: PrivacyConfig, expected: int) -> Mechanism:
    """Returns a mechanism whose clip norm follows a quantile, the count that this takes paid inside its plan.

    Args:
        mechanism: with a clip norm that stays.
        settings: quantile, rate and noise of the count.
        expected: units of a draw: examples of a step, or clients of a round.
    """
    stddev = count_noise(settings, expected)

    def adapt(key, factor, centred):
        return next_factor(key, factor, centred, expected, settings, stddev)

    return mechanism._replace(
        plan=checked(mechanism.plan, settings, stddev),
        statement=f"{mechanism.statement} The clip norms that are given out are covered too.",
        adapt=adapt,
        beside_count=lambda noise_multiplier: remaining(noise_multiplier, stddev),
    )


def count_noise(settings: PrivacyConfig, expected: int) -> float:
    """Returns the stddev of the noise on the count."""
    return settings.count_noise or max(1.0, expected / COUNT_NOISE)


def remaining(noise_multiplier, stddev: float):
    """Returns the noise multiplier that is left for the sum beside the count's: z_delta."""
    return (noise_multiplier**-2.0 - (2 * stddev) ** -2.0) ** -0.5


def next_factor(
    key: Array,
    factor: Float[Array, ""],
    centred: Float[Array, ""],
    expected: float,
    settings: PrivacyConfig,
    stddev: float,
) -> Float[Array, ""]:
    """Returns the next clip norm in units of the first one, from the noised count of this draw.

    Guarantee: depends on the data through ``centred`` alone, whose sensitivity is 1/2 and whose noise is
    ``stddev``; never passes 10^-6..10^6 of the norm that was set.
    """
    noised = centred + stddev * jax.random.normal(key, (), jnp.float32)
    share = noised / expected + 0.5
    moved = factor * jnp.exp(-settings.clip_learning_rate * (share - settings.target_quantile))
    return jnp.clip(moved, 1e-6, 1e6)


def checked(
    plan: Callable[..., Plan], settings: PrivacyConfig, stddev: float
) -> Callable[..., Plan]:
    """Returns ``Mechanism.plan`` that refuses what leaves no noise for the count.

    Raises:
        InputError: the count's noise alone spends more than the plan has; a schedule of the clip norm.
    """

    def checked_plan(sizes, schedule, multipliers=None):
        if settings.clip_schedule != "constant":
            raise InputError(
                f"Expected privacy.clip_schedule = 'constant' with an adaptive clip norm, got "
                f"{settings.clip_schedule!r}: the norm follows the data's quantile."
            )
        made = plan(sizes, schedule, multipliers)
        own = set(schedule.client_batches or ()) - {schedule.batch_size}
        if made.unit == "example" and own:
            raise InputError(
                f"Expected one batch size at all sites with an adaptive clip norm, got {min(own)} beside "
                f"{schedule.batch_size}: the count is read as a share of the experiment's batch."
            )
        most = max(client.noise_multiplier for client in made.clients) * max(schedule.noise)
        if not most < 2 * stddev:
            raise InputError(
                f"Expected privacy.count_noise > {most / 2:.3g}, half the noise multiplier, got "
                f"{stddev:.3g}: the count of clipped ones would cost more than the whole budget."
            )
        return made

    return checked_plan
