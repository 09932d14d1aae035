"""What crosses the wire in a round, in bytes: counted from the shapes that are really sent."""

from collections.abc import Callable

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
        return _shrunk(up, None, compression), nbytes(down)
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
    up = _shrunk(sent, rank, compression)
    known = {"residual", *method.redrawn, *(("lora_b",) if method.redrawn else ())}
    down = _within(select(adapters, before - known), rank)
    if controls:
        down = down + _within(select(adapters, before), rank)
    # A residual comes as it is, or as the factors that it was made of.
    residual = nbytes(select(adapters, {"residual"}))
    factors = nbytes(select(adapters, {"lora_a", "lora_b"}))
    return up, down + min(residual, uploads * factors)


def _shrunk(sent: Adapters, rank: np.ndarray | None, compression: Compression | None):
    """Returns the bytes of an upload in the form in which it is sent."""
    if compression is None:
        return _within(sent, rank)
    return _within(sent, rank, lambda own: compression.nbytes(own, sent))


def _within(sent: Adapters, rank: np.ndarray | None, count: Callable[[Adapters], int] = nbytes):
    """Returns the bytes of leaves, factors cut to a client's own rank."""
    if rank is None:
        return count(sent)
    each = {one: count(_cut(sent, one)) for one in set(rank.tolist())}
    return np.asarray([each[one] for one in rank.tolist()], np.int64)


def _cut(sent: Adapters, rank: int) -> Adapters:
    """Returns the shapes of what is a client's own."""

    def own(name, leaf):
        shape = list(leaf.shape)
        if (axis := RANK_AXIS.get(name)) is not None:
            shape[axis] = min(rank, shape[axis])
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    return {
        layer: {name: own(name, leaf) for name, leaf in found.items()}
        for layer, found in sent.items()
    }


def what_is_counted(method: Method, compression: str) -> str:
    """Says what the bytes are of, and what is not sent."""
    if method.pooled:
        return "no messages: all data lie in one place, and had to be moved there"
    up = "float32" if compression == "none" else compression
    return (
        f"uploads as {up}, downloads as float32; what is frozen is not sent: each site has it from the "
        "public seed, the model, or the adapter that was started from"
    )
