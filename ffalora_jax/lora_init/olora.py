"""OLoRA (Büyükakyüz 2024, arXiv:2406.01775): the first columns of a QR of W.

    W^T = Q R,   B = Q_r^T (orthonormal rows),   A = R_r^T          (W^T in PyTorch's order, as in PEFT)

A B is the projection of W on the space of its first rank inputs' outputs. Like PEFT's, the factors are not
divided by the scaling s: the part of W that is trained is s A B.
"""

import jax.numpy as jnp

from ffalora_jax.lora_init import WEIGHTS_ONLY, LoraInit


def build() -> LoraInit:
    """Returns the initialiser: Q and R of the transposed W, cut to the rank."""

    def of_weights(kernel, rank, scaling):
        q, r = jnp.linalg.qr(jnp.asarray(kernel, jnp.float32).T)
        return r[:rank].T, q[:, :rank].T

    return LoraInit(WEIGHTS_ONLY, of_weights=of_weights)
