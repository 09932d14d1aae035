"""The only place where clients meet: a masked, optionally weighted mean over the client axis."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ffalora_jax.types import Tree


def mean_upload(
    uploads: Tree,
    is_real: Bool[Array, " client"],
    weights: Float[Array, " client"] | None,
    fallback: Tree,
) -> Tree:
    """Averages the uploads of the clients that took part.

        sum_k p_k u_k / sum_k p_k   over real clients;   p_k = 1 unless weights are given

    Guarantee: a masked client contributes exactly zero, whatever its upload holds (NaN included).
    Post-processing under example-level DP. With no client at all the server keeps ``fallback``.

    Args:
        uploads: leaves (client, ...).
        is_real: False for empty slots of the cohort.
        weights: weights p_k such as client sizes, which they reveal; None for a uniform mean.
        fallback: the server's present leaves.
    """
    anyone = jnp.any(is_real)
    relative = None if weights is None else weights / jnp.mean(weights, where=is_real)

    def average(leaf, before):
        def along(vector):
            return vector.reshape(-1, *(1,) * (leaf.ndim - 1))

        weighted = leaf if relative is None else leaf * along(relative)
        mean = jnp.mean(weighted, axis=0, where=along(is_real), dtype=jnp.float32)
        return jnp.where(anyone, mean, before)

    return jax.tree.map(average, uploads, fallback)
