"""Examples of a draw laid one after another into rows of tokens, so that nothing but row ends is padding.

Comes after ``cohort`` (which draws) and before ``probes`` (which needs no example to have a row of its own).
Everything is static but for how many rows a draw fills.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax.cohort import Batch, ClientData, hidden_of

NOBODY = -1
"""Owner of a padded token."""

FILLED = 0.85
"""Share of a row's tokens that are real, about: what plans reckon with."""

LEAST_TOKENS = 4
"""On the host a row of ``width`` tokens holds at most ``width / LEAST_TOKENS`` examples."""


class Rows(NamedTuple):
    """Where the examples of a draw lie; the draw's slots are ordered longest first."""

    slots: Batch
    """The draw, reordered."""
    row: Int[Array, " slot"]
    """The row that an example lies in."""
    start: Int[Array, " slot"]
    """The token of that row at which it begins."""
    count: Int[Array, ""]
    """Rows in use."""


class Packed(NamedTuple):
    """Some rows as a model takes them."""

    input_ids: Int[Array, "row token"]
    token_type_ids: Int[Array, "row token"]
    owner: Int[Array, "row token"]
    """The slot whose token this is, or NOBODY."""
    places: Int[Array, "row token"]
    """Position within the example, from 0."""
    first: Int[Array, " slot"]
    """Flat index of an example's first token; anywhere for an example that is not in these rows."""
    hidden: Float[Array, "row token feature"] | None = None
    """What the frozen blocks give every token, where that is kept."""

    @property
    def seen(self) -> Bool[Array, "row token token"]:
        """Which tokens a token looks at: those of its own example."""
        owner = self.owner
        return (owner[:, :, None] == owner[:, None, :]) & (owner >= 0)[:, :, None]

    def first_tokens(
        self, hidden: Float[Array, "row token feature"]
    ) -> Float[Array, "slot feature"]:
        """Returns the features of every example's first token."""
        return hidden.reshape(-1, hidden.shape[-1])[self.first]

    def means(self, hidden: Float[Array, "row token feature"]) -> Float[Array, "slot feature"]:
        """Returns the mean over every example's tokens; a sum by owner, so nobody's nan meets another."""
        count = jnp.maximum(self.totals(jnp.ones(self.owner.shape, jnp.float32)), 1)
        return self.totals(hidden) / count[:, None].astype(hidden.dtype)

    def totals(self, values: Float[Array, "row token *feature"]) -> Float[Array, "slot *feature"]:
        """Returns the sum over every example's tokens."""
        slots = self.first.shape[0]
        owner = jnp.where(self.owner < 0, slots, self.owner).reshape(-1)
        flat = values.reshape(-1, *values.shape[2:])
        return jnp.zeros((slots, *flat.shape[1:]), flat.dtype).at[owner].add(flat, mode="drop")


def pack(batch: Batch, lengths: Int[Array, " slot"], width: int) -> Rows:
    """Lays a draw into rows of ``width`` tokens: longest first, each into the first row with room.

    Guarantee: every real example lies whole in one row, and no token belongs to two.

    Args:
        batch: the draw, longest example first.
        lengths: tokens of every slot, at most ``width``.
        width: tokens of a row.
    """
    capacity = lengths.shape[0]
    needed = jnp.where(batch.is_real, lengths, 0)

    def place(room, length):
        row = jnp.argmax(room >= length)
        return room.at[row].add(-length), (row, width - room[row])

    room, (row, start) = jax.lax.scan(place, jnp.full(capacity, width, jnp.int32), needed)
    return Rows(batch, row, start, jnp.sum(room < width))


def gather(data: ClientData, rows: Rows, begin: Int[Array, ""], count: int, width: int) -> Packed:
    """Returns ``count`` rows from row ``begin`` on, with the tokens that lie in them."""
    slots = rows.slots.rows
    here = rows.slots.is_real & (rows.row >= begin) & (rows.row < begin + count)
    first = jnp.where(here, (rows.row - begin) * width + rows.start, 0)
    marks = jnp.full(count * width, NOBODY, jnp.int32)
    marks = marks.at[jnp.where(here, first, count * width)].set(
        jnp.arange(slots.shape[0]), mode="drop"
    )
    # Within a row later slots lie behind earlier ones: the largest mark so far is the owner.
    latest = jax.lax.cummax(marks.reshape(count, width), axis=1)
    places = jnp.arange(width)[None] - rows.start[latest]
    owner = jnp.where((latest >= 0) & (places < data.lengths[slots[latest]]), latest, NOBODY)
    places = jnp.where(owner >= 0, places, 0)

    def tokens(name):
        if name not in data.inputs:
            return jnp.zeros((count, width), jnp.int32)
        return jnp.where(owner >= 0, data.inputs[name][slots[owner], places], 0)

    hidden = None
    if data.prefix is not None:
        hidden = hidden_of(data.prefix, slots[owner], places, owner >= 0)
    return Packed(tokens("input_ids"), tokens("token_type_ids"), owner, places, first, hidden)


def pack_on_host(
    inputs: dict[str, np.ndarray],
    lengths: np.ndarray,
    width: int,
    count: int,
    hidden: Sequence[np.ndarray] | None = None,
) -> Iterator[tuple[np.ndarray, Packed]]:
    """Packs known examples (for evaluation): yields which ones, and their ``count`` rows, all of one shape.

    ``chosen[slot]`` is the example of a slot; slots behind it are empty.

    Args:
        inputs: of the examples.
        lengths: their tokens.
        width: tokens of a row.
        count: rows that are yielded together.
        hidden: what the frozen blocks give each of them (token, feature), where that is kept.
    """
    lengths = np.maximum(lengths, 1)  # as in ``cohort.client_data``
    rows = _fill(lengths, width)
    slots = count * (width // LEAST_TOKENS)
    for begin in range(0, len(rows), count):
        here = rows[begin : begin + count]
        chosen = np.array([example for row in here for example in row])
        tokens: Any = np.zeros((4, count, width), np.int32)
        ids, types, owner, places = tokens
        first: Any = np.zeros(slots, np.int32)
        kept: Any = hidden and np.zeros((count, width, hidden[0].shape[1]), hidden[0].dtype)
        owner[:] = NOBODY
        slot = 0
        for row, examples in enumerate(here):
            start = 0
            for example in examples:
                length = lengths[example]
                place = row, slice(start, start + length)
                ids[place] = inputs["input_ids"][example, :length]
                if "token_type_ids" in inputs:
                    types[place] = inputs["token_type_ids"][example, :length]
                owner[place], places[place] = slot, np.arange(length)
                if hidden:
                    kept[place] = hidden[example]
                first[slot] = row * width + start
                start, slot = start + length, slot + 1
        yield chosen, Packed(ids, types, owner, places, first, kept)


def _fill(lengths: np.ndarray, width: int) -> list[list[int]]:
    """Returns which examples share a row: longest first, each into the fullest row with room."""
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(width + 1)]  # by the room that is left
    for example in np.argsort(-lengths, kind="stable"):
        length = int(lengths[example])
        room = next((r for r in range(length, width + 1) if open_rows[r]), width)
        if open_rows[room]:
            row = open_rows[room].pop()
        else:
            row = len(rows)
            rows.append([])
        rows[row].append(int(example))
        if len(rows[row]) < width // LEAST_TOKENS:
            open_rows[room - length].append(row)
    return rows
