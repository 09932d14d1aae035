"""The only place where clients meet: a masked, optionally weighted mean over the client axis.

In two halves, so that the first may run on every device for its own clients: sums, then their quotient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ffalora_jax.types import Tree


class Sums(NamedTuple):
    """What adds up over clients, and over devices."""

    weighted: Tree
    """sum_k p_k u_k over the clients that took part."""
    weight: Float[Array, ""]
    """sum_k p_k."""


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
        return jnp.sum(weighted, axis=0, where=along(is_real), dtype=jnp.float32)

    ones = jnp.ones(is_real.shape, jnp.float32) if weights is None else weights
    return Sums(jax.tree.map(add, uploads), jnp.sum(ones, where=is_real))


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
