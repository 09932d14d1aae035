"""Scores on held-out data: packed rows, or length-sorted batches of a few static shapes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ffalora_jax import adapters as leaves
from ffalora_jax.client import Frozen
from ffalora_jax.lora import LoraModel
from ffalora_jax.mesh import num_shards, over_devices
from ffalora_jax.metrics import class_metrics
from ffalora_jax.packing import Packed, pack_on_host
from ffalora_jax.prefix import ScoredPrefix
from ffalora_jax.probes import packing_for
from ffalora_jax.round import RoundState
from ffalora_jax.tasks import Task
from ffalora_jax.text import Encoded
from ffalora_jax.types import Adapters

BATCH = 64

Predict = Callable[..., np.ndarray]
"""(frozen, adapters, encoded, rows, hidden=None) -> outcomes (row, kept) in the order of ``rows``; ``hidden``
are the states (token, feature) that the blocks below the adapters give each of them, where those are kept."""


class Scores(NamedTuple):
    """Accuracy and mean loss, over all examples and per client."""

    accuracy: float
    loss: float
    per_client: tuple[float, ...]
    metrics: dict[str, float]
    """The task's own figures, over all examples together."""


def make_predictor(model: LoraModel, task: Task, mesh: Mesh | None = None) -> Predict:
    """Returns the compiled forward pass over some rows; for classes, outcomes are logits.

    Over a mesh every device does a share of what is computed at once.
    """
    padded, packed = _padded_predictor(model, task, mesh), _packed_predictor(model, mesh)

    def predict(frozen, adapters, encoded, rows, hidden=None):
        if len(rows) == 0:
            raise ValueError("Expected at least one example to predict.")
        at_once = None if jax.default_backend() == "cpu" else BATCH
        packing = packing_for(model, encoded.inputs, at_once)
        if packing is None:
            return padded(frozen, adapters, encoded, rows, hidden)
        return packed(frozen, adapters, encoded, rows, packing, hidden)

    return predict


