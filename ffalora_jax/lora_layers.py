"""The layers that surgery puts in place of ``nnx.Linear``: a low-rank detour, a head to be trained.

y = x W + scaling * (x A) B (Hu et al. 2021, arXiv:2106.09685).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ffalora_jax.detours import Detour
from ffalora_jax.targets import Adapted


class AdapterLeaf(nnx.Variable):
    """A leaf that may be trained; the type by which the model is split."""


class DropoutKey(nnx.Variable):
    """The key of one layer's dropout in one training step of one example."""


class Probe(nnx.Variable):
    """A zero that is added to a layer's output, so that the gradient with respect to it can be had."""


class Given(nnx.Variable):
    """What a layer with a probe was given."""


class LoraLinear(nnx.Module):
    """A dense layer with a detour: LoRA's pair of factors, or another form of ``detours``."""

    def __init__(self, base: nnx.Linear, adapted: Adapted, dropout: float, detour: Detour):
        self.base, self.scaling, self.dropout = base, adapted.scaling, dropout
        shapes = detour.shapes(base.in_features, base.out_features, adapted.rank)
        self.detour, self.names = detour.apply, tuple(sorted(shapes))
        for name, shape in shapes.items():
            setattr(self, name, AdapterLeaf(jax.ShapeDtypeStruct(shape, "float32")))
        self.dropout_key = DropoutKey(jax.ShapeDtypeStruct((), "uint32")) if dropout else None

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        seen = x
        if self.dropout_key is not None:
            kept = jax.random.bernoulli(self.dropout_key[...], 1 - self.dropout, x.shape)
            seen = jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)
        leaves = {name: getattr(self, name)[...].astype(x.dtype) for name in self.names}
        return _probed(self, seen, self.base(x) + self.detour(leaves, seen, self.scaling))


class TrainableHead(nnx.Module):
    """The last dense layer, with its kernel and bias among the adapters."""

    def __init__(self, base: nnx.Linear):
        self.head_kernel = AdapterLeaf(jax.ShapeDtypeStruct(base.kernel.shape, "float32"))
        self.head_bias = AdapterLeaf(jax.ShapeDtypeStruct((base.out_features,), "float32"))

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        logits = x @ self.head_kernel[...]
        bias = self.head_bias[...]
        return _probed(self, x, logits + bias.reshape((1,) * (logits.ndim - 1) + bias.shape))


def _probed(layer: Any, x: Array, y: Array) -> Array:
    """Adds a layer's probe to its output, if it has one, and keeps its input."""
    probe = getattr(layer, "probe", None)
    if probe is None:
        return y
    layer.given = Given(x)
    return y + probe[...].astype(y.dtype)
