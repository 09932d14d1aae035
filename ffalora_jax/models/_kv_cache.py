"""Keys and values of the tokens so far, in static slots, for decoding token by token.

A slot is a place in the arrays and no position: rows of a batch have prompts of different lengths, so a
slot of padding lies between a short prompt and what follows it. A token's position is the number of real
tokens before it in its row.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Cache(NamedTuple):
    """State of decoding: what the next token needs of the earlier ones."""

    keys: tuple[Float[Array, "*batch slot head channel"], ...]
    """One array a layer, after rotation: a key is turned once, at its own position."""
    values: tuple[Float[Array, "*batch slot head channel"], ...]
    is_token: Bool[Array, "*batch slot"]
    """False: empty, or padding."""
    next_slot: Int[Array, ""]
    """Slots that are taken; the same in every row."""


def empty_cache(
    layers: int, batch: tuple[int, ...], slots: int, heads: int, channels: int, dtype
) -> Cache:
    """Returns a cache with no tokens."""
    zeros = tuple(jnp.zeros((*batch, slots, heads, channels), dtype) for _ in range(layers))
    return Cache(zeros, zeros, jnp.zeros((*batch, slots), bool), jnp.int32(0))


def mark(cache: Cache, is_token: Bool[Array, "*batch token"]) -> Bool[Array, "*batch slot"]:
    """Returns the slots that hold real tokens once the new ones are written."""
    return jax.lax.dynamic_update_slice_in_dim(cache.is_token, is_token, cache.next_slot, axis=-1)


def write(
    slots: Float[Array, "*batch slot head channel"],
    new: Float[Array, "*batch token head channel"],
    first: Int[Array, ""],
) -> Float[Array, "*batch slot head channel"]:
    """Puts the new tokens' keys or values into the slots from ``first`` on."""
    return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), first, axis=-3)


def positions(
    is_token: Bool[Array, "*batch slot"], first: int | Int[Array, ""], count: int
) -> Int[Array, "*batch token"]:
    """Returns the positions of the ``count`` tokens from slot ``first`` on."""
    before = jnp.cumsum(is_token, axis=-1, dtype=jnp.int32) - 1
    return jnp.maximum(jax.lax.dynamic_slice_in_dim(before, first, count, axis=-1), 0)


def seen_by(
    is_token: Bool[Array, "*batch slot"], first: int | Int[Array, ""], count: int
) -> Bool[Array, "*batch token slot"]:
    """Says which slots each of the ``count`` tokens from slot ``first`` on looks at: real, not later."""
    slots = is_token.shape[-1]
    earlier = jnp.arange(slots)[None] <= first + jnp.arange(count)[:, None]
    shape = (*is_token.shape[:-1], count, slots)
    return jnp.broadcast_to(is_token[..., None, :], shape) & jnp.broadcast_to(earlier, shape)


def last_token(
    x: Float[Array, "*batch token feature"], is_token: Bool[Array, "*batch token"]
) -> Float[Array, "*batch feature"]:
    """Returns the features of each row's last real token."""
    last = jnp.max(jnp.where(is_token, _arange_like(is_token), 0), axis=-1)
    return jnp.take_along_axis(x, last[..., None, None], axis=-2)[..., 0, :]


def _arange_like(is_token: Bool[Array, "*batch token"]) -> Int[Array, "*batch token"]:
    return jnp.broadcast_to(jnp.arange(is_token.shape[-1]), is_token.shape)
