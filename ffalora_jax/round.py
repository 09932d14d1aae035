"""One federated round, compiled once: vmap of the clients in chunks, then one mean (Sun et al. 2024, alg. 1).

``(keys, state, frozen, data, plan, num_rounds) -> (state, info)``: several rounds run in one call, so the
host is not in the loop; how many is a value, not a shape, so nothing compiles again.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, UInt32

from ffalora_jax import adapters as leaves
from ffalora_jax import rng
from ffalora_jax.aggregation import mean_upload
from ffalora_jax.client import ClientFacts, Frozen, Participant
from ffalora_jax.cohort import Batch, ClientData, Cohort, cohort_capacity, draw_cohort
from ffalora_jax.methods import Method
from ffalora_jax.types import Adapters, Leaf, Tree


@struct.dataclass
class RoundState:
    """What the next round needs, and nothing else."""

    adapters: Adapters
    """The server's trained leaves."""
    personal: Tree
    """Leaves that stay at their client, with a leading axis of all clients."""
    round_index: Leaf
    """0-based, int32 scalar."""


class Keys(NamedTuple):
    """Roots of the two kinds of randomness; see ``rng``."""

    public: Array
    secret: Array


class ClientNumbers(NamedTuple):
    """The plan's per-client numbers as arrays (client,)."""

    threshold: UInt32[Array, " client"]
    """Probability of an example in a draw, in units of 2^-32 (``cohort.threshold``)."""
    noise_multiplier: Float[Array, " client"]


class RoundInfo(NamedTuple):
    """What a round tells the host; leading axis: rounds of the call."""

    took_part: Bool[Array, "*round client"]
    update_norm: Float[Array, "*round"]
    """L2 norm of the mean update."""
    facts: ClientFacts
    """Per client (client,), zero where it did not take part. Not private."""


class RoundSettings(NamedTuple):
    """Static facts of a round."""

    num_clients: int
    cohort_size: int
    cohort_sampling: str
    chunk: int
    weighted: bool
    rounds_per_call: int


def make_round(local_update: Callable, method: Method, settings: RoundSettings) -> Callable:
    """Builds the pure function of one round.

    ``round_step(keys, state, frozen, data, numbers, batches=None, cohort=None) -> (state, info)``;
    ``batches`` (cohort slot, step, slot) and ``cohort`` replace the draws.
    """
    slots = cohort_capacity(settings.num_clients, settings.cohort_size, settings.cohort_sampling)

    def round_step(
        keys: Keys,
        state: RoundState,
        frozen: Frozen,
        data: ClientData,
        numbers: ClientNumbers,
        batches: Batch | None = None,
        cohort: Cohort | None = None,
    ) -> tuple[RoundState, RoundInfo]:
        if cohort is None:
            cohort = draw_cohort(
                rng.stream(keys.public, rng.Purpose.COHORT, state.round_index),
                settings.num_clients,
                settings.cohort_size,
                settings.cohort_sampling,
                slots,
            )
        clients = cohort.clients
        starts = leaves.merge(
            leaves.stack(state.adapters, clients.shape[0]),
            jax.tree.map(lambda leaf: leaf[clients], state.personal),
        )
        everyone = Participant(
            clients,
            starts,
            numbers.threshold[clients],
            numbers.noise_multiplier[clients],
            batches,
        )

        shared = keys.secret, state.round_index, frozen, data
        ends, facts = over_clients(local_update, shared, everyone, settings.chunk)
        sent = leaves.select(ends, leaves.names(state.adapters))
        send = jax.vmap(method.upload, in_axes=(None, 0), axis_size=clients.shape[0])
        uploads = send(state.adapters, sent)
        weights = data.sizes[clients].astype(jnp.float32) if settings.weighted else None
        nothing = method.upload(state.adapters, state.adapters)
        mean = mean_upload(uploads, cohort.is_real, weights, fallback=nothing)
        after = method.read(
            state.adapters, mean, *_of_those_there(uploads, nothing, weights, cohort)
        )
        personal = _keep(state.personal, ends, cohort)
        change = jax.tree.map(jnp.subtract, after, state.adapters)
        info = RoundInfo(
            took_part=jnp.zeros(settings.num_clients, bool).at[clients].max(cohort.is_real),
            update_norm=optax.tree.norm(change) if change else jnp.float32(0),
            facts=jax.tree.map(lambda leaf: _by_client(leaf, cohort, settings.num_clients), facts),
        )
        return RoundState(after, personal, state.round_index + 1), info

    return round_step


def over_clients(local_update: Callable, shared: tuple, participants: Participant, chunk: int):
    """Runs ``chunk`` clients at once by ``jax.vmap``, the chunks one after another; same numbers.

    A chunk of one runs without a batch axis: under ``vmap`` a ``switch`` computes all its branches.
    """
    one_client = partial(local_update, *shared)
    if chunk == 1:
        return jax.lax.map(one_client, participants)
    count = participants.client.shape[0]
    if chunk >= count:
        return jax.vmap(one_client)(participants)
    return jax.lax.map(one_client, participants, batch_size=chunk)


def make_rounds(round_step: Callable, settings: RoundSettings) -> Callable:
    """Returns the jitted ``(keys, state, frozen, data, numbers, num_rounds) -> (state, infos)``.

    Up to ``settings.rounds_per_call`` rounds by ``lax.scan``; rounds from ``num_rounds`` on are skipped,
    so a last, shorter call is the same program.
    """

    @jax.jit
    def run_rounds(keys, state, frozen, data, numbers, num_rounds):
        def one(state):
            return round_step(keys, state, frozen, data, numbers)

        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, state)[1]
        )

        def body(state, index):
            return jax.lax.cond(index < num_rounds, one, lambda state: (state, nothing), state)

        return jax.lax.scan(body, state, jnp.arange(settings.rounds_per_call))

    return run_rounds


def _of_those_there(uploads: Tree, nothing: Tree, weights: Array | None, cohort: Cohort):
    """Returns (uploads, weights) in which a slot without a client changes nothing and weighs nothing."""

    def masked(leaf, own):
        is_real = cohort.is_real.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.where(is_real, leaf, own[None])

    ones = jnp.ones(cohort.clients.shape[0]) if weights is None else weights
    return jax.tree.map(masked, uploads, nothing), jnp.where(cohort.is_real, ones, 0.0)


def _keep(personal: Tree, ends: Adapters, cohort: Cohort) -> Tree:
    """Writes the cohort's personal leaves back; empty slots write nowhere."""
    count = next((leaf.shape[0] for leaf in jax.tree.leaves(personal)), 0)
    places = jnp.where(cohort.is_real, cohort.clients, count)
    mine = leaves.select(ends, leaves.names(personal))
    return jax.tree.map(lambda all_, new: all_.at[places].set(new, mode="drop"), personal, mine)


def _by_client(leaf: Array, cohort: Cohort, num_clients: int) -> Array:
    places = jnp.where(cohort.is_real, cohort.clients, num_clients)
    return jnp.zeros((num_clients, *leaf.shape[1:]), leaf.dtype).at[places].set(leaf, mode="drop")
