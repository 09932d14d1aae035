"""VeRA's form: a frozen random pair that all layers share, and a vector behind each factor."""

import jax
import jax.numpy as jnp

from ffalora_jax import rng
from ffalora_jax.detours import Detour, Pair, lora_shapes, ones_beside, product

START = 0.1
WIDEST = 2**14
"""Features of the pair that every layer's is cut from; no layer of the families is wider."""


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
