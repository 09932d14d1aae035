"""Clipped sums without per-example gradients: one backward pass to a zero beside every adapted layer.

With h_t = x_t A kept from the forward pass and d_t the gradient with respect to a zero (the *probe*) added
to the layer's output, the gradient of an example's loss is, summed over its own tokens,

    dB = scaling sum_t h_t^T d_t,     dA = scaling sum_t x_t^T (d_t B^T).

Its squared norm is sum_{t,u} (l_t . l_u)(r_t . r_u) over pairs of its tokens (Goodfellow 2015,
arXiv:1510.01799), and the clipped sum is one product, sum_t c(t) l_t^T r_t. So examples may lie anywhere
in a row, and nothing is ever stored once an example but its norm.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ffalora_jax import adapters as leaves
from ffalora_jax.clipping import ClipFacts, facts_of, scale_of
from ffalora_jax.cohort import Batch, ClientData, longest_first
from ffalora_jax.detours import EXACT, Pair, ones_beside
from ffalora_jax.lora import LoraModel
from ffalora_jax.packing import Packed, gather, pack
from ffalora_jax.tasks import Task
from ffalora_jax.types import Adapters, Tree

ROW_TOKENS, BLOCK_TOKENS = 48, 256
"""Tokens of a row (at least) and, on a CPU, of the rows that are computed at once."""

CANCELLED = 2.0**-23
"""Share of the tokens' own squares added to a squared norm for each token of a row (48 and more): where
tokens cancel one another, the rounding of the products is of their size and not of the sum's, and a norm too
small would clip too little. Of T tokens the pairs' products are up to T times their own squares."""


class Packing(NamedTuple):
    """How rows are computed: static sizes, no influence on the result beyond rounding."""

    width: int
    """Tokens of a row."""
    rows: int
    """Rows at once."""


