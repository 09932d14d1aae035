"""What a model is trained for: the loss of one example, and how outcomes are scored on the host.

Two tasks: naming the class of a text or an image, and saying a response token by token. ``clipping`` needs
the loss for one example without a batch axis; evaluation needs only small arrays from each forward pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

Forward = Callable[..., Float[Array, "..."]]
"""Named inputs of the model -> logits."""


class Task(NamedTuple):
    """A task as pure functions."""

    loss: Callable[[Forward, dict[str, Array], Any], Float[Array, ""]]
    """(forward, inputs, label) of one example -> its loss, float32."""
    outcome: Callable[[Forward, dict[str, Array]], Float[Array, "row kept"]]
    """(forward, inputs) of a batch -> what is kept of it."""
    score: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    """(outcomes, labels) -> share right and loss of every row."""
    has_classes: bool = True


def classification() -> Task:
    """Cross-entropy of the class; right is the class with the largest logit."""

    def loss(forward, inputs, label):
        logits = forward(**inputs).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    def score(logits, labels):
        logits = logits.astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
        # Without this a model that diverged would be right wherever class 0 is.
        right = (logits.argmax(1) == labels) & np.isfinite(logits).all(axis=1)
        return right.astype(np.float64), losses

    return Task(loss, lambda forward, inputs: forward(**inputs), score)


def language_modelling() -> Task:
    """Mean cross-entropy of the response's tokens, each from all before it; the prompt costs nothing.

    Right is the share of a response's tokens that have the largest logit (given the true ones before).
    """

    def loss(forward, inputs, label):
        return _token_facts(forward, inputs)[0]

    def outcome(forward, inputs):
        return jnp.stack(_token_facts(forward, inputs), axis=-1)

    def score(facts, labels):
        return facts[:, 1].astype(np.float64), facts[:, 0].astype(np.float64)

    return Task(loss, outcome, score, has_classes=False)


def task_of(kind: str) -> Task:
    """Returns the task of a kind of data set: ``text``, ``images`` or ``instructions``."""
    return language_modelling() if kind == "instructions" else classification()


def _token_facts(
    forward: Forward, inputs: dict[str, Shaped[Array, "*batch token"]]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Mean loss and share right over the response's tokens."""
    ids, counts = inputs["input_ids"], inputs["response_mask"].astype(bool)[..., 1:]
    given = {name: leaf for name, leaf in inputs.items() if name != "response_mask"}
    logits = forward(**given)
    logits = logits[..., :-1, :].astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[..., 1:])
    right = jnp.argmax(logits, axis=-1) == ids[..., 1:]
    number = jnp.maximum(jnp.sum(counts, axis=-1), 1)

    def mean(values):
        return jnp.sum(jnp.where(counts, values, 0.0), axis=-1) / number

    return mean(losses), mean(right)
