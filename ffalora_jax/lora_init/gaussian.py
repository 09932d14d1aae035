"""Gaussian with standard deviation 1 / rank, PEFT's ``init_lora_weights="gaussian"``."""

import jax

from ffalora_jax.lora_init import SEED_ONLY, LoraInit


def build() -> LoraInit:
    """Returns the initialiser: N(0, 1 / rank^2)."""

    def draw(key, features, rank):
        return jax.random.normal(key, (features, rank)) / rank

    return LoraInit(SEED_ONLY, draw)
