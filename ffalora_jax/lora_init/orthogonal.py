"""Orthogonal columns with kaiming's Frobenius norm: ``orthonormal`` times 1 / sqrt(3).

Kaiming's entries have variance 1 / (3 in), so ||A||^2 is rank / 3; orthonormal columns have ||A||^2 = rank.
The learning rates found with kaiming therefore stay right. Unlike PEFT's initialiser of this name B is zero,
so the model is unchanged at the start.
"""

import jax

from ffalora_jax.lora_init import SEED_ONLY, LoraInit
from ffalora_jax.lora_init._frames import frame


def build() -> LoraInit:
    """Returns the initialiser: A^T A = I / 3."""

    def draw(key, features, rank):
        return frame(jax.random.normal(key, (features, rank))) * 3**-0.5

    return LoraInit(SEED_ONLY, draw)
