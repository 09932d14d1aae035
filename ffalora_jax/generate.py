"""Greedy decoding with a key-value cache, in one compiled call of static shapes.

Comes after ``lora``: works on the pure ``apply(backbone, adapters, ...)`` that it leaves, and on a plain
module. The model takes ``(input_ids, attention_mask, cache=..., last_only=True)`` and returns
``(logits, cache)``, as ``models.llama`` does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax.errors import positive
from ffalora_jax.types import Tree


def greedy(
    forward: Callable[..., Any] | nnx.Module,
    params: tuple[Tree, ...],
    input_ids: Int[Any, "*batch token"],
    attention_mask: Any,
    max_new_tokens: int,
    end_ids: Sequence[int],
) -> tuple[Int[Array, "*batch new"], Int[Array, "*batch"]]:
    """Continues each prompt by its most probable token, again and again, until an end token.

        x_(t+1) = argmax_v logits(x_1 .. x_t)_v

    One pass over the prompts fills the cache; then one token a step, until every row has ended. What a row
    becomes does not depend on the other rows: its positions are its own, and it sees no slot of padding.

    Args:
        forward: ``LoraModel.apply``, another pure function of that form, or a module.
        params: what ``forward`` takes before the inputs: ``(backbone, adapters)``; ``()`` for a module.
            They are arguments of the compiled program and no part of it.
        input_ids: prompts, padded at the right; a row needs at least one real token.
        attention_mask: True for real tokens; of the shape of ``input_ids``.
        max_new_tokens: static; one program is compiled for each value and shape of prompts.
        end_ids: tokens that end a row. There may be none.

    Returns:
        ``(ids, lengths)``: the new tokens, and how many of them come before the end token. From there on
        ids are zero. A length of ``max_new_tokens`` means that no end was reached.

    Raises:
        InputError: ``max_new_tokens`` below one, or more tokens in all than the model has positions.
    """
    positive(max_new_tokens=max_new_tokens)
    if isinstance(forward, nnx.Module):
        graph, leaves = nnx.split(forward)
        forward, params = _Merged(graph), (nnx.to_pure_dict(leaves), *params)
    ends = jnp.asarray(end_ids, jnp.int32)
    mask = jnp.asarray(attention_mask).astype(bool)
    return _decode(forward, max_new_tokens, params, jnp.asarray(input_ids), mask, ends)


class _Merged(NamedTuple):
    """A module as a pure function of its leaves; equal graphs share a compiled program."""

    graph: Any

    def __call__(self, leaves: Tree, *inputs: Any, **named: Any) -> Any:
        return nnx.merge(self.graph, leaves)(*inputs, **named)


class _Decoding(NamedTuple):
    """What is carried from token to token."""

    step: Int[Array, ""]
    token: Int[Array, "*batch"]
    is_going: Bool[Array, "*batch"]
    ids: Int[Array, "*batch new"]
    lengths: Int[Array, "*batch"]
    cache: Tree


@partial(jax.jit, static_argnums=(0, 1))
def _decode(forward, max_new_tokens, params, input_ids, is_token, ends):
    slots = input_ids.shape[-1] + max_new_tokens

    def choose(logits: Float[Array, "*batch vocab"], before: Bool[Array, "*batch"]):
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        is_going = before & ~jnp.isin(token, ends)
        return jnp.where(is_going, token, 0), is_going

    def is_unfinished(now: _Decoding):
        return (now.step < max_new_tokens) & jnp.any(now.is_going)

    def next_token(now: _Decoding) -> _Decoding:
        # A row that has ended goes on as padding: its own cache gets no further tokens.
        new, real = now.token[..., None], now.is_going[..., None]
        logits, cache = forward(*params, new, real, cache=now.cache, last_only=True)
        token, is_going = choose(logits, now.is_going)
        ids = now.ids.at[..., now.step].set(token)
        return _Decoding(now.step + 1, token, is_going, ids, now.lengths + is_going, cache)

    logits, cache = forward(*params, input_ids, is_token, cache=slots, last_only=True)
    token, is_going = choose(logits, jnp.ones(is_token.shape[:-1], bool))
    ids = jnp.zeros((*token.shape, max_new_tokens), jnp.int32).at[..., 0].set(token)
    start = _Decoding(jnp.int32(1), token, is_going, ids, is_going.astype(jnp.int32), cache)
    end = jax.lax.while_loop(is_unfinished, next_token, start)
    return end.ids, end.lengths
