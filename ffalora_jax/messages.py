"""What crosses the wire in a round, in bytes: counted from the shapes that are really sent."""

import jax
import numpy as np

from ffalora_jax.adapters import RANK_AXIS, nbytes, select
from ffalora_jax.compression import Compression
from ffalora_jax.controls import beside
from ffalora_jax.methods import Method
from ffalora_jax.types import HEAD_LEAVES, Adapters


def bytes_of(
    method: Method,
    adapters: Adapters,
    uploads: int,
    round_index: int,
    rank: np.ndarray | None = None,
    compression: Compression | None = None,
    controls: bool = False,
    missed: int = 1,
):
    """Returns what a client sends and receives in a round: its upload, and what changed since it came last.

    Args:
        method: says what is sent.
        adapters: the server's leaves; only shapes matter.
        uploads: that came in the missed rounds, of whose factors a residual may be made up again.
        round_index: 0-based.
        rank: each client's own rank; then both results are arrays (client,).
        compression: of the upload.
        controls: whether control variates go along, one number for each that is trained.
        missed: rounds before this one whose changes the client lacks; 1 for who was there in the last one.
    """
    if method.pooled:
        return 0, 0
    if method.wire is not None:
        up, down = jax.eval_shape(method.wire, adapters)
        return nbytes(up) if compression is None else compression.nbytes(up), nbytes(down)
    parts = method.parts
    here = select(adapters, parts[int(method.phase_at(round_index))] | set(HEAD_LEAVES))
    before = method.kept | set(HEAD_LEAVES)
    for earlier in range(max(round_index, 1) - 1, max(round_index - missed, 0) - 1, -1):
        before |= parts[int(method.phase_at(earlier))]
        if before >= method.trained:
            break

    def upload(active):
        sent = method.upload(active, active)
        return beside(sent, active, 1.0) if controls else sent

    sent = jax.eval_shape(upload, here)
    up = _within(sent, rank) if compression is None else compression.nbytes(sent)
    known = {"residual", *method.redrawn, *(("lora_b",) if method.redrawn else ())}
    down = _within(select(adapters, before - known), rank)
    if controls:
        down = down + _within(select(adapters, before), rank)
    # A residual comes as it is, or as the factors that it was made of.
    residual = nbytes(select(adapters, {"residual"}))
    factors = nbytes(select(adapters, {"lora_a", "lora_b"}))
    return up, down + min(residual, uploads * factors)


def _within(sent: Adapters, rank: np.ndarray | None):
    """Returns the bytes of leaves, factors cut to a client's own rank."""
    if rank is None:
        return nbytes(sent)
    total = np.zeros(len(rank), np.int64)
    for found in sent.values():
        for name, leaf in found.items():
            whole, axis = leaf.size * leaf.dtype.itemsize, RANK_AXIS.get(name)
            if axis is None:
                total += whole
            else:
                total += whole // leaf.shape[axis] * np.minimum(rank, leaf.shape[axis])
    return total
