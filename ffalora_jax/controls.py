"""Control variates against clients drifting apart (SCAFFOLD: Karimireddy et al. 2020, arXiv:1910.06378).

A client's step follows g - c_k + c, where c_k is the mean of its own gradients in the last round that it
was in, and c the mean of all clients' c_k (equations 3 to 5; with SGD their second option is this mean):

    c_k' = mean over steps of g,    c' = c + |S| / N mean_{k in S} (c_k' - c_k)

Guarantee: g is what the mechanism let out of the step, so under example-level privacy the controls are
post-processing; under client-level privacy c_k' - c_k is part of the vector that is clipped and noised.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ffalora_jax import adapters as leaves
from ffalora_jax.types import HEAD_LEAVES, Adapters

PREFIX = "control_"
"""Of the leaves in an upload that hold how a client's control moved."""


def at_zero(adapters: Adapters) -> Adapters:
    """Returns the controls of some leaves before the first round."""
    return jax.tree.map(jnp.zeros_like, adapters)


def of(control: Adapters | None, active: Adapters) -> Adapters | None:
    """Returns the controls of the leaves that a round trains; None: without."""
    return None if control is None else leaves.select(control, leaves.names(active))


def corrected(gradient: Adapters, common: Adapters, own: Adapters) -> Adapters:
    """Returns g - c_k + c for the leaves that have controls, and g for those that stay at their client."""
    known = leaves.select(gradient, leaves.names(common))
    common, own = (leaves.select(tree, leaves.names(known)) for tree in (common, own))
    moved = jax.tree.map(lambda g, c, mine: g - mine + c, known, common, own)
    return leaves.merge(gradient, moved)


def added(sums: Adapters, gradient: Adapters) -> Adapters:
    """Adds a step's gradient to the sums over a round, where a leaf has one and was trained."""
    known = leaves.select(gradient, leaves.names(sums))
    return leaves.merge(
        sums, jax.tree.map(jnp.add, leaves.select(sums, leaves.names(known)), known)
    )


def mean(sums: Adapters, steps: int | Array, parts: tuple[frozenset[str] | None, ...]) -> Adapters:
    """Returns c_k': the sums over the number of steps that trained each leaf.

    Args:
        sums: over the steps.
        steps: of the round.
        parts: leaves that the steps train, in turn; None: all.
    """

    def trained(name):
        places = [i for i, part in enumerate(parts) if part is None or name in part]
        if name in HEAD_LEAVES or len(places) == len(parts):
            return steps
        count = sum((steps - place + len(parts) - 1) // len(parts) for place in places)
        return jnp.maximum(count, 1)

    return {
        layer: {name: leaf / trained(name) for name, leaf in found.items()}
        for layer, found in sums.items()
    }


def beside(upload: Adapters, change: Adapters, scale: float) -> Adapters:
    """Returns an upload with the change of the controls in it, times ``scale``.

    With scale = learning rate * steps it is of the size of what the steps moved, and shares a clip norm
    with it fairly.
    """
    renamed = {
        layer: {PREFIX + name: scale * leaf for name, leaf in found.items()}
        for layer, found in change.items()
    }
    return leaves.merge(upload, renamed)


def apart(upload: Adapters, scale: float) -> tuple[Adapters, Adapters]:
    """Does the contrary: (the upload without, the change of the controls)."""
    inside = {name for name in leaves.names(upload) if name.startswith(PREFIX)}
    change = {
        layer: {name.removeprefix(PREFIX): leaf / scale for name, leaf in found.items()}
        for layer, found in leaves.select(upload, inside).items()
    }
    return leaves.without(upload, inside), change
