"""Choosing, joining and measuring adapter leaves by name. Plain dicts, no mathematics."""

from collections.abc import Collection

import jax
import jax.numpy as jnp

from ffalora_jax.types import Adapters, Tree

RANK_AXIS = {"lora_a": 1, "lora_b": 0}
"""Axis of a factor that counts its rank."""


def select(adapters: Adapters, leaves: Collection[str]) -> Adapters:
    """Returns the leaves with the given names, layers without any left out."""
    chosen = {
        layer: {name: leaf for name, leaf in found.items() if name in leaves}
        for layer, found in adapters.items()
    }
    return {layer: found for layer, found in chosen.items() if found}


def names(adapters: Adapters) -> set[str]:
    """Returns the names of the leaves, over all layers."""
    return {name for found in adapters.values() for name in found}


def without(adapters: Adapters, leaves: Collection[str]) -> Adapters:
    """Returns all other leaves."""
    return select(adapters, names(adapters) - set(leaves))


def merge(*parts: Adapters) -> Adapters:
    """Joins disjoint sets of leaves; of equal names the last one counts."""
    joined: Adapters = {}
    for part in parts:
        for layer, leaves in part.items():
            joined[layer] = {**joined.get(layer, {}), **leaves}
    return joined


def stack(adapters: Tree, count: int) -> Tree:
    """Repeats every leaf ``count`` times along a new leading axis."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), adapters)


def nbytes(adapters: Tree) -> int:
    """Returns the bytes of all leaves, as sent."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(adapters))
