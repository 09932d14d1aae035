"""The prefix cache: what lies below the lowest adapter never changes, so it is computed once an example.

With ``method.layers`` on the last blocks, the embeddings and all blocks below them give the same in every
step of every round; and so do the products of frozen weights in the block above that no adapter has touched
yet (its queries, keys and values before the detours). A training step then starts from them.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ffalora_jax.cache import folder
from ffalora_jax.cohort import Prefix
from ffalora_jax.errors import InputError
from ffalora_jax.lora import LoraModel
from ffalora_jax.memory import free_bytes
from ffalora_jax.text import Encoded
from ffalora_jax.types import Tree

BATCH = 64
SHARE = 0.25
"""Of the free memory, or of the free disk, that is taken at most unless ``prefix_cache = always`` says so."""
WORTH = 1.5
"""Times that an example has to be computed in a run, on average, before keeping it pays."""


class _Form(NamedTuple):
    """What is kept of every token."""

    states: Callable[[Tree, dict[str, Array]], Array]
    """(backbone, inputs) -> (example, token, feature)."""
    tokens: np.ndarray
    """How many of every example."""
    features: int
    dtype: np.dtype

    def nbytes(self, rows: np.ndarray) -> int:
        return int(self.tokens[rows].sum()) * self.features * self.dtype.itemsize


class Seen(NamedTuple):
    """What a kept prefix follows from."""

    model: LoraModel
    """With its adapters."""
    backbone: Tree
    """On the devices."""
    encoded: Encoded
    """All examples."""
    is_own: bool = False
    """Whether the model is the user's own module, of which nothing is known."""
    is_dealt: bool = False
    """Whether a round's few clients are dealt from the host: then it may lie in a file."""


def is_worth(draws: int, rows: np.ndarray) -> bool:
    """Whether so many examples are computed in all that keeping these pays."""
    return draws >= WORTH * len(rows)


def kept_prefix(
    setting: str, seen: Seen, rows: np.ndarray, draws: int
) -> tuple[Prefix | None, str]:
    """Returns what is kept (on the host), or None, and why.

    Args:
        setting: ``prefix_cache``.
        seen: what it follows from.
        rows: those that are trained on.
        draws: how many examples all that share it are expected to compute.

    Raises:
        InputError: ``always``, where it cannot be done.
    """
    model = seen.model
    reason, form, in_file = _never(setting, model, seen.is_own), None, False
    if reason is None:
        form, in_file, reason = _choose(setting, seen, rows)
    if reason is None and setting == "auto" and not is_worth(draws, rows):
        reason = (
            f"the run computes {draws:,} examples in all, keeping {len(rows):,} would take longer"
        )
    if reason is None and form is not None:
        kept = _fill(form, seen.backbone, seen.encoded, rows, in_file)
        blocks = "1 block" if model.num_frozen == 1 else f"{model.num_frozen} blocks"
        where = "kept in a file" if in_file else "kept"
        return kept, f"{blocks} computed once, {form.nbytes(rows) / 2**20:.0f} MiB {where}"
    if setting == "always":
        raise InputError(f"prefix_cache = 'always' cannot be had: {reason}. Use auto.")
    return None, str(reason)


