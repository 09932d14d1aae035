"""BitFit (Ben Zaken et al. 2022, arXiv:2106.10199): the biases of the targets, and nothing else.

y = x W + b + bias; the mean of the clients' biases is exact. A message holds one number for each output of a
target, fewer than any rank of LoRA. ``method.rank`` and ``method.lora_alpha`` mean nothing here.
"""

import jax.numpy as jnp

from ffalora_jax.detours import Detour, Pair, ones_beside
from ffalora_jax.methods import Method


def build() -> Method:
    """The change of the biases, from zero, trained and sent."""
    return Method(
        drawn=(),
        trained=frozenset({"bias"}),
        detour=Detour(_shapes, _apply, _pairs),
        exact=True,
        sentence="the biases of the targets trained and averaged",
    )


def _shapes(inputs, outputs, rank):
    return {"bias": (outputs,)}


def _apply(leaves, x, scaling):
    bias = leaves["bias"]
    return jnp.broadcast_to(bias, (*x.shape[:-1], bias.shape[0]))


def _pairs(leaves, x, slope, scaling):
    return {"bias": (Pair(ones_beside(x), slope),)}
