"""All weights of the targets trained, no low rank: a control. What LoRA approximates, at what it costs.

y = x (W + weight); the mean of the clients' weights is exact. Each message holds in x out numbers a layer,
and under DP the same clip norm meets noise in as many directions. ``method.rank`` means nothing here.
"""

import jax.numpy as jnp

from ffalora_jax.detours import Detour, Pair
from ffalora_jax.methods import Method


def build() -> Method:
    """The change of W, from zero, trained and sent."""
    return Method(
        drawn=(),
        trained=frozenset({"weight"}),
        detour=Detour(_shapes, _apply, _pairs),
        exact=True,
        sentence="all weights of the targets trained and averaged (control)",
    )


def _shapes(inputs, outputs, rank):
    return {"weight": (inputs, outputs)}


def _apply(leaves, x, scaling):
    return jnp.matmul(x, leaves["weight"])


def _pairs(leaves, x, slope, scaling):
    return {"weight": (Pair(x, slope),)}
