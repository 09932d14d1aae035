"""Orthonormal columns from a Gaussian matrix."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def frame(gaussian: Float[Array, "features rank"]) -> Float[Array, "features rank"]:
    """Returns Q of its QR, each column by the sign of R's diagonal: then Q is uniform, and unique."""
    q, r = jnp.linalg.qr(gaussian)
    signs = jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)
    return q * signs[None]
