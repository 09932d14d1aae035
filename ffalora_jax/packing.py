"""Examples of a draw laid one after another into rows of tokens, so that nothing but row ends is padding.

Comes after ``cohort`` (which draws) and before ``probes`` (which needs no example to have a row of its own).
Everything is static but for how many rows a draw fills.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax.cohort import Batch, ClientData

NOBODY = -1
"""Owner of a padded token."""


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

    return Packed(tokens("input_ids"), tokens("token_type_ids"), owner, places, first)