class ScoredPrefix:
    """What lies below the adapters of the examples that many runs score; computed when first asked for."""

    def __init__(self, form: _Form, seen: Seen, room: float):
        self._form, self._seen, self._room = form, seen, room
        self._states: dict[int, np.ndarray] = {}

    def of(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns the states (token, feature) of each of some examples."""
        unknown = rows[[int(row) not in self._states for row in rows]]
        if len(unknown):
            held = np.fromiter(self._states, int, len(self._states))
            if self._form.nbytes(held) + self._form.nbytes(unknown) > self._room:
                self._states, unknown = {}, rows
            made = _fill(self._form, self._seen.backbone, self._seen.encoded, unknown, False)
            ends = made.starts + made.counts
            self._states |= {int(k): made.hidden[made.starts[k] : ends[k]] for k in unknown}
        return [self._states[int(row)] for row in rows]


def scored_prefix(setting: str, seen: Seen, rows: np.ndarray) -> ScoredPrefix | None:
    """Returns what keeps the states of scored examples; None where ``kept_prefix`` would keep nothing.

    Args:
        setting: as there.
        seen: as there.
        rows: those that one run scores.
    """
    if len(rows) == 0 or _never(setting, seen.model, seen.is_own) is not None:
        return None
    form, _, reason = _choose(setting, seen._replace(is_dealt=False), rows)
    return None if reason is not None else ScoredPrefix(form, seen, SHARE * free_bytes())


def _never(setting: str, model: LoraModel, is_own: bool) -> str | None:
    if setting == "never":
        return "prefix_cache = never"
    if is_own:
        return "the model is none of the package's: what its blocks look at is not known"
    if model.num_frozen == 0:
        return "no block lies below all adapters (method.layers), or they are stacked (scan_layers)"
    return None


def _choose(setting: str, seen: Seen, rows: np.ndarray) -> tuple[_Form, bool, str | None]:
    """Returns what is kept, whether in a file, and why not: products are left out before anything is."""
    room = SHARE * free_bytes()
    for products in (True, False):
        form = _form(seen, products)
        if form.nbytes(rows) <= room:
            return form, False, None
    if seen.is_dealt and form.nbytes(rows) <= SHARE * shutil.disk_usage(folder("prefix")).free:
        return form, True, None
    if setting == "always":
        return form, False, None
    return (
        form,
        False,
        f"it would take {form.nbytes(rows) / 2**30:.1f} GiB, more than a quarter of what is free "
        "(prefix_cache = always takes it)",
    )


def _form(seen: Seen, products: bool) -> _Form:
    model, encoded = seen.model, seen.encoded
    assert model.apply_frozen is not None, "asked where blocks are frozen"
    apply = partial(model.apply_frozen, products=products)

    def states(backbone, inputs):
        return apply(backbone, **inputs)

    one = {name: leaf[:1] for name, leaf in _inputs(encoded).items()}
    state = jax.eval_shape(states, seen.backbone, one)
    tokens = np.full(len(encoded.lengths), state.shape[1], np.int32)  # all of an image
    if "input_ids" in encoded.inputs:
        tokens = np.maximum(encoded.lengths, 1).astype(np.int32)  # as in ``cohort.host_data``
    return _Form(states, tokens, state.shape[2], np.dtype(state.dtype))


def _fill(form: _Form, backbone: Tree, encoded: Encoded, rows: np.ndarray, in_file: bool) -> Prefix:
    """Computes the states of some examples, those of like length together; the others have no tokens."""
    states, inputs = jax.jit(form.states), _inputs(encoded)
    counts = np.zeros_like(form.tokens)
    counts[rows] = form.tokens[rows]
    starts = np.cumsum(counts) - counts
    kept = _table((int(counts.sum()), form.features), form.dtype, in_file)
    order = rows[np.argsort(encoded.lengths[rows], kind="stable")]
    for begin in range(0, len(order), BATCH):
        here = order[begin : begin + BATCH]
        cut = next(w for w in encoded.widths if w >= encoded.lengths[here].max())
        padded = np.pad(here, (0, BATCH - len(here)), mode="edge")
        given = {n: x[padded, :cut] if x.ndim == 2 else x[padded] for n, x in inputs.items()}
        hidden = np.asarray(states(backbone, given))
        for row, found in zip(here, hidden, strict=False):
            kept[starts[row] : starts[row] + counts[row]] = found[: counts[row]]
    places = np.arange(counts.max() if "input_ids" not in inputs else inputs["input_ids"].shape[1])
    return Prefix(kept, starts.astype(np.int32), counts, places.astype(np.int32))


def _table(shape: tuple[int, int], dtype: np.dtype, in_file: bool) -> np.ndarray:
    """Returns room for the states; a file has no name, so it is gone with the process, however it ends."""
    if not in_file:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder("prefix")) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def _inputs(encoded: Encoded) -> dict[str, np.ndarray]:
    """Returns the inputs that the model itself takes."""
    return {name: leaf for name, leaf in encoded.inputs.items() if name != "response_mask"}
