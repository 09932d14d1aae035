"""Logits and accuracy on held-out data: length-sorted batches of a few static shapes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from ffalora_jax import adapters as leaves
from ffalora_jax.client import Frozen
from ffalora_jax.clipping import block_widths
from ffalora_jax.round import RoundState
from ffalora_jax.text import Tokens
from ffalora_jax.types import Adapters

BATCH = 64


class Scores(NamedTuple):
    """Accuracy and mean loss, over all examples and per client."""

    accuracy: float
    loss: float
    per_client: tuple[float, ...]


def make_predictor(apply: Callable) -> Callable[..., np.ndarray]:
    """Returns ``(frozen, adapters, tokens, rows) -> logits (row, class)`` in the order of ``rows``."""

    @jax.jit
    def forward(frozen: Frozen, adapters: Adapters, inputs):
        return apply(frozen.backbone, leaves.merge(frozen.adapters, adapters), **inputs)

    def predict(frozen: Frozen, adapters: Adapters, tokens: Tokens, rows: np.ndarray) -> np.ndarray:
        if len(rows) == 0:
            raise ValueError("Expected at least one example to predict.")
        order = np.argsort(tokens.lengths[rows], kind="stable")
        widths = block_widths(tokens.inputs["input_ids"].shape[1])
        parts = []
        for start in range(0, len(order), BATCH):
            here = rows[order[start : start + BATCH]]
            longest = tokens.lengths[here].max()
            width = next(width for width in widths if width >= longest)
            padded = np.pad(here, (0, BATCH - len(here)), mode="edge")
            inputs = {name: leaf[padded, :width] for name, leaf in tokens.inputs.items()}
            parts.append((forward(frozen, adapters, inputs), len(here)))
        sorted_logits = np.concatenate([np.asarray(logits)[:count] for logits, count in parts])
        logits = np.empty_like(sorted_logits)
        logits[order] = sorted_logits
        return logits

    return predict


def client_adapters(state: RoundState, client: int) -> Adapters:
    """Returns what a client predicts with: the server's leaves and its personal ones."""
    return leaves.merge(state.adapters, jax.tree.map(lambda leaf: leaf[client], state.personal))


def evaluate(
    predict: Callable,
    frozen: Frozen,
    state: RoundState,
    tokens: Tokens,
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
) -> Scores | None:
    """Scores every client's part with what that client would use; None if all parts are empty.

    Held-out examples are not protected by the mechanism: these figures are not private.
    """
    correct, losses = [], []
    for client, rows in enumerate(parts):
        if len(rows) == 0:
            correct.append(np.zeros(0))
            continue
        index = client if _num_personal(state) > client else 0
        logits = predict(frozen, client_adapters(state, index), tokens, rows).astype(np.float64)
        correct.append(logits.argmax(1) == labels[rows])
        losses.append(_cross_entropy(logits, labels[rows]))
    if not losses:
        return None
    per_client = tuple(float(c.mean()) if len(c) else float("nan") for c in correct)
    return Scores(
        float(np.concatenate(correct).mean()), float(np.concatenate(losses).mean()), per_client
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


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