def packing_for(
    model: LoraModel, inputs: dict[str, Any], examples: int | None = None
) -> Packing | None:
    """Returns how texts share rows; None where model or data has no form for it.

    Args:
        model: with its adapters.
        inputs: of the examples, whose shapes matter.
        examples: of full length, as many tokens of which are computed at once; None: as suits a CPU's cache.
    """
    ids = inputs.get("input_ids")
    if model.apply_probed is None or ids is None or "response_mask" in inputs:
        return None
    width = max(ids.shape[1], ROW_TOKENS)
    tokens = BLOCK_TOKENS if examples is None else examples * ids.shape[1]
    return Packing(width, max(1, tokens // width))


def packed_clipped_sum(
    model: LoraModel,
    task: Task,
    backbone: Tree,
    frozen: Adapters,
    trained: Adapters,
    data: ClientData,
    batch: Batch,
    clip_norm: float | Float[Array, ""],
    packing: Packing,
) -> tuple[Tree, ClipFacts]:
    """Does ``clipping.clipped_sum`` over a draw, packed into rows, as many blocks of rows as it filled.

    Guarantee: as ``clipped_sum``: each example's gradient over all trained leaves together is clipped to
    ``clip_norm``, examples that are not finite count as zero and harm no other, norms and sums are
    float32. The trip count depends on the draw: fixed work needs ``packing = false``.
    """
    batch = longest_first(batch, data.lengths)
    rows = pack(batch, data.lengths[batch.rows], packing.width)
    adapters, apply = leaves.merge(frozen, trained), model.apply_probed
    assert apply is not None, "chosen by prepare, where the model has that form"
    labels = data.labels[batch.rows]

    def block(index):
        begin = index * packing.rows
        packed = gather(data, rows, begin, packing.rows, packing.width)
        here = batch.is_real & (rows.row >= begin) & (rows.row < begin + packing.rows)

        def total_loss(probes):
            logits, given = apply(backbone, adapters, probes, packed)
            losses = jax.vmap(lambda row, label: task.loss(lambda **_: row, {}, label))(
                logits, labels
            )
            return jnp.sum(jnp.where(here, losses, 0.0)), (losses, given)

        probes = _probes(model, trained, packed)
        slopes, (losses, given) = jax.grad(total_loss, has_aux=True)(probes)
        pairs = _pairs(model, adapters, trained, given, slopes)
        norms = jnp.sqrt(_squared_norms(pairs, packed))
        kept = here & jnp.isfinite(norms) & jnp.isfinite(losses)
        scale = scale_of(kept, norms, clip_norm)
        total = {
            layer: {
                name: _weighted(several, scale, packed).reshape(trained[layer][name].shape)
                for name, several in found.items()
            }
            for layer, found in pairs.items()
        }
        return total, facts_of(here, kept, norms, losses, clip_norm)

    shapes = jax.eval_shape(block, jnp.int32(0))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.fori_loop(
        0,
        -(-rows.count // packing.rows),
        lambda i, total: jax.tree.map(jnp.add, total, block(i)),
        zero,
    )


def _probes(model: LoraModel, trained: Adapters, packed: Packed) -> dict[str, Array]:
    """Returns a zero for the output of every layer with trained leaves."""
    found = {}
    for layer in trained:
        places = packed.owner if layer in model.adapted else packed.first
        found[layer] = jnp.zeros((*places.shape, model.outputs[layer]), jnp.float32)
    return found


def _pairs(model, adapters, trained, given, slopes) -> dict[str, dict[str, tuple[Pair, ...]]]:
    pairs: dict[str, dict[str, tuple[Pair, ...]]] = {}
    for layer, names in trained.items():
        x, d = given[layer].astype(jnp.float32), slopes[layer].astype(jnp.float32)
        if layer in model.adapted:
            every = model.detour.pairs(adapters[layer], x, d, model.adapted[layer].scaling)
        else:
            every = {"head_kernel": (Pair(x, d),), "head_bias": (Pair(ones_beside(d), d),)}
        pairs[layer] = {name: every[name] for name in names}
    return pairs


def _squared_norms(
    pairs: dict[str, dict[str, tuple[Pair, ...]]], packed: Packed
) -> Float[Array, " slot"]:
    """Returns every example's squared gradient norm over all leaves."""
    by_slot = jnp.zeros(packed.first.shape, jnp.float32)
    products = jnp.zeros(packed.seen.shape, jnp.float32)
    alone = jnp.zeros(packed.owner.shape, jnp.float32)
    for found in pairs.values():
        for left, right in itertools.chain.from_iterable(found.values()):
            if left.ndim == 2:
                by_slot += jnp.sum(left**2, axis=-1) * jnp.sum(right**2, axis=-1)
            else:
                products += _products(left) * _products(right)
                alone += jnp.sum(left**2, axis=-1) * jnp.sum(right**2, axis=-1)
    own = jnp.sum(jnp.where(packed.seen, products, 0.0), axis=-1)
    share = CANCELLED * packed.owner.shape[-1]
    return jnp.maximum(by_slot + packed.totals(own), 0.0) + share * packed.totals(alone)


def _products(x: Float[Array, "row token feature"]) -> Float[Array, "row token token"]:
    return jnp.einsum("rtf,ruf->rtu", x, x, precision=EXACT)


def _weighted(
    pairs: tuple[Pair, ...], scale: Float[Array, " slot"], packed: Packed
) -> Float[Array, "pair a b"]:
    """Returns sum_t scale(t) left_t^T right_t of each; what weighs nothing is left out, whatever it holds."""
    return jnp.stack([_weighted_one(pair, scale, packed) for pair in pairs])


def _weighted_one(pair: Pair, scale: Float[Array, " slot"], packed: Packed) -> Float[Array, "a b"]:
    left, right = pair
    weight = scale
    if left.ndim == 3:
        weight = jnp.where(packed.owner >= 0, scale[packed.owner], 0.0)
    kept = (weight > 0)[..., None]
    left = jnp.where(kept, left * weight[..., None], 0.0).reshape(-1, left.shape[-1])
    right = jnp.where(kept, right, 0.0).reshape(-1, right.shape[-1])
    return jnp.matmul(left.T, right, precision=EXACT)
