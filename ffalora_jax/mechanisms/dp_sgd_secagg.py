"""DP-SGD whose noise is split over the clients, under secure aggregation (Bonawitz et al. 2017).

One local step a round. A client clips every example to C, rounds its sum to a grid of step g, adds its share
of the noise, rounds again and sends integers under masks that cancel in the sum modulo 2^32:

    u_k = round((sum_i clip(g_i) + n_k) / g) + r_k - r_next(k),   n_k ~ N(0, z^2 (C + g sqrt(d))^2 / (h m))

Of m clients at least a share h adds its noise honestly: together z (C + g sqrt(d)), the sum's sensitivity
with the rounding in it (d numbers). Against a server that sees sums alone this is as private as noise z at
every client, with sqrt(h m) times less of it in the model. The single upload is not private, so nothing may
be computed from it, and with a second local step a client would go on from a state with too little noise.
"""

import math

import jax
import jax.numpy as jnp

from ffalora_jax import accounting
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.mechanisms._examples import example_plan
from ffalora_jax.mechanisms._noise import add_noise

LARGEST_SUM = 2**21
"""Grid steps that a client's clipped sum may take: float32 still tells them apart in updated weights."""
LARGEST_TOTAL = 2**30
"""Grid steps of all clients' sums together: the noise has as much room again before 32 bits wrap around."""


def build(experiment: Experiment) -> Mechanism:
    """Returns it for the experiment's clip norm, expected batch, budget, cohort and honest share.

    Raises:
        InputError: more than one local step, an optimiser with a memory, weights, clients that may not come.
    """
    settings, expected = experiment.privacy, experiment.batch_size
    capacity = settings.capacity or accounting.default_capacity(expected)
    clients = experiment.cohort_size or 1
    _check(experiment)
    grid = grid_of(settings.clip_norm, capacity, clients)
    unit = experiment.optimizer.learning_rate * grid / expected
    share = 1 / math.sqrt(settings.honest_share * clients)

    def private_grad(key, total, noise_multiplier):
        count = sum(leaf.size for leaf in jax.tree.leaves(total))
        sensitivity = settings.clip_norm + grid * math.sqrt(count)
        on_grid = jax.tree.map(lambda leaf: jnp.round(leaf / grid), total)
        noised = add_noise(key, on_grid, noise_multiplier * sensitivity * share / grid)
        return jax.tree.map(lambda leaf: jnp.round(leaf) * (grid / expected), noised)

    def private_update(moved, factor):
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(moved)))
        return jax.tree.map(lambda leaf: _as_words(jnp.round(leaf / unit)), moved), norm

    def private_total(key, total, noise_multiplier, clients):
        signed = jax.tree.map(lambda leaf: jax.lax.bitcast_convert_type(leaf, jnp.int32), total)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) * (unit / clients), signed)

    return Mechanism(
        example_plan(settings, expected, capacity, common=True),
        private_grad,
        clip_norm=settings.clip_norm,
        statement=(
            "Every single training example at a client is protected: whoever sees the sums over the "
            "round's clients, and the models made of them, learns only a bounded amount (epsilon) about "
            "whether that example was there."
        ),
        trust_model=(
            f"an honest-but-curious server that sees sums alone, together with up to "
            f"{100 * (1 - settings.honest_share):.0f} % of a round's clients; secure aggregation is trusted "
            "to hide the single upload, and each client with its own data"
        ),
        private_update=private_update,
        private_total=private_total,
        sums_integers=True,
    )


def _as_words(leaf: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(leaf.astype(jnp.int32), jnp.uint32)


def grid_of(clip_norm: float, capacity: int, clients: int) -> float:
    """Returns the step of the grid: clip_norm / 2^k, as fine as 32 bits allow for so many clients."""
    largest = min(LARGEST_SUM, LARGEST_TOTAL / clients)
    return clip_norm / 2 ** math.floor(math.log2(largest / capacity))


def _check(experiment: Experiment) -> None:
    name, optimizer, sites = "dp_sgd_secagg", experiment.optimizer, experiment.sites
    wrong = [
        (
            experiment.local_steps != 1,
            f"local_steps = 1 under {name}",
            experiment.local_steps,
            "a later step would go on from a state with a client's share of the noise alone",
        ),
        (
            optimizer.name != "sgd"
            or optimizer.options
            or optimizer.schedule != "constant"
            or experiment.privacy.clip_schedule != "constant",
            f"plain sgd with a constant rate and clip norm under {name}",
            optimizer.name,
            "uploads are integers on one grid",
        ),
        (
            experiment.weights != "uniform",
            f"weights = 'uniform' under {name}",
            experiment.weights,
            "weights change the sensitivity",
        ),
        (
            experiment.cohort_sampling != "fixed",
            f"cohort_sampling = 'fixed' under {name}",
            experiment.cohort_sampling,
            "the noise is split over a known number of clients",
        ),
        (
            experiment.model.head == "personal",
            f"model.head trained or frozen under {name}",
            "personal",
            "what stays at a client would have its share of the noise alone",
        ),
        (
            bool(sites.batch_size),
            f"one batch size at all sites under {name}",
            sites.batch_size,
            "sums are divided once, for all",
        ),
        (
            sites.may_stay_away,
            f"all sites present under {name}",
            "sites that may not come",
            "lost clients are lost noise; privacy.honest_share is what may be missing",
        ),
    ]
    for is_wrong, wanted, found, why in wrong:
        if is_wrong:
            raise InputError(f"Expected {wanted}, got {found!r}: {why}.")