def _padded_predictor(model: LoraModel, task: Task, mesh: Mesh | None) -> Predict:
    """Batches of examples of like length."""
    batch = -(-BATCH // num_shards(mesh)) * num_shards(mesh)

    def outcomes(params, inputs):
        return (), task.outcome(partial(model.apply, *params), inputs), ()

    @jax.jit
    def forward(frozen: Frozen, adapters: Adapters, inputs):
        params = frozen.backbone, leaves.merge(frozen.adapters, adapters)
        return over_devices(outcomes, mesh, params, inputs)[1]

    def predict(frozen, adapters, encoded, rows, hidden):
        order = np.argsort(encoded.lengths[rows], kind="stable")
        widths = encoded.widths
        parts = []
        for start in range(0, len(order), batch):
            chosen = np.pad(order[start : start + batch], (0, batch), mode="edge")[:batch]
            here = rows[chosen]
            longest = encoded.lengths[here].max()
            width = next(width for width in widths if width >= longest)
            inputs = {name: _cut(leaf[here], width) for name, leaf in encoded.inputs.items()}
            if hidden is not None:
                inputs["hidden"] = _side_by_side([hidden[k] for k in chosen], inputs, width)
            parts.append((order[start : start + batch], forward(frozen, adapters, inputs)))
        return _in_order(parts, len(rows))

    return predict


def _packed_predictor(model: LoraModel, mesh: Mesh | None) -> Callable[..., np.ndarray]:
    """Rows of texts laid one after another, as in training: a block of rows for every device."""
    shards = num_shards(mesh)

    def logits(params, packed: Packed):
        assert model.apply_probed is not None, "asked of packing_for"
        apply = partial(model.apply_probed, *params, {})
        return (), jax.lax.map(lambda block: apply(block)[0], packed), ()

    @jax.jit
    def forward(frozen: Frozen, adapters: Adapters, packed: Packed):
        params = frozen.backbone, leaves.merge(frozen.adapters, adapters)
        return over_devices(logits, mesh, params, packed)[1]

    def predict(frozen, adapters, encoded, rows, packing, hidden):
        inputs = {name: leaf[rows] for name, leaf in encoded.inputs.items()}
        lengths, sizes = encoded.lengths[rows], (packing.width, packing.rows)
        laid = list(pack_on_host(inputs, lengths, *sizes, hidden))
        parts = []
        for start in range(0, len(laid), shards):
            chosen, blocks = zip(*laid[start : start + shards], strict=True)
            blocks += blocks[:1] * (shards - len(blocks))  # a block again, and not looked at
            found = forward(frozen, adapters, jax.tree.map(lambda *x: np.stack(x), *blocks))
            parts.append((chosen, found))
        each = ((c, f) for chosen, found in parts for c, f in zip(chosen, found, strict=False))
        return _in_order(list(each), len(rows))

    return predict


def _in_order(parts: Sequence[tuple[np.ndarray, jax.Array]], count: int) -> np.ndarray:
    """Returns the outcomes by example; behind those that were chosen a part holds nothing."""
    first = np.asarray(parts[0][1])
    outcomes = np.empty((count, *first.shape[1:]), first.dtype)
    for chosen, found in parts:
        outcomes[chosen] = np.asarray(found)[: len(chosen)]
    return outcomes


def _cut(leaf: np.ndarray, width: int) -> np.ndarray:
    return leaf[:, :width] if leaf.ndim == 2 else leaf


def _side_by_side(states: list[np.ndarray], inputs: dict[str, Any], width: int) -> np.ndarray:
    """Returns (example, token, feature), zeros behind each one's tokens."""
    tokens = width if "input_ids" in inputs else len(states[0])
    found = np.zeros((len(states), tokens, states[0].shape[1]), states[0].dtype)
    for place, one in zip(found, states, strict=True):
        place[: len(one)] = one
    return found


def client_adapters(state: RoundState, client: int) -> Adapters:
    """Returns what a client predicts with: the server's leaves and its personal ones."""
    return leaves.merge(state.adapters, jax.tree.map(lambda leaf: leaf[client], state.personal))


def adapters_of(state: RoundState, client: int) -> Adapters:
    """Returns ``client_adapters``, where pooled data has one trainer for the parts of all clients."""
    return client_adapters(state, client if _num_personal(state) > client else 0)


def evaluate(
    predict: Predict,
    task: Task,
    frozen: Frozen,
    state: RoundState,
    encoded: Encoded,
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
    metric: str = "accuracy",
    prefix: ScoredPrefix | None = None,
) -> Scores | None:
    """Scores every client's part with what that client would use; None if all parts are empty.

    Held-out examples are not protected by the mechanism: these figures are not private.
    """
    right, losses, named = [], [], []
    # Who predicts with the same leaves is scored together: a call for each of many clients costs far more.
    whose = [[k] for k in range(len(parts))] if _num_personal(state) > 1 else [range(len(parts))]
    for clients in whose:
        rows = np.concatenate([parts[k] for k in clients])
        if len(rows) == 0:
            right += [np.zeros(0)] * len(clients)
            continue
        hidden = prefix and prefix.of(rows)
        outcomes = predict(frozen, adapters_of(state, clients[0]), encoded, rows, hidden)
        mine, loss = task.score(outcomes, labels[rows])
        right += np.split(mine, np.cumsum([len(parts[k]) for k in clients])[:-1])
        losses.append(loss)
        named.append(outcomes.argmax(1))
    if not losses:
        return None
    per_client = tuple(float(c.mean()) if len(c) else float("nan") for c in right)
    truth = labels[np.concatenate([rows for rows in parts if len(rows)])]
    figures = class_metrics(metric, np.concatenate(named), truth) if task.has_classes else {}
    return Scores(
        float(np.concatenate(right).mean()),
        float(np.concatenate(losses).mean()),
        per_client,
        figures,
    )


def majority_accuracy(
    labels: np.ndarray, owned: Sequence[np.ndarray], parts: Sequence[np.ndarray]
) -> float:
    """Accuracy of always saying a client's own commonest class: the strongest constant guess."""
    right = total = 0
    for rows, part in zip(owned, parts, strict=True):
        if len(part):
            commonest = np.bincount(labels[rows]).argmax()
            right += int((labels[part] == commonest).sum())
            total += len(part)
    return right / total if total else float("nan")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities from logits (row, class)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _num_personal(state: RoundState) -> int:
    return next((leaf.shape[0] for leaf in jax.tree.leaves(state.personal)), 0)
