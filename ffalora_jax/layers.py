"""Parts that the model families truly share. Leading axes are free: one example or a batch.

A model is written for ``(..., token, feature)``, so the round may hand it single examples and name the
example axis itself (``jax.vmap`` in ``clipping``).
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

MASKED = -1e9
"""Score of a padded token before the softmax: finite, so a row of nothing but padding stays finite."""


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
    scores = jnp.where(seen[..., None, :, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("...hqk,...khc->...qhc", weights, value)


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
    """Multi-head attention, with biases: BERT, RoBERTa, ViT. ``seen`` as in ``attend``."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs, use_bias: bool = True):
        self.heads = heads
        self.query = linear(features, features, rngs=rngs, use_bias=use_bias)
        self.key = linear(features, features, rngs=rngs, use_bias=use_bias)
        self.value = linear(features, features, rngs=rngs, use_bias=use_bias)
        self.output = linear(features, features, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*batch token feature"], seen: Bool[Array, "*batch query token"]
    ) -> Float[Array, "*batch token feature"]:
        shared = (
            seen.shape[-2] > 1
        )  # several examples in a row: a broken one must not meet the others

        def split(y):
            y = y.reshape(*y.shape[:-1], self.heads, -1)
            return isolate(y) if shared else y

        mixed = attend(split(self.query(x)), split(self.key(x)), split(self.value(x)), seen)
        mixed = mixed.reshape(x.shape)
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
        self, x: Float[Array, "*batch token feature"], seen: Bool[Array, "*batch query token"]
    ) -> Float[Array, "*batch token feature"]:
        x = self.attention_norm(x + self.attention(x, seen))
        return self.output_norm(x + self.down(exact_gelu(self.up(x))))


def run_blocks(blocks: Any, x: Array, *beside: Any, remat: bool = False) -> Array:
    """Applies a model's blocks one after another: ``x = block(x, *beside)``.

    With ``remat`` a block's activations are computed again in the backward pass instead of being kept
    (Chen et al. 2016, arXiv:1604.06174): the same numbers for a third more time. Blocks that were
    stacked (``StackedBlocks``) run by ``lax.scan``: one block is compiled, whatever the depth. On a CPU
    remat needs that: of blocks one by one XLA merges the second computation with the first.
    """
    if isinstance(blocks, StackedBlocks | UpperBlocks | LowerBlocks):
        return blocks(x, *beside, remat=remat)
    for block in blocks:
        x = _kept_or_not(block, remat)(x, *beside)
    return x


class StackedBlocks(nnx.Module):
    """Blocks of one shape as a single one whose leaves have a leading layer axis."""

    def __init__(self, blocks: Iterable[nnx.Module]):
        split = [nnx.split(block) for block in blocks]
        states = [nnx.to_pure_dict(state) for _, state in split]
        self.block = nnx.merge(split[0][0], jax.tree.map(_stack, *states))

    def __call__(self, x: Array, *beside: Any, remat: bool = False) -> Array:
        graph, leaves = nnx.split(self.block)

        def one(x, leaves):
            return _kept_or_not(nnx.merge(graph, leaves), remat)(x, *beside), None

        return jax.lax.scan(one, x, leaves)[0]

    def one_by_one(self) -> list[Any]:
        """Returns the blocks apart again; inside a compiled function."""
        graph, leaves = nnx.split(self.block)
        count = jax.tree.leaves(leaves)[0].shape[0]
        return [nnx.merge(graph, jax.tree.map(lambda x: x[i], leaves)) for i in range(count)]  # noqa: B023


class UpperBlocks:
    """A model's blocks from ``begin`` on, which go on from what the others gave before."""

    def __init__(self, blocks: Any, begin: int, hidden: Array):
        self.blocks, self.begin, self.hidden = blocks, begin, hidden

    def __call__(self, x: Array, *beside: Any, remat: bool = False) -> Array:
        # What made x is used by nothing, so it is not computed.
        return run_blocks(self.blocks[self.begin :], self.hidden, *beside, remat=remat)


class LowerBlocks:
    """A model's blocks up to ``end``, whose output is kept."""

    def __init__(self, blocks: Any, end: int):
        self.blocks, self.end = blocks, end
        self.hidden: Any = None

    def __call__(self, x: Array, *beside: Any, remat: bool = False) -> Array:
        x = self.hidden = run_blocks(self.blocks[: self.end], x, *beside, remat=remat)
        return x


def _stack(*leaves: Any) -> Any:
    """Stacks arrays, or what only has a shape yet."""
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
    return jnp.stack(leaves)


def _kept_or_not(block: Any, remat: bool) -> Any:
    return jax.checkpoint(block) if remat else block
