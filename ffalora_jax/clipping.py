"""Clipped sums of per-example gradients: the one place where an example's influence is bounded.

Only here is the example axis vmapped. ``clipped_sum`` does one block of examples; ``clipped_sum_in_blocks``
goes through a draw block by block, as many as the draw filled. Both give the same numbers.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ffalora_jax.cohort import Batch, ClientData, longest_first, take
from ffalora_jax.types import Tree


class ClipFacts(NamedTuple):
    """What happened to a draw; sums over its examples. Not private: for plots and debugging only."""

    num_real: Float[Array, ""]
    num_clipped: Float[Array, ""]
    num_broken: Float[Array, ""]
    """Examples whose gradient was not finite and therefore counted as zero."""
    norm_sum: Float[Array, ""]
    loss_sum: Float[Array, ""]


class Blocks(NamedTuple):
    """How a draw is computed: static sizes, no influence on the result beyond rounding."""

    size: int
    """Examples at once."""
    widths: tuple[int, ...]
    """Token widths that a block may be cut to; the last is the full width."""


def clipped_sum(
    example_loss: Callable[..., Float[Array, ""]],
    trained: Tree,
    examples: Tree,
    is_real: Bool[Array, " example"],
    clip_norm: float | Float[Array, ""],
    members: int = 1,
) -> tuple[Tree, ClipFacts]:
    """Sums per-example gradients, each clipped to ``clip_norm`` jointly over all leaves.

        sum_i g_i min(1, clip_norm / ||g_i||),   ||g_i|| over the concatenation of all trained leaves

    Guarantee: adding or removing one example moves the result by at most ``clip_norm`` in L2 (up to
    rounding, 1e-5); padded and non-finite examples contribute exactly zero. Norms and sums are float32
    whatever the model computes in. Reference: Abadi et al. 2016 (arXiv:1607.00133), Algorithm 1.

    Args:
        example_loss: ``(trained, example) -> loss`` of one example without a batch axis.
        trained: leaves to differentiate.
        examples: pytree with a leading example axis.
        is_real: False for padding.
        clip_norm: L2 bound C; infinity switches clipping off.
        members: above 1, leaves have a leading axis of so many, each of which is clipped by itself to
            C / sqrt(members), which together is at most C.
    """
    losses, gradients = jax.vmap(jax.value_and_grad(example_loss), in_axes=(None, 0))(
        trained, examples
    )
    if members > 1:
        own = clip_norm / math.sqrt(members)
        each = partial(_scaled_sum, losses, is_real=is_real, clip_norm=own)
        total, facts = jax.vmap(each, in_axes=1)(gradients)
        return total, jax.tree.map(jnp.mean, facts)
    return _scaled_sum(losses, gradients, is_real=is_real, clip_norm=clip_norm)


def _scaled_sum(losses, gradients, *, is_real, clip_norm) -> tuple[Tree, ClipFacts]:
    """Returns the clipped sum of per-example gradients (example, ...) that are there already."""
    gradients = jax.tree.map(lambda g: g.astype(jnp.float32), gradients)
    norms = jax.vmap(optax.tree.norm)(gradients)
    kept = is_real & jnp.isfinite(norms)
    scale = scale_of(kept, norms, clip_norm)

    def total(leaf):
        # The scale alone would not do: 0 * nan is nan.
        here = kept.reshape(-1, *(1,) * (leaf.ndim - 1))
        finite = jnp.where(here, leaf, jnp.zeros_like(leaf))
        # Accelerators round the inputs of a float32 product unless told not to: then C is overshot.
        return jnp.einsum("e,e...->...", scale, finite, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.map(total, gradients), facts_of(is_real, kept, norms, losses, clip_norm)


def scale_of(kept, norms, clip_norm) -> Float[Array, " example"]:
    """Returns min(1, C / norm) of the examples that are kept and 0 of the others; 1 where C is infinite."""
    return jnp.where(kept, 1.0 / jnp.maximum(norms / clip_norm, 1.0), 0.0)


def facts_of(is_real, kept, norms, losses, clip_norm) -> ClipFacts:
    """Returns the facts of some examples: which are real, which of those count, their norms and losses."""
    return ClipFacts(
        num_real=_count(is_real),
        num_clipped=_count(kept & (norms > clip_norm)),
        num_broken=_count(is_real & ~kept),
        norm_sum=jnp.sum(jnp.where(kept, norms, 0.0)),
        loss_sum=jnp.sum(jnp.where(kept, losses.astype(jnp.float32), 0.0)),
    )


def clipped_sum_in_blocks(
    example_loss: Callable[..., Float[Array, ""]],
    trained: Tree,
    data: ClientData,
    batch: Batch,
    clip_norm: float | Float[Array, ""],
    blocks: Blocks,
    members: int,
) -> tuple[Tree, ClipFacts]:
    """Does ``clipped_sum`` over a draw, block by block, longest examples first.

    Guarantee: as ``clipped_sum``; the sum runs over the same examples, whatever the blocks. Shapes are
    static, and the trip count is what the draw filled, so unused capacity costs nothing; each block
    computes the narrowest of ``blocks.widths`` that holds its longest example.
    """
    (capacity,) = batch.rows.shape
    size = min(blocks.size, capacity)
    padding = -capacity % size
    batch = longest_first(batch, data.lengths)
    rows = jnp.pad(batch.rows, (0, padding))
    is_real = jnp.pad(batch.is_real, (0, padding))
    *narrower, _ = blocks.widths
    widths = jnp.asarray(narrower, jnp.int32)

    def at_width(width, rows, is_real):
        examples = take(data, rows, width)
        return clipped_sum(example_loss, trained, examples, is_real, clip_norm, members)

    # The last width is the whole one, of images too, which have none to cut.
    branches = [partial(at_width, width) for width in (*narrower, None)]

    def sum_of(here, real):
        longest = jnp.max(jnp.where(real, data.lengths[here], 0))
        return jax.lax.switch(jnp.sum(longest > widths), branches, here, real)

    if size == capacity:
        return sum_of(rows, is_real)

    def added(index, total):
        here = jax.lax.dynamic_slice_in_dim(rows, index * size, size)
        real = jax.lax.dynamic_slice_in_dim(is_real, index * size, size)
        return jax.tree.map(jnp.add, total, sum_of(here, real))

    shapes = jax.eval_shape(sum_of, rows[:size], is_real[:size])
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    num_blocks = -(-jnp.sum(is_real) // size)
    return jax.lax.fori_loop(0, num_blocks, added, zero)


def _count(mask: Bool[Array, " example"]) -> Float[Array, ""]:
    return jnp.sum(mask).astype(jnp.float32)
