"""Uploads made smaller on the wire: what a client's leaves moved, in fewer bits or fewer numbers.

Comes after the mechanism: what is compressed is private already, so under example-level DP all of it is
post-processing and free. Where single uploads are hidden (client-level DP, secure aggregation) it is
refused: there the noise comes later, and what is kept would depend on what is to be hidden.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ffalora_jax import rng
from ffalora_jax.errors import InputError
from ffalora_jax.types import Tree

FORMS = "none, float16, int8, topk SHARE"


class Compression(NamedTuple):
    """One form, as pure functions."""

    apply: Callable[[Array, Tree], Tree]
    """(key, what the leaves moved) -> what arrives of it."""
    nbytes: Callable[[Tree, Tree], int]
    """(what of the leaves is a client's own, the leaves, or their shapes) -> bytes sent."""


def compression_of(text: str) -> Compression | None:
    """Returns the form of that name; None for ``none``.

    ``float16``: rounded to the nearest, 2 bytes a number. ``int8``: 127 steps up to a leaf's largest number,
    rounded up or down at random so that the mean is right, 1 byte a number and 4 a leaf. ``topk SHARE``: the
    largest numbers over all leaves, with their places, 8 bytes each; the others count as unmoved.

    Raises:
        InputError: another form, or a share outside 0..1.
    """
    kind, *more = text.split() or [""]
    if kind == "topk" and len(more) == 1:
        try:
            share = float(more[0])
        except ValueError:
            share = math.nan
        if 0 < share <= 1:
            return Compression(
                lambda key, tree: _largest(tree, share),
                lambda own, tree: 8 * min(_kept(tree, share), _count(own)),
            )
    elif not more and kind == "none":
        return None
    elif not more and kind == "float16":
        return Compression(_halves, lambda own, tree: 2 * _count(own))
    elif not more and kind == "int8":
        return Compression(_eighths, lambda own, tree: _count(own) + 4 * len(jax.tree.leaves(own)))
    raise InputError(f"Expected compression to be one of: {FORMS} (0 < SHARE <= 1); got {text!r}.")


def compressed(form: Compression, key: Array, uploads: Tree, nothing: Tree) -> Tree:
    """Returns what the server reads of one client's upload.

    Args:
        form: how it is sent.
        key: of this client in this round.
        uploads: the leaves as the client has them.
        nothing: as the server has them.
    """
    moved = jax.tree.map(jnp.subtract, uploads, nothing)
    return jax.tree.map(jnp.add, nothing, form.apply(key, moved))


def _count(tree: Tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _kept(tree: Tree, share: float) -> int:
    return math.ceil(share * _count(tree))


def _halves(key: Array, tree: Tree) -> Tree:
    most = float(jnp.finfo(jnp.float16).max)
    return jax.tree.map(
        lambda leaf: jnp.clip(leaf, -most, most).astype(jnp.float16).astype(jnp.float32), tree
    )


def _eighths(key: Array, tree: Tree) -> Tree:
    leaves, structure = jax.tree.flatten(tree)

    def rounded(index, leaf):
        step = jnp.max(jnp.abs(leaf)) / 127
        scaled = leaf / jnp.where(step > 0, step, 1.0)
        up = jax.random.uniform(rng.leaf(key, index), leaf.shape)
        return jnp.floor(scaled + up).astype(jnp.int8).astype(jnp.float32) * step

    return jax.tree.unflatten(structure, [rounded(i, leaf) for i, leaf in enumerate(leaves)])


def _largest(tree: Tree, share: float) -> Tree:
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:  # of who sends nothing
        return tree
    flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
    _, places = jax.lax.top_k(jnp.abs(flat), _kept(tree, share))
    kept = jnp.zeros_like(flat).at[places].set(flat[places])
    ends = [sum(leaf.size for leaf in leaves[: i + 1]) for i in range(len(leaves))]
    parts = jnp.split(kept, ends[:-1])
    return jax.tree.unflatten(
        structure, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )
