"""What stands beside a frozen dense layer and is trained: LoRA's pair of factors, or another form.

A detour adds to the layer's output, y = x W + b + detour(x). Its leaves are named, so a method can say which
of them are trained, sent or frozen, and their gradients over an example's tokens are sums of outer products
of what the layer was given and of the slope at its output (``probes``).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ffalora_jax.types import Leaves

EXACT = jax.lax.Precision.HIGHEST


class Pair(NamedTuple):
    """A leaf's gradient as outer products: sum over tokens (or slots) of left^T right."""

    left: Float[Array, "*token a"]
    right: Float[Array, "*token b"]


class Detour(NamedTuple):
    """One form of it, as pure functions."""

    shapes: Callable[[int, int, int], dict[str, tuple[int, ...]]]
    """(inputs, outputs, rank) -> shapes by leaf."""
    apply: Callable[[Leaves, Array, float], Array]
    """(leaves, x (..., in), scaling) -> what is added (..., out)."""
    pairs: Callable[[Leaves, Array, Array, float], dict[str, tuple[Pair, ...]]]
    """(leaves, x, slope at the output, scaling) -> every trained leaf's gradient: matrices that, one after
    another, hold the leaf's numbers in their order."""
    shapes_at: (
        Callable[[int, int], Callable[[int, int, int], dict[str, tuple[int, ...]]]] | None
    ) = None
    """(place of a layer, number of layers) -> its ``shapes``, where layers differ in what they train."""


def product(x: Array, y: Array) -> Array:
    """X y, in full precision: norms are made of it."""
    return jnp.matmul(x, y, precision=EXACT)


def lora_shapes(inputs: int, outputs: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of A and B."""
    return {"lora_a": (inputs, rank), "lora_b": (rank, outputs)}


def lora_apply(leaves: Leaves, x: Array, scaling: float) -> Array:
    """Scaling * (x A) B (Hu et al. 2021, arXiv:2106.09685)."""
    return scaling * ((x @ leaves["lora_a"]) @ leaves["lora_b"])


def ones_beside(x: Array) -> Array:
    """Returns a column of ones for x's tokens: the left side of what is a sum over tokens and no product."""
    return jnp.ones((*x.shape[:-1], 1), jnp.float32)


def lora_pairs(leaves: Leaves, x: Array, slope: Array, scaling: float) -> dict[str, tuple[Pair]]:
    """DB = scaling sum_t (x_t A)^T d_t,  dA = scaling sum_t x_t^T (d_t B^T)."""
    scaled = scaling * slope
    return {
        "lora_a": (Pair(x, product(scaled, leaves["lora_b"].T)),),
        "lora_b": (Pair(product(x, leaves["lora_a"]), scaled),),
    }


LORA = Detour(lora_shapes, lora_apply, lora_pairs)


def _with_residual(inputs: int, outputs: int, rank: int) -> dict[str, tuple[int, ...]]:
    return lora_shapes(inputs, outputs, rank) | {"residual": (inputs, outputs)}


def _residual_apply(leaves: Leaves, x: Array, scaling: float) -> Array:
    return scaling * (x @ leaves["residual"] + (x @ leaves["lora_a"]) @ leaves["lora_b"])


def _from_start(inputs: int, outputs: int, rank: int) -> dict[str, tuple[int, ...]]:
    pair = lora_shapes(inputs, outputs, rank)
    return pair | {"start_a": pair["lora_a"], "start_b": pair["lora_b"]}


def _from_start_apply(leaves: Leaves, x: Array, scaling: float) -> Array:
    begun = (x @ leaves["start_a"]) @ leaves["start_b"]
    return scaling * ((x @ leaves["lora_a"]) @ leaves["lora_b"] - begun)


LORA_FROM_START = Detour(_from_start, _from_start_apply, lora_pairs)
"""LoRA that begins from a part of W itself: y = x W + scaling * x (A B - A_0 B_0). PiSSA and its like take
scaling * A_0 B_0 out of W; here W stays what it was published as, and the prefix cache, hashes and exports
with it. A_0, B_0 follow from W and are never sent."""


def widened(leaves: Leaves) -> Leaves:
    """Returns A B - A_0 B_0 as one pair of twice the rank: [A, A_0] [B; -B_0]."""
    if "start_a" not in leaves:
        return leaves
    a = jnp.concatenate([leaves["lora_a"], leaves["start_a"]], axis=1)
    return {"lora_a": a, "lora_b": jnp.concatenate([leaves["lora_b"], -leaves["start_b"]])}


LORA_AND_RESIDUAL = Detour(_with_residual, _residual_apply, lora_pairs)
"""LoRA on a base that the server changes: y = x W + scaling * x (residual + A B). The residual is a leaf
of its own and not in W, so that W stays one argument of all rounds; it costs them one more product."""


def thawed_lora(share: float, of: str) -> Detour:
    """Returns LoRA whose A is frozen but for a share of its columns, or but for a share of the layers.

        y = x W + scaling * x [A_frozen, A_thawed] B

    The thawed columns are a leaf of their own, so what is frozen is in no gradient, no clipped vector and no
    message. Of the layers the upper ones are thawed: those nearest to the output.

    Args:
        share: 0 to 1; rounded up to whole columns or layers.
        of: ``rank`` or ``layers``.
    """

    def shapes_at(place, count):
        above = place >= count - math.ceil(share * count)

        def shapes(inputs, outputs, rank):
            thawed = math.ceil(share * rank) if of == "rank" else rank * above
            found = {"lora_a": (inputs, rank - thawed), "lora_b": (rank, outputs)}
            return found | ({"thawed_a": (inputs, thawed)} if thawed else {})

        return shapes

    return Detour(lora_shapes, _thawed_apply, _thawed_pairs, shapes_at)


def whole_a(leaves: Leaves) -> Leaves:
    """Returns A and B of a layer, a thawed part of A put back beside the frozen one."""
    if "thawed_a" not in leaves:
        return leaves
    rest = {name: leaf for name, leaf in leaves.items() if name != "thawed_a"}
    return rest | {"lora_a": jnp.concatenate([leaves["lora_a"], leaves["thawed_a"]], axis=1)}


def split_a(leaves: Leaves, shapes: dict[str, tuple[int, ...]]) -> Leaves:
    """Does the contrary: A in two parts, where the layer's shapes have two."""
    if "thawed_a" not in shapes:
        return leaves
    frozen = shapes["lora_a"][1]
    return leaves | {
        "lora_a": leaves["lora_a"][:, :frozen],
        "thawed_a": leaves["lora_a"][:, frozen:],
    }


def _thawed_apply(leaves: Leaves, x: Array, scaling: float) -> Array:
    return lora_apply(whole_a(leaves), x, scaling)


def _thawed_pairs(leaves: Leaves, x: Array, slope: Array, scaling: float):
    found = dict(lora_pairs(whole_a(leaves), x, slope, scaling))
    if "thawed_a" in leaves:
        (pair,) = found["lora_a"]
        found["thawed_a"] = (Pair(x, pair.right[..., leaves["lora_a"].shape[1] :]),)
    return found
