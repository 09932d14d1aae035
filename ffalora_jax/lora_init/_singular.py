"""Factors out of the singular vectors of a layer's W."""

import jax.numpy as jnp


def split(u, s, vt, scaling):
    """Returns A = U sqrt(S / scaling), B = sqrt(S / scaling) V^T: scaling * A B = U S V^T."""
    root = jnp.sqrt(s / scaling)
    return u * root[None], root[:, None] * vt


def svd(kernel):
    """Thin SVD of W (in, out) in float32."""
    return jnp.linalg.svd(jnp.asarray(kernel, jnp.float32), full_matrices=False)
