"""RAVAN (Raje et al. 2025, arXiv:2506.05568): several r x r cores, each between a frozen orthonormal pair.

y = x W + s sum_i c_i (x A_i) H_i B_i, with HEADS pairs that are orthonormal among one another. H_i from zero
and c_i from one are trained; what is sent is c_i H_i, whose mean is exact, and c_i starts again from one. A
message holds HEADS r^2 numbers a layer, and the change of W has rank HEADS r: more rank for as many numbers.
"""

import jax
import jax.numpy as jnp

from ffalora_jax import rng
from ffalora_jax.detours import Detour, Pair, ones_beside, product
from ffalora_jax.errors import InputError
from ffalora_jax.methods import Method

HEADS = 4


def build() -> Method:
    """A_i, B_i orthonormal and frozen; H_i and c_i trained, c_i H_i sent."""
    return Method(
        drawn=(),
        trained=frozenset({"core", "gain"}),
        detour=Detour(_shapes, _apply, _pairs),
        begin=_begin,
        upload=_upload,
        linear=False,
        exact=True,
        sentence=f"{HEADS} small cores between frozen orthonormal pairs, trained and averaged: exact",
    )


def _shapes(inputs, outputs, rank):
    if HEADS * rank > min(inputs, outputs):
        raise InputError(
            f"Expected method.rank <= {min(inputs, outputs) // HEADS} for ravan on a layer of {inputs} x "
            f"{outputs}, got {rank}: its {HEADS} pairs are orthogonal to one another."
        )
    return {
        "lora_a": (inputs, HEADS * rank),
        "lora_b": (HEADS * rank, outputs),
        "core": (HEADS, rank, rank),
        "gain": (HEADS,),
    }


def _split(x):
    return x.reshape(*x.shape[:-1], HEADS, -1)


def _apply(leaves, x, scaling):
    cores = leaves["core"] * leaves["gain"][:, None, None]
    inner = jnp.einsum("...hr,hrq->...hq", _split(x @ leaves["lora_a"]), cores)
    return scaling * (inner.reshape(*x.shape[:-1], -1) @ leaves["lora_b"])


def _pairs(leaves, x, slope, scaling):
    left = _split(product(x, leaves["lora_a"]))
    right = _split(scaling * product(slope, leaves["lora_b"].T))
    gain, core = leaves["gain"], leaves["core"]
    along = jnp.einsum("...hr,hrq,...hq->...h", left, core, right, precision="highest")
    return {
        "core": tuple(Pair(left[..., i, :], gain[i] * right[..., i, :]) for i in range(HEADS)),
        "gain": (Pair(ones_beside(x), along),),
    }


def _begin(kernel, shapes, key, index):
    def frame(factor, features, count):
        place = rng.stream(key, rng.Purpose.FRAME, index, factor)
        return jnp.linalg.qr(jax.random.normal(place, (features, count)))[0]

    (inputs, count), (_, outputs) = shapes["lora_a"], shapes["lora_b"]
    return {
        "lora_a": frame(0, inputs, count),
        "lora_b": frame(1, outputs, count).T,
        "gain": jnp.ones(HEADS),
    }


def _upload(start, end):
    return {
        layer: {"core": found["core"] * found["gain"][:, None, None]} if "core" in found else found
        for layer, found in end.items()
    }
