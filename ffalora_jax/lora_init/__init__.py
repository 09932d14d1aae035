"""Shelf of initialisers of the frozen or trained random factor. Each looks at the seed only: free under DP.

A member's ``build`` returns a function ``(key, features, rank) -> (features, rank)``.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float


@runtime_checkable
class LoraInit(Protocol):
    """Draws a factor that meets ``features`` activations; ``kaiming`` and others say how it is scaled."""

    def __call__(self, key: Array, features: int, rank: int) -> Float[Array, "features rank"]: ...
