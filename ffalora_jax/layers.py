"""Parts that the model families truly share. Leading axes are free: one example or a batch.

A model is written for ``(..., token, feature)``, so the round may hand it single examples and name the
example axis itself (``jax.vmap`` in ``clipping``).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

MASKED = -1e9
"""Score of a padded token before the softmax: finite, so a row of nothing but padding stays finite."""


def attend(
    query: Float[Array, "*batch token head channel"],
    key: Float[Array, "*batch token head channel"],
    value: Float[Array, "*batch token head channel"],
    is_token: Bool[Array, "*batch token"],
) -> Float[Array, "*batch token head channel"]:
    """Scaled dot-product attention of every token over the real ones; softmax in float32."""
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("...qhc,...khc->...hqk", query * scale, key).astype(jnp.float32)
    scores = jnp.where(is_token[..., None, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("...hqk,...khc->...qhc", weights, value)


def mean_pool(
    hidden: Float[Array, "*batch token feature"], is_token: Bool[Array, "*batch token"]
) -> Float[Array, "*batch feature"]:
    """Mean of the real tokens' features (zero where there are none)."""
    total = jnp.sum(jnp.where(is_token[..., None], hidden, 0), axis=-2)
    count = jnp.sum(is_token, axis=-1, keepdims=True).astype(jnp.float32)
    return total / jnp.maximum(count, 1).astype(hidden.dtype)


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU with the error function, as BERT was trained; not the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


class Lookup(nnx.Module):
    """An embedding table: row ``index`` of ``(num, features)``."""

    def __init__(self, num: int, features: int, *, rngs: nnx.Rngs, stddev: float = 0.02):
        self.embedding = nnx.Param(stddev * jax.random.normal(rngs.params(), (num, features)))

    def __call__(self, index: Shaped[Array, "*batch"]) -> Float[Array, "*batch feature"]:
        return jnp.take(self.embedding[...], index, axis=0)


def linear(
    inputs: int, outputs: int, *, rngs: nnx.Rngs, stddev: float = 0.02, use_bias: bool = True
) -> nnx.Linear:
    """A dense layer initialised as transformers are."""
    kernel_init = nnx.initializers.normal(stddev)
    return nnx.Linear(inputs, outputs, kernel_init=kernel_init, use_bias=use_bias, rngs=rngs)


def layer_norm(features: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation with the variance of the centred values (E[x^2] - E[x]^2 loses digits)."""
    return nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
