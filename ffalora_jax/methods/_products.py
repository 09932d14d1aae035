"""For methods whose server reads the clients' products A_k B_k: stacked as one product, never as C matrices.

sum_k p_k A_k B_k = [A_1 .. A_C] diag(p_1 .. p_C) [B_1; ..; B_C], that is (in, C r) (C r, out). Uploads of
example-level DP are private already, so all of this is post-processing. Server's leaves are per layer:
``{"lora_a": (in, r), "lora_b": (r, out), ...}``; uploads have a leading client axis.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ffalora_jax.adapters import merge
from ffalora_jax.types import Adapters, Leaves

EXACT = jax.lax.Precision.HIGHEST

ReadLayer = Callable[[Leaves, Leaves, Leaves, Array], Leaves]
"""(a layer's leaves at the server, their mean upload, stacked uploads, shares) -> its leaves after."""


def by_layer(read_layer: ReadLayer) -> Callable[[Adapters, Adapters, Adapters, Array], Adapters]:
    """Returns ``Method.read``: adapted layers as ``read_layer`` says, heads by the mean.

    Guarantee: shares are the weights over their sum; with nobody in the cohort nothing changes.
    """

    def read(state, mean, uploads, weights):
        total = jnp.sum(weights)
        anyone = total > 0
        shares = weights / jnp.where(anyone, total, 1.0)
        after = {
            layer: read_layer(found, mean[layer], uploads[layer], shares)
            for layer, found in state.items()
            if "lora_a" in found
        }
        after = merge(state, mean, after)
        return jax.tree.map(lambda new, old: jnp.where(anyone, new, old), after, state)

    return read


def product(x: Array, y: Array) -> Array:
    """X y in full precision."""
    return jnp.matmul(x, y, precision=EXACT)


def stacked(uploads: Leaves, shares: Array) -> tuple[Array, Array]:
    """Returns (in, C r) and (C r, out), whose product is sum_k p_k A_k B_k."""
    a, b = uploads["lora_a"], uploads["lora_b"] * shares[:, None, None]
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1), b.reshape(-1, b.shape[2])


def thin_svd(
    left: Float[Array, "in inner"], right: Float[Array, "inner out"]
) -> tuple[Array, Array, Array]:
    """Returns U (in, k), S (k,), V^T (k, out) of left right, by the SVD of a core alone.

    left = Q_l R_l and right^T = Q_r R_r; R_l R_r^T is small, and U S V^T of it gives Q_l U, S, V^T Q_r^T.
    """
    q_left, r_left = jnp.linalg.qr(left)
    q_right, r_right = jnp.linalg.qr(right.T)
    u, s, vt = jnp.linalg.svd(product(r_left, r_right.T), full_matrices=False)
    return product(q_left, u), s, product(vt, q_right.T)
