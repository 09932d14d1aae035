"""Shelf of federated LoRA methods. To add one, add a file whose ``build()`` returns a ``Method``.

A method says which leaves exist at the start, which are trained, which cross the wire and which stay at
their client, and how the server reads the mean. Everything else (clipping, noise, averaging, bytes,
checkpoints) follows from these names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from ffalora_jax.adapters import merge
from ffalora_jax.detours import LORA, Detour
from ffalora_jax.types import Adapters, Leaves


class Method(NamedTuple):
    """One federated method as pure functions and static sets of leaf names."""

    drawn: tuple[str, ...]
    """Factors drawn at random from the public seed at the start; the others start at zero."""
    trained: frozenset[str]
    """LoRA leaves that are trained, in every round unless ``phases`` say when."""
    phases: tuple[frozenset[str], ...] = ()
    """Parts of ``trained`` for methods whose rounds differ: what is not in a round's part is frozen in it,
    not sent, and costs nothing."""
    phase_of: Callable[[Any], Any] | None = None
    """round index (0-based, traced or not) -> which phase; None: one after another."""
    local_parts: tuple[frozenset[str], ...] = ()
    """Parts of ``trained`` for methods whose local steps differ: step i of a round trains part i modulo their
    number, with the others as if frozen; all of them are sent."""
    filtered: Callable[[Adapters], Adapters] = lambda gradient: gradient
    """(a private gradient) -> what the optimiser gets: post-processing."""
    detour: Detour = LORA
    """What stands beside each layer, with which leaves."""
    kept: frozenset[str] = frozenset()
    """LoRA leaves that nobody trains but ``read`` changes: they are sent to the clients."""
    personal: frozenset[str] = frozenset()
    """Trained LoRA leaves that stay at their client."""
    upload: Callable[[Adapters, Adapters], Adapters] = lambda start, end: end
    """(server's leaves at the start of the round, the client's at the end) -> what it sends."""
    linear: bool = True
    """Whether ``upload`` is linear in the client's leaves, so that a sum of uploads is one of the sum."""
    read: Callable[[Adapters, Adapters, Adapters, Array], Adapters] = (
        lambda state, mean, uploads, weights: merge(state, mean)
    )
    """(all the server's leaves, mean upload, stacked uploads, weights) -> the server's next leaves. An empty
    slot of the cohort has weight 0 and holds the server's own leaves."""
    reads_uploads: bool = False
    """Whether ``read`` needs each client's upload and not the mean alone."""
    begin: Callable[[Array, dict[str, tuple[int, ...]], Array, int], Leaves] | None = None
    """(a layer's W, its leaves' shapes, public root key, its number) -> leaves that start otherwise than at
    zero or as ``drawn``. It sees weights and the public seed only, so it is free under DP."""
    begins_alike: bool = False
    """Whether ``begin`` is the same for every seed."""
    redrawn: tuple[str, ...] = ()
    """Factors that are drawn anew, from the public seed, before every round."""
    wire: Callable[[Adapters], tuple[Adapters, Adapters]] | None = None
    """(server's leaves) -> trees of what a client really sends and receives in a round, where messages go
    another way than the computation; None: ``upload``, and what the round before changed."""
    mixed_ranks: bool = False
    """Whether clients may have ranks of their own, the rest of A's columns and B's rows being zero."""
    exact: bool = False
    """Whether the server's model after a round is the mean of the clients' models."""
    shares_nothing: bool = False
    """Baseline: each client alone, its head included."""
    pooled: bool = False
    """Baseline: all data in one place, as a single client."""
    sentence: str = ""
    """One line for lists and reports."""

    @property
    def parts(self) -> tuple[frozenset[str], ...]:
        """LoRA leaves trained in each phase; a single one for most methods."""
        return self.phases or (self.trained,)

    def phase_at(self, round_index: Any) -> Any:
        """Returns the phase of a round; works on traced numbers too."""
        if self.phase_of is not None:
            return self.phase_of(round_index)
        return round_index % len(self.parts)

    @property
    def is_baseline(self) -> bool:
        """Whether it is a yardstick rather than a federated method."""
        return self.shares_nothing or self.pooled
