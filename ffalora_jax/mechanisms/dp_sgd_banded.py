"""Example-level DP-SGD with noise that later noise takes back in part (banded matrix factorisation).

The sums of a client's steps t = 0, 1, ... over the whole run, rounds and local steps alike, get noise
sigma C x_t with x = L^-1 z, z standard normal and L lower triangular, Toeplitz, with ``privacy.bands`` = b
diagonals of the norm one:

    x_t = (z_t - sum_{j=1}^{b-1} l_j x_{t-j}) / l_0,    l_j ~ (2j-1)!! / (2j)!!

the first b coefficients of the square root of the matrix of prefix sums, which SGD's path is made of. A
single step is noisier than plain DP-SGD's at the same sigma, their sum less.

Guarantee: an example may be drawn in one of b steps only, those of its group (its place among the client's
examples modulo b), so each example meets orthogonal columns of L and ceil(T / b) draws out of a group are
paid for: the truncated amplified event of Choquette-Choo et al. 2023 (arXiv:2306.08153, theorem 4). Adaptive:
z_t is fresh and L is lower triangular. Needs every client in every round.

Reference: Kalinin and Lampert 2024 (arXiv:2405.13763) for the banded square root.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ffalora_jax import accounting
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Correlated, Mechanism
from ffalora_jax.mechanisms._examples import example_level, example_plan
from ffalora_jax.mechanisms._noise import add_noise


def build(experiment: Experiment) -> Mechanism:
    """Returns it with the experiment's clip norm, expected batch size, bands and budget.

    Raises:
        InputError: clients that may be absent, fewer steps than bands, a schedule of clip norm or noise.
    """
    _check(experiment)
    settings, expected = experiment.privacy, experiment.batch_size
    plain, capacity = example_level(experiment), settings.capacity
    capacity = capacity or accounting.default_capacity(expected)
    first, *others = strategy(settings.bands)

    def begin(trained):
        return jax.tree.map(lambda leaf: jnp.zeros((len(others), *leaf.shape)), trained)

    def private_grad(key, total, noise_multiplier, before):
        zeros = jax.tree.map(jnp.zeros_like, total)
        fresh = add_noise(key, zeros, 1.0)
        weights = jnp.asarray(others, jnp.float32)
        noise = jax.tree.map(
            lambda z, past: (z - jnp.einsum("j,j...->...", weights, past)) / first, fresh, before
        )
        after = jax.tree.map(
            lambda x, past: jnp.concatenate([x[None], past[:-1]]) if others else past, noise, before
        )
        stddev = noise_multiplier * settings.clip_norm
        gradient = jax.tree.map(lambda leaf, x: (leaf + stddev * x) / expected, total, noise)
        return gradient, after

    def checked(sizes, schedule, multipliers=None):
        if schedule.client_steps is not None and set(schedule.client_steps) != {
            schedule.local_steps
        }:
            raise InputError(
                "Expected the same local steps at all sites with dp_sgd_banded, whose noise runs through "
                "them: leave sites.local_steps and sites.adapt out."
            )
        absent = experiment.cohort_size not in (None, len(sizes))
        if absent or experiment.cohort_sampling == "poisson":
            raise InputError(
                f"Expected every client in every round with dp_sgd_banded, got cohort_size "
                f"{experiment.cohort_size} of {len(sizes)}, {experiment.cohort_sampling}: its noise runs on "
                "from round to round. Leave cohort_size out, or take dp_sgd."
            )
        plan = example_plan(settings, expected, capacity, bands=settings.bands)
        return plan(sizes, schedule, multipliers)

    return plain._replace(
        plan=checked,
        private_grad=lambda key, total, sigma: private_grad(key, total, sigma, begin(total))[0],
        correlated=Correlated(settings.bands, begin, private_grad),
        statement=(
            f"{plain.statement} The noise of a step takes back a part of that of the {len(others)} before."
        ),
    )


def strategy(bands: int) -> np.ndarray:
    """Returns the diagonals of L: the first ``bands`` coefficients of (1 - x)^(-1/2), of norm one."""
    steps = np.arange(1, bands)
    coefficients = np.cumprod(np.concatenate([[1.0], (2 * steps - 1) / (2 * steps)]))
    return coefficients / np.linalg.norm(coefficients)


def _check(experiment: Experiment) -> None:
    settings, steps = experiment.privacy, experiment.rounds * experiment.local_steps
    if settings.bands > steps:
        raise InputError(
            f"Expected privacy.bands <= {steps}, the local steps of the whole run, got {settings.bands}: an "
            "example of a later group would never be drawn."
        )
    for name in ("clip_schedule", "noise_schedule"):
        if getattr(settings, name) != "constant":
            raise InputError(
                f"Expected privacy.{name} = 'constant' with dp_sgd_banded, got "
                f"{getattr(settings, name)!r}: all steps share one factorisation."
            )
    if experiment.sites.may_stay_away:
        raise InputError(
            "Expected sites that are always there with dp_sgd_banded, whose noise runs on from round to "
            "round: leave sites.available, trace, deadline and over_select out, or take dp_sgd."
        )
