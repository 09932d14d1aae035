"""What an experiment asks of its data and its method, checked before anything is computed."""

from collections.abc import Sequence

import numpy as np

from ffalora_jax.config import Experiment
from ffalora_jax.data import Dataset
from ffalora_jax.errors import InputError
from ffalora_jax.methods import Method

MOST_LONE_CLASSES = 20
"""Examples that may all have another class; of more, the labels are something else."""


def check_classes(dataset: Dataset) -> None:
    """Refuses labels that are another one in every example."""
    if dataset.num_classes == len(dataset) > MOST_LONE_CLASSES:
        raise InputError(
            f"The labels are {len(dataset)} different values in as many examples ({dataset.source}), "
            "expected classes: name the column that holds them by --data.label."
        )


def check_sizes(rows: list[np.ndarray], names: Sequence[str], expected: int) -> None:
    """Refuses clients with fewer examples than one expected batch."""
    for name, mine in zip(names, rows, strict=True):
        if len(mine) < expected:
            raise InputError(
                f"Client {name!r} has {len(mine)} training examples, expected at least one expected "
                f"batch of {expected}: lower --batch-size or leave that client out."
            )


def check_weights(experiment: Experiment) -> None:
    """Refuses weights that show what privacy is to hide."""
    if experiment.weights == "inverse_loss" and experiment.privacy.is_private:
        raise InputError(
            "Expected weights = 'uniform' or 'size' under privacy, got 'inverse_loss': a training loss "
            "looks at the examples without noise, and the mean would show it. Or set --privacy.mechanism "
            "none."
        )


def check_steps(experiment: Experiment, method: Method) -> None:
    """Refuses fewer local steps than the method has parts."""
    if experiment.local_steps < len(method.local_parts):
        raise InputError(
            f"Expected local_steps >= {len(method.local_parts)} with method.name {experiment.method.name!r}, "
            f"which trains other leaves in every step, got {experiment.local_steps}: some would never move."
        )


def cohort_size_of(experiment: Experiment, num_clients: int, method: Method) -> int:
    """Returns the clients of a round; all where none is set, or where the data is pooled."""
    wanted = experiment.cohort_size
    if wanted is None or method.pooled:
        return num_clients
    if wanted > num_clients:
        raise InputError(f"Expected cohort_size <= {num_clients} clients, got {wanted}.")
    return wanted
