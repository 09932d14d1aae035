"""Parts that the model families truly share. Leading axes are free: one example or a batch.

A model is written for ``(..., token, feature)``, so the round may hand it single examples and name the
example axis itself (``jax.vmap`` in ``clipping``).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

MASKED = float(jnp.finfo(jnp.float32).min)
"""Score of what is not seen, before the softmax: finite, so a row of nothing but padding stays finite."""


def attend(
    query: Float[Array, "*batch token head channel"],
    key: Float[Array, "*batch slot head channel"],
    value: Float[Array, "*batch slot head channel"],
    seen: Bool[Array, "*batch query slot"],
) -> Float[Array, "*batch token head channel"]:
    """Scaled dot-product attention; softmax in float32.

    Args:
        query: of every token.
        key: of every slot that may be looked at (the tokens themselves, or a cache).
        value: of the same slots.
        seen: which slots a token looks at; its ``query`` axis may be 1: all tokens the same ones.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("...qhc,...khc->...hqk", query * scale, key).astype(jnp.float32)
    weights = masked_softmax(scores, seen[..., None, :, :]).astype(value.dtype)
    return jnp.einsum("...hqk,...khc->...qhc", weights, value)


def masked_softmax(scores: Float[Array, "..."], seen: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Softmax over the slots seen, the last axis; ``seen`` may have leading axes of size 1.

    **Guarantee:** what is not seen has no share at all, however low the finite scores seen are: none lies
    below ``MASKED``, and another example of the same row would else come in.
    """
    return jax.nn.softmax(jnp.where(seen, scores, MASKED), axis=-1)


@jax.custom_vjp
def isolate(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Zeroes what is not finite, forwards and backwards: in a product over a row 0 * nan would be nan.

    Where all is finite it changes nothing. A broken example stays broken: its own tokens keep their nan
    beside the attention, so its loss is nan and it is counted out.
    """
    return jnp.where(jnp.isfinite(x), x, 0)


isolate.defvjp(lambda x: (isolate(x), None), lambda _, g: (jnp.where(jnp.isfinite(g), g, 0),))


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


class SelfAttention(nnx.Module):
    """Multi-head attention, with biases: BERT, RoBERTa, ViT. ``seen`` as in ``attend``.

    With ``first``, only so many first tokens look (at all); the others' results are not computed.
    """

    FIRST_LAYERS = ("query", "key", "value")

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs, use_bias: bool = True):
        self.heads = heads
        self.query = linear(features, features, rngs=rngs, use_bias=use_bias)
        self.key = linear(features, features, rngs=rngs, use_bias=use_bias)
        self.value = linear(features, features, rngs=rngs, use_bias=use_bias)
        self.output = linear(features, features, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*batch token feature"],
        seen: Bool[Array, "*batch query token"],
        first: int | None = None,
    ) -> Float[Array, "*batch looking feature"]:
        # Several examples in a row: a broken one must not meet the others.
        shared = seen.shape[-2] > 1
        looking = x[..., :first, :]

        def split(y):
            y = y.reshape(*y.shape[:-1], self.heads, -1)
            return isolate(y) if shared else y

        mixed = attend(split(self.query(looking)), split(self.key(x)), split(self.value(x)), seen)
        mixed = mixed.reshape(looking.shape)
        return self.output(isolate(mixed) if shared else mixed)


class PostNormBlock(nnx.Module):
    """Attention and feed-forward, each added to its input and then normalised: BERT, RoBERTa."""

    def __init__(self, config: dict[str, Any], *, rngs: nnx.Rngs):
        features, epsilon = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        self.attention = SelfAttention(features, config["num_attention_heads"], rngs=rngs)
        self.attention_norm = layer_norm(features, epsilon, rngs=rngs)
        self.up = linear(features, config["intermediate_size"], rngs=rngs)
        self.down = linear(config["intermediate_size"], features, rngs=rngs)
        self.output_norm = layer_norm(features, epsilon, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*batch token feature"],
        seen: Bool[Array, "*batch query token"],
        first: int | None = None,
    ) -> Float[Array, "*batch looking feature"]:
        x = self.attention_norm(x[..., :first, :] + self.attention(x, seen, first))
        return self.output_norm(x + self.down(exact_gelu(self.up(x))))
