"""Slots of a round's cohort: filled up, computed in chunks, masked, and written back to their clients."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ffalora_jax.client import ClientFacts, Participant
from ffalora_jax.cohort import Batch, Cohort
from ffalora_jax.types import Tree


def fill_up(cohort: Cohort, batches: Batch | None, shards: int) -> tuple[Cohort, Batch | None]:
    """Adds empty slots until the devices share them evenly."""
    missing = -cohort.clients.shape[0] % shards

    def padded(leaf):
        return jnp.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)))

    return jax.tree.map(padded, (cohort, batches)) if missing else (cohort, batches)


def not_under_way(cohort: Cohort, under_way: Array) -> Cohort:
    """Leaves out those whose last upload is still to come."""
    free = ~under_way[cohort.clients]
    late = jnp.zeros_like(free) if cohort.late is None else cohort.late & free
    return Cohort(cohort.clients, cohort.is_real & free, late)


def of_clients(cohort: Cohort, chosen: Array, num_clients: int) -> Array:
    """Returns, for all clients, whether their slot is chosen."""
    places = jnp.where(chosen, cohort.clients, num_clients)
    return jnp.zeros(num_clients, bool).at[places].set(True, mode="drop")


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


def inverse_losses(facts: ClientFacts) -> Array:
    """Returns 1 / mean training loss of each client's draws; 0 where it drew nothing. Not private."""
    drawn = facts.clip.num_real - facts.clip.num_broken
    mean = facts.clip.loss_sum / jnp.maximum(drawn, 1)
    return jnp.where(drawn > 0, 1 / jnp.maximum(mean, 1e-6), 0.0)


def of_those_there(uploads: Tree, nothing: Tree, weights: Array | None, cohort: Cohort):
    """Returns (uploads, weights) in which a slot without a client changes nothing and weighs nothing."""

    def masked(leaf, own):
        return jnp.where(_along(cohort.is_real, leaf), leaf, own[None])

    ones = jnp.ones(cohort.clients.shape[0]) if weights is None else weights
    return jax.tree.map(masked, uploads, nothing), jnp.where(cohort.is_real, ones, 0.0)


def keep(own: Tree, ends: Tree, cohort: Cohort, by_slot: bool) -> Tree:
    """Writes back what stays at the cohort's clients, leaves (client, ...); empty slots write nowhere."""
    if by_slot:
        return jax.tree.map(
            lambda old, new: jnp.where(_along(cohort.is_real, old), new, old), own, ends
        )
    count = next((leaf.shape[0] for leaf in jax.tree.leaves(own)), 0)
    places = jnp.where(cohort.is_real, cohort.clients, count)
    return jax.tree.map(lambda all_, new: all_.at[places].set(new, mode="drop"), own, ends)


def _along(mask: Array, leaf: Array) -> Array:
    """Returns a mask over the slots in the shape that meets a leaf (slot, ...)."""
    return mask.reshape(-1, *(1,) * (leaf.ndim - 1))
