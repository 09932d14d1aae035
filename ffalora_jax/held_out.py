"""What a run scores on held-out data: the validation part in between, the test part once at the end.

None of it is private: held-out examples are outside the mechanism.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ffalora_jax import ensemble, rng
from ffalora_jax.evaluate import Predict, Scores, adapters_of, evaluate, majority_accuracy
from ffalora_jax.partition import MOST_LISTED
from ffalora_jax.prepare import Prepared
from ffalora_jax.respond import exact_match, make_responder
from ffalora_jax.round import RoundState


def figures(
    run: Prepared, predict: Predict, state: RoundState, is_due: bool, is_last: bool
) -> dict[str, Any]:
    """Scores the validation part where that is due, and after the last round everything."""
    found: dict[str, Any] = {}
    if is_due or is_last:
        found |= validation(run, predict, state)
    if is_last:
        found |= test(run, predict, state) | members(run, predict, state)
    return found


def validation(run: Prepared, predict: Predict, state: RoundState) -> dict[str, Any]:
    """Scores at most ``max_validation`` examples of each client's validation part."""
    scores = _scores(run, predict, state, _validation_rows(run))
    if scores is None:
        return {}
    return {
        "accuracy": scores.accuracy,
        "accuracy_per_client": _each(scores.per_client),
        "validation_loss": scores.loss,
    }


def test(run: Prepared, predict: Predict, state: RoundState) -> dict[str, Any]:
    """Scores the test part, once, beside the commonest class and the task's own figures."""
    labels, owners, parts = run.dataset.labels, run.owners, scored_rows(run)
    scores = _scores(run, predict, state, parts)
    if scores is None:
        return {"test_accuracy": None, "majority_accuracy": None, "test_accuracy_per_client": None}
    figures = scores.metrics
    if run.dataset.metric == "exact_match":
        figures = _exact_match(run, state)
    majority = majority_accuracy(labels, owners.train, parts) if run.task.has_classes else None
    each = _each(scores.per_client)
    return {
        "test_accuracy": scores.accuracy,
        "majority_accuracy": majority,
        "test_accuracy_per_client": each and dict(zip(owners.names, each, strict=True)),
        "test_loss": scores.loss,
        "test_metrics": figures,
    }


def scored_rows(run: Prepared) -> list[np.ndarray]:
    """Returns each client's test examples: all of them, or ``max_test`` drawn from the seed."""
    most = run.experiment.max_test
    if most is None:
        return list(run.owners.test)
    return [
        _subset(rows, most, run.experiment.seed, k, 1) for k, rows in enumerate(run.owners.test)
    ]


def scored_at_all(run: Prepared) -> np.ndarray:
    """Returns all examples that a run scores."""
    return np.unique(np.concatenate([*_validation_rows(run), *scored_rows(run)]))


def members(run: Prepared, predict: Predict, state: RoundState) -> dict[str, Any]:
    """Scores each member of an ensemble alone, and the best on public data or else on the validation part.

    **Guarantee:** with public data the choice costs no privacy; by the validation part it is not private.
    """
    count = run.model.members
    if count == 1:
        return {}
    public = [run.owners.public] * len(run.owners.names)
    # Leaves that stay at clients are theirs without noise where the server adds it: then no choice is free.
    free = len(run.owners.public) and not run.keeps_unnoised
    chosen_on = "public" if free else "validation"
    by = f"{chosen_on}_accuracy"
    found: dict[str, list] = {by: [], "test_accuracy": []}
    for member in range(count):
        frozen = run.frozen._replace(adapters=ensemble.alone(run.frozen.adapters, member))
        mine = run._replace(frozen=frozen)
        theirs = dataclasses.replace(
            state,
            adapters=ensemble.alone(state.adapters, member),
            personal=ensemble.alone(state.personal, member, axis=1),
        )
        if chosen_on == "public":
            seen = _scores(mine, predict, theirs, public)
            found[by].append(None if seen is None else seen.accuracy)
        else:
            found[by].append(validation(mine, predict, theirs).get("accuracy"))
        scores = _scores(mine, predict, theirs, scored_rows(run))
        if scores is not None:
            found["test_accuracy"].append(scores.accuracy)
    if not found["test_accuracy"]:
        return {}
    # Where nothing was scored to choose by, none is the best.
    best = None if None in found[by] else int(np.argmax(found[by]))
    return {
        "members": {
            **found,
            "spread": float(np.std(found["test_accuracy"], ddof=1)),
            "chosen_on": chosen_on,
            "best": best,
            "its_test_accuracy": None if best is None else found["test_accuracy"][best],
        }
    }


def _each(per_client: Sequence[float]) -> list[float] | None:
    """Every client's accuracy; None of so many that a line of figures would be all theirs."""
    return list(per_client) if len(per_client) <= MOST_LISTED else None


def _exact_match(run: Prepared, state: RoundState) -> dict[str, Any]:
    """Lets every client's model answer its test questions; the share of right final numbers over all."""
    respond = make_responder(run.model, run.loaded, run.experiment.model)
    prompts, truths = (run.dataset.inputs[name] for name in ("prompt", "response"))
    said, right = [], []
    for client, rows in enumerate(scored_rows(run)):
        if len(rows):
            asked = [prompts[row] for row in rows]
            said += respond(run.frozen, adapters_of(state, client), asked)
            right += [truths[row] for row in rows]
    return exact_match(said, right)


def _scores(
    run: Prepared, predict: Predict, state: RoundState, parts: Sequence[np.ndarray]
) -> Scores | None:
    data, given = run.dataset, (run.frozen, state, run.encoded)
    return evaluate(predict, run.task, *given, data.labels, parts, data.metric, run.scored_prefix)


def _validation_rows(run: Prepared) -> list[np.ndarray]:
    most, seed = run.experiment.max_validation, run.experiment.seed
    return [_subset(rows, most, seed, k) for k, rows in enumerate(run.owners.validation)]


def _subset(rows: np.ndarray, most: int, seed: int, *number: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    draw = rng.numpy_rng(seed, rng.Purpose.VALIDATION, *number)
    return np.sort(draw.choice(rows, most, replace=False))
