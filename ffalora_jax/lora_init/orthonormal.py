"""Orthonormal columns: Q of a QR of a Gaussian, with signs that make it uniform (Mezzadri 2007).

A^T A = I, so x A keeps the length of what it keeps of x, and DP noise on B reaches the product undistorted.
The form that FedSVD's server makes (arXiv:2505.12805). Its Frobenius norm is sqrt(3) times kaiming's, so with
SGD a learning rate three times smaller takes the same steps; ``orthogonal`` has kaiming's norm.
"""

import jax

from ffalora_jax.lora_init import SEED_ONLY, LoraInit
from ffalora_jax.lora_init._frames import frame


def build() -> LoraInit:
    """Returns the initialiser: uniform among the matrices with orthonormal columns."""

    def draw(key, features, rank):
        return frame(jax.random.normal(key, (features, rank)))

    return LoraInit(SEED_ONLY, draw)
