"""The only place where clients meet: a masked, optionally weighted mean over the client axis.

In two halves, so that the first may run on every device for its own clients: sums, then their quotient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax import rng
from ffalora_jax.types import Tree


class Sums(NamedTuple):
    """What adds up over clients, and over devices."""

    weighted: Tree
    """sum_k p_k u_k over the clients that took part."""
    weight: Float[Array, ""]
    """sum_k p_k."""


class Late(NamedTuple):
    """Uploads that came after their round."""

    moved: Sums
    """What they moved: sum_k p_k (u_k - what a client sends that moved nothing), and sum_k p_k."""
    under_way: Bool[Array, " client"]
    """Whose they are, of all clients: they were not there to be asked again."""


def with_late(sums: Sums, late: Late, nothing: Tree, weight: float) -> Sums:
    """Adds the uploads of the round before, as changes of the model as it is now, each ``weight`` times."""
    share = weight * late.moved.weight
    weighted = jax.tree.map(
        lambda total, moved, own: total + weight * moved + share * own,
        sums.weighted,
        late.moved.weighted,
        nothing,
    )
    return Sums(weighted, sums.weight + share)


def weighted_sum(
    uploads: Tree, is_real: Bool[Array, " client"], weights: Float[Array, " client"] | None
) -> Sums:
    """Adds up the uploads of the clients that took part, and their weights, in float32.

    Guarantee: a masked client contributes exactly zero, whatever its upload holds (NaN included).

    Args:
        uploads: leaves (client, ...).
        is_real: False for empty slots of the cohort.
        weights: weights p_k such as client sizes, which they reveal; None for a uniform mean.
    """

    def add(leaf):
        def along(vector):
            return vector.reshape(-1, *(1,) * (leaf.ndim - 1))

        weighted = leaf if weights is None else leaf * along(weights)
        kept = leaf.dtype if leaf.dtype == jnp.uint32 else jnp.float32  # integers modulo 2^32
        return jnp.sum(weighted, axis=0, where=along(is_real), dtype=kept)

    ones = jnp.ones(is_real.shape, jnp.float32) if weights is None else weights
    return Sums(jax.tree.map(add, uploads), jnp.sum(ones, where=is_real))


def if_anybody(sums: Sums, after: Tree, before: Tree) -> Tree:
    """Returns what follows from a round, or what was before it where no client came."""
    return jax.tree.map(lambda new, old: jnp.where(sums.weight > 0, new, old), after, before)


def masked(key: Array, uploads: Tree, slot: Int[Array, ""], partner: Int[Array, ""]) -> Tree:
    """Hides one client's integers under masks that cancel over a ring of clients (modulo 2^32).

        u_k + r_k - r_next(k)

    Guarantee: each masked number is uniform over 2^32 values to whoever knows neither mask; over all clients
    of the ring the masks add up to nothing, exactly. Who drops out in between is not simulated.

    Args:
        key: the round's; every client shares one mask with each of its two neighbours.
        uploads: uint32 leaves.
        slot: the client's place.
        partner: the next client's place.
    """
    leaves, structure = jax.tree.flatten(uploads)
    own, other = rng.leaf(key, slot), rng.leaf(key, partner)
    hidden = [
        leaf
        + jax.random.bits(rng.leaf(own, index), leaf.shape, "uint32")
        - jax.random.bits(rng.leaf(other, index), leaf.shape, "uint32")
        for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, hidden)


def ring(is_real: Bool[Array, " client"]) -> Int[Array, " client"]:
    """Returns for every client that is there the place of the next one, the last one's being the first."""
    order = jnp.argsort(~is_real, stable=True)
    place = jnp.cumsum(is_real) - 1
    return order[(place + 1) % jnp.maximum(jnp.sum(is_real), 1)]


def mean_upload(sums: Sums, fallback: Tree) -> Tree:
    """Returns the mean of the uploads.

        sum_k p_k u_k / sum_k p_k   over real clients;   p_k = 1 unless weights are given

    Post-processing under example-level DP. With no client at all the server keeps ``fallback``.
    """
    anyone = sums.weight > 0
    safe = jnp.where(anyone, sums.weight, 1.0)
    return jax.tree.map(
        lambda total, before: jnp.where(anyone, total / safe, before), sums.weighted, fallback
    )
