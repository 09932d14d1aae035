"""VeRA (Kopiczko et al. 2024, arXiv:2310.11454): one random pair for all layers, and a vector on each side.

y = x W + s (x A * d) B * b, with A and B cut from one frozen random pair of the largest sizes. Trained are
d (r), from 0.1, and b (out), from zero. d and b multiply one another, so their mean apart is not exact;
``vera_b`` trains b alone, which is. A message holds r + out numbers a layer.
"""

import jax
import jax.numpy as jnp

from ffalora_jax import rng
from ffalora_jax.detours import Detour, Pair, lora_shapes, ones_beside, product
from ffalora_jax.methods import Method

START = 0.1
WIDEST = 2**14
"""Features of the pair that every layer's is cut from; no layer of the families is wider."""


def build() -> Method:
    """A, B random and shared, frozen; d and b trained and sent."""
    return Method(
        drawn=(),
        trained=frozenset({"vera_d", "vera_b"}),
        detour=VERA,
        begin=begin,
        sentence="two scaling vectors around one frozen random pair, trained and averaged apart",
    )


def _shapes(inputs, outputs, rank):
    return lora_shapes(inputs, outputs, rank) | {"vera_d": (rank,), "vera_b": (outputs,)}


def _apply(leaves, x, scaling):
    inner = _times(x @ leaves["lora_a"], leaves["vera_d"])
    return scaling * _times(inner @ leaves["lora_b"], leaves["vera_b"])


def _pairs(leaves, x, slope, scaling):
    inner = product(x, leaves["lora_a"])
    outer = product(_times(inner, leaves["vera_d"]), leaves["lora_b"])
    back = product(_times(slope, leaves["vera_b"]), leaves["lora_b"].T)
    return {
        "vera_d": (Pair(ones_beside(x), scaling * inner * back),),
        "vera_b": (Pair(ones_beside(x), scaling * outer * slope),),
    }


VERA = Detour(_shapes, _apply, _pairs)


def begin(kernel, shapes, key, index):
    """A and B as kaiming-uniform rows of one pair: the same in every layer, by design."""
    (inputs, rank), (_, outputs) = shapes["lora_a"], shapes["lora_b"]

    def cut(factor, features):
        place = rng.stream(key, rng.Purpose.SHARED_PAIR, factor)
        whole = jax.random.uniform(place, (WIDEST, rank), minval=-1.0, maxval=1.0)
        return whole[:features]

    return {
        "lora_a": cut(0, inputs) * inputs**-0.5,
        "lora_b": cut(1, outputs).T * rank**-0.5,
        "vera_d": jnp.full(rank, START),
    }


def _times(x, vector):
    return x * vector.reshape((1,) * (x.ndim - 1) + vector.shape)
