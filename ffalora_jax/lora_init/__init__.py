"""Shelf of initialisers of the random factors. Each looks at the seed or at the weights only: free under DP.

A member's ``build`` returns a ``LoraInit``: a draw from a key, or a part of the layer's own W. A is
(in, rank) and B (rank, out). An initialiser that looks at training data would spend privacy: there is none.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

SEED_ONLY = "free: drawn from the public seed, before any example is read"
WEIGHTS_ONLY = "free: follows from the published weights of the base model, no example is read"


class LoraInit(NamedTuple):
    """How a factor begins: ``draw`` or ``of_weights``, exactly one of the two."""

    privacy: str
    """What it looks at, and so what it costs."""
    draw: Callable[[Array, int, int], Float[Array, "features rank"]] | None = None
    """(key, features, rank) -> A; B is drawn as its mirror image."""
    of_weights: Callable[[Array, int, float], tuple[Array, Array]] | None = None
    """(W (in, out), rank, scaling) -> (A, B), where scaling * A B is the part of W that a method which trains
    both begins from; the layer then adds scaling * (A B - A_0 B_0), so the model is unchanged at the start.
    One that freezes a factor takes it from here, and the other starts at zero."""
