"""What becomes of uploads between a client and the server, and of the clip norm between two rounds.

Comes after ``client`` and ``server``, and before ``round``: compressed, bounded, masked, in this order, each
only where the run has it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ffalora_jax import rng
from ffalora_jax.aggregation import masked
from ffalora_jax.client import ClientFacts, Frozen
from ffalora_jax.compression import compressed
from ffalora_jax.server import Server
from ffalora_jax.types import Tree


def on_the_way(
    server: Server,
    secret: Array,
    round_index: Array,
    clients: Array,
    uploads: Tree,
    nothing: Tree,
    bound_factor: float | Array,
    around: tuple[Array, Array] | None,
) -> tuple[Tree, Array | None]:
    """Returns what arrives of stacked uploads, and their norms where a mechanism bounds them.

    Args:
        server: says what is done to them.
        secret: root key.
        round_index: of the round.
        clients: who sent them (client,).
        uploads: leaves (client, ...).
        nothing: what a client that moved nothing sends.
        bound_factor: on the clip norm of updates.
        around: each client's place and the next one's, where uploads are masked.
    """
    norms = None
    if server.compression is not None:
        keys = jax.vmap(
            lambda client: rng.stream(secret, rng.Purpose.COMPRESSION, round_index, client)
        )(clients)
        shrunk = partial(compressed, server.compression)
        uploads = jax.vmap(shrunk, in_axes=(0, 0, None))(keys, uploads, nothing)
    if server.mechanism is not None and server.mechanism.private_update is not None:
        moved = uploads
        if not server.mechanism.sums_integers:  # else they are that already
            moved = jax.tree.map(lambda leaf, own: leaf - own[None], uploads, nothing)
        bounded = jax.vmap(server.mechanism.private_update, in_axes=(0, None))
        uploads, norms = bounded(moved, bound_factor)
        if server.mechanism.sums_integers:
            assert around is not None
            key = rng.stream(secret, rng.Purpose.MASK, round_index)
            uploads = jax.vmap(masked, in_axes=(None, 0, 0, 0))(key, uploads, *around)
    return uploads, norms


def clip_factor(frozen: Frozen, round_index: Array) -> float | Array:
    """Returns what the clip norm that was set is multiplied with in a round."""
    factor = 1.0 if frozen.rates is None else frozen.rates.at(round_index).clip_norm
    return factor if frozen.clip_factor is None else factor * frozen.clip_factor


def noise_factor(frozen: Frozen, round_index: Array) -> tuple[float | Array, float | Array]:
    """Returns what a sum's noise is multiplied with: the noise multiplier, and its clip norm."""
    noise = 1.0 if frozen.rates is None else frozen.rates.at(round_index).noise
    return noise, clip_factor(frozen, round_index)


def next_clip_factor(
    server: Server,
    secret: Array,
    round_index: Array,
    frozen: Frozen,
    facts: ClientFacts,
    is_real: Bool[Array, " client"],
) -> Array | None:
    """Returns the next round's clip norm: by the server's count, or the mean of what the clients came to.

    In units of the one that was set; None where it does not adapt. With nobody there it stays.
    """
    if frozen.clip_factor is None:
        return None
    if facts.clip_factor is not None:
        logs = jnp.sum(jnp.log(facts.clip_factor), where=is_real)
        mean = jnp.exp(logs / jnp.maximum(jnp.sum(is_real), 1))
        return jnp.where(jnp.any(is_real), mean, frozen.clip_factor)
    mechanism = server.mechanism
    assert mechanism is not None
    assert mechanism.adapt is not None
    bound = server.clip_norm * clip_factor(frozen, round_index)
    within = jnp.where(facts.update_norm <= bound, 0.5, -0.5)
    key = rng.stream(secret, rng.Purpose.SERVER_COUNT_NOISE, round_index)
    return mechanism.adapt(key, frozen.clip_factor, jnp.sum(within, where=is_real))
