"""Fed-SB (Singhal et al. 2025, arXiv:2502.15436): an r x r core between two frozen factors.

y = x W + s (x A) R B, with A and B the leading singular vectors of W itself: public, so free under DP (the
paper takes them from gradients, which would spend privacy). R from zero is trained and averaged, exactly; a
message holds r^2 numbers a layer, whatever its width, and noise enters the product once.
"""

import jax.numpy as jnp

from ffalora_jax.detours import Detour, Pair, lora_shapes, product
from ffalora_jax.methods import Method


def build() -> Method:
    """A and B from W's SVD and frozen; R from zero, trained and sent."""
    return Method(
        drawn=(),
        trained=frozenset({"core"}),
        detour=Detour(_shapes, _apply, _pairs),
        begin=_begin,
        begins_alike=True,
        exact=True,
        sentence="an r x r core between frozen singular vectors of W, trained and averaged: exact",
    )


def _shapes(inputs, outputs, rank):
    return lora_shapes(inputs, outputs, rank) | {"core": (rank, rank)}


def _apply(leaves, x, scaling):
    return scaling * (((x @ leaves["lora_a"]) @ leaves["core"]) @ leaves["lora_b"])


def _pairs(leaves, x, slope, scaling):
    return {
        "core": (Pair(product(x, leaves["lora_a"]), scaling * product(slope, leaves["lora_b"].T)),)
    }


def _begin(kernel, shapes, key, index):
    rank = shapes["core"][0]
    u, _, vt = jnp.linalg.svd(kernel.astype(jnp.float32), full_matrices=False)
    return {"lora_a": u[:, :rank], "lora_b": vt[:rank]}
