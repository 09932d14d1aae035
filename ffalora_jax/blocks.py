"""A model's blocks one after another: all, those above or below a kept state, or stacked for ``lax.scan``."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array


def run_blocks(
    blocks: Any, x: Array, *beside: Any, remat: bool = False, first: int | None = None
) -> Array:
    """Applies a model's blocks one after another: ``x = block(x, *beside)``.

    With ``remat`` a block's activations are computed again in the backward pass instead of being kept
    (Chen et al. 2016, arXiv:1604.06174): the same numbers for a third more time. Blocks that were
    stacked (``StackedBlocks``) run by ``lax.scan``: one block is compiled, whatever the depth. On a CPU
    remat needs that: of blocks one by one XLA merges the second computation with the first.

    With ``first`` no more is looked at than so many first tokens, so the last block computes theirs alone
    (all tokens where blocks are stacked).
    """
    if isinstance(blocks, StackedBlocks):
        return blocks(x, *beside, remat=remat)
    if isinstance(blocks, UpperBlocks | LowerBlocks):
        return blocks(x, *beside, remat=remat, first=first)
    for index, block in enumerate(blocks):
        if first is not None and index == len(blocks) - 1:
            block = partial(block, first=first)
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
    """A model's blocks from ``begin`` on, which go on from what ``LowerBlocks`` kept."""

    def __init__(self, blocks: Any, begin: int, kept: Array):
        self.blocks, self.begin, self.kept = blocks, begin, kept

    def __call__(
        self, x: Array, *beside: Any, remat: bool = False, first: int | None = None
    ) -> Array:
        # What made x is used by nothing, so it is not computed: only its width is looked at.
        hidden, products = jnp.split(self.kept, [x.shape[-1]], axis=-1)
        if products.shape[-1]:
            layers = _first_layers(self.blocks[self.begin])
            ends = np.cumsum([layer.out_features for layer, _ in layers])
            parts = jnp.split(products, ends[:-1], axis=-1)
            for (_, put), product in zip(layers, parts, strict=True):
                # Of an x that is cut to its first tokens, theirs.
                put(lambda x, product=product: product[..., : x.shape[-2], :])
        return run_blocks(self.blocks[self.begin :], hidden, *beside, remat=remat, first=first)


class LowerBlocks:
    """A model's blocks up to ``end``, whose output is kept.

    With ``more``, so are the products of the block above: those of its frozen weights with what no adapter
    has touched yet.
    """

    def __init__(self, blocks: Any, end: int, more: bool):
        self.blocks, self.end, self.more = blocks, end, more
        self.kept: Any = None

    def __call__(self, x: Array, *beside: Any, remat: bool = False, **_: Any) -> Array:
        x = run_blocks(self.blocks[: self.end], x, *beside, remat=remat)
        parts = [x]

        def keep(layer, seen):
            parts.append(layer(seen))
            return parts[-1]

        if self.more:
            for layer, put in _first_layers(self.blocks[self.end]):
                put(partial(keep, layer))
            self.blocks[self.end](x, *beside)  # its result is used by nothing
        self.kept = jnp.concatenate(parts, axis=-1)
        return x


def _first_layers(block: Any) -> list[tuple[nnx.Linear, Callable[[Callable], None]]]:
    """Returns the frozen dense layers that see a block's input, and how each is replaced."""
    found = []
    attention = getattr(block, "attention", None)
    for name in getattr(attention, "FIRST_LAYERS", ()):
        layer = getattr(attention, name)
        owner, place = (layer, "base") if hasattr(layer, "base") else (attention, name)
        found.append((getattr(owner, place), partial(object.__setattr__, owner, place)))
    return found


def _stack(*leaves: Any) -> Any:
    """Stacks arrays, or what only has a shape yet."""
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
    return jnp.stack(leaves)


def _kept_or_not(block: Any, remat: bool) -> Any:
    return jax.checkpoint(block) if remat else block
