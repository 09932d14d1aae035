"""Kaiming-uniform with a = sqrt 5, PEFT's default: U(-1/sqrt(in), 1/sqrt(in)) (He et al. 2015)."""

import jax

from ffalora_jax.lora_init import SEED_ONLY, LoraInit


def build() -> LoraInit:
    """Returns the initialiser: variance 1 / (3 in)."""

    def draw(key, features, rank):
        bound = features**-0.5
        return jax.random.uniform(key, (features, rank), minval=-bound, maxval=bound)

    return LoraInit(SEED_ONLY, draw)
