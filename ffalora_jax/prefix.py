"""The prefix cache: what lies below the lowest adapter never changes, so it is computed once an example.

With ``method.layers`` on the last blocks, the embeddings and all blocks below them give the same in every
step of every round; and so do the products of frozen weights in the block above that no adapter has touched
yet (its queries, keys and values before the detours). A training step then starts from them.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jaxtyping import Array

from ffalora_jax.cohort import Prefix
from ffalora_jax.errors import InputError
from ffalora_jax.lora import LoraModel
from ffalora_jax.memory import free_bytes
from ffalora_jax.text import Encoded
from ffalora_jax.types import Tree

BATCH = 64
SHARE = 0.25
"""Of the free memory, that ``prefix_cache = auto`` takes at most."""
WORTH = 1.5
"""Times that an example has to be computed in a run, on average, before keeping it pays."""


def kept_prefix(
    setting: str,
    model: LoraModel,
    backbone: Tree,
    encoded: Encoded,
    rows: np.ndarray,
    draws: int,
    is_own: bool = False,
) -> tuple[Prefix | None, str]:
    """Returns what is kept (on the host), or None, and why.

    Args:
        setting: ``prefix_cache``.
        model: with its adapters.
        backbone: on the devices.
        encoded: all examples.
        rows: those that are trained on.
        draws: how many examples the whole run is expected to compute.
        is_own: whether the model is the user's own module, of which nothing is known.

    Raises:
        InputError: ``always``, where it cannot be done.
    """
    nbytes, states = 0, partial(_states, model)
    if model.num_frozen and not is_own:
        nbytes = _bytes(states, backbone, encoded, rows)
        if (
            nbytes > SHARE * free_bytes()
        ):  # a quarter of it or so is what blocks gave, the rest products
            states = partial(_states, model, products=False)
            nbytes = _bytes(states, backbone, encoded, rows)
    reason = _why_not(setting, model, is_own, nbytes)
    if reason is None and setting == "auto" and draws < WORTH * len(rows):
        reason = (
            f"the run computes {draws:,} examples in all, keeping {len(rows):,} would take longer"
        )
    if reason is None:
        kept = _fill(states, backbone, encoded, rows)
        blocks = "1 block" if model.num_frozen == 1 else f"{model.num_frozen} blocks"
        return kept, f"{blocks} computed once, {nbytes / 2**20:.0f} MiB kept"
    if setting == "always":
        raise InputError(f"prefix_cache = 'always' cannot be had: {reason}. Use auto.")
    return None, reason


def _why_not(setting: str, model: LoraModel, is_own: bool, nbytes: int) -> str | None:
    if setting == "never":
        return "prefix_cache = never"
    if is_own:
        return "the model is none of the package's: what its blocks look at is not known"
    if model.num_frozen == 0:
        return "no block lies below all adapters (method.layers), or they are stacked (scan_layers)"
    if setting == "auto" and nbytes > SHARE * free_bytes():
        return (
            f"it would take {nbytes / 2**30:.1f} GiB, more than a quarter of what is free "
            "(prefix_cache = always takes it)"
        )
    return None


def _bytes(states: Callable, backbone: Tree, encoded: Encoded, rows: np.ndarray) -> int:
    one = {name: leaf[:1] for name, leaf in _seen(encoded).items()}
    state = jax.eval_shape(states, backbone, one)
    tokens = _counts(encoded, state.shape[1])[rows].sum()
    return int(tokens) * state.shape[2] * state.dtype.itemsize


def _fill(states: Callable, backbone: Tree, encoded: Encoded, rows: np.ndarray) -> Prefix:
    """Computes the states of some examples, those of like length together; the others have no tokens."""
    states, inputs = jax.jit(states), _seen(encoded)
    order = rows[np.argsort(encoded.lengths[rows], kind="stable")]
    found: dict[int, np.ndarray] = {}
    width = 1
    for begin in range(0, len(order), BATCH):
        here = order[begin : begin + BATCH]
        cut = next(w for w in encoded.widths if w >= encoded.lengths[here].max())
        padded = np.pad(here, (0, BATCH - len(here)), mode="edge")
        given = {n: x[padded, :cut] if x.ndim == 2 else x[padded] for n, x in inputs.items()}
        hidden = np.asarray(states(backbone, given))
        width = max(width, hidden.shape[1])
        counts = _counts(encoded, hidden.shape[1])[here]
        found |= {row: hidden[k, :n] for k, (row, n) in enumerate(zip(here, counts, strict=True))}
    counts = np.zeros(len(encoded.lengths), np.int32)
    counts[rows] = [len(found[row]) for row in rows]
    starts = np.zeros_like(counts)
    starts[rows] = np.cumsum(counts[rows]) - counts[rows]
    if "input_ids" in inputs:
        width = inputs["input_ids"].shape[1]
    places = np.arange(width, dtype=np.int32)
    return Prefix(np.concatenate([found[row] for row in rows]), starts, counts, places)


def _states(
    model: LoraModel, backbone: Tree, inputs: dict[str, Array], products: bool = True
) -> Array:
    assert model.apply_frozen is not None, "asked where blocks are frozen"
    return model.apply_frozen(backbone, products=products, **inputs)


def _seen(encoded: Encoded) -> dict[str, np.ndarray]:
    """Returns the inputs that the model itself takes."""
    return {name: leaf for name, leaf in encoded.inputs.items() if name != "response_mask"}


def _counts(encoded: Encoded, width: int) -> np.ndarray:
    """Returns how many tokens of every example there are: all of an image, the real ones of a text."""
    if "input_ids" not in encoded.inputs:
        return np.full(len(encoded.lengths), width, np.int32)
    return np.maximum(encoded.lengths, 1).astype(np.int32)  # as in ``cohort.host_data``
