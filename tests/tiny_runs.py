"""A tiny experiment and what two runs are compared by."""

import numpy as np
from safetensors.numpy import load_file

from ffalora_jax.config import Experiment
from ffalora_jax.experiment_file import from_table

TINY = {
    "rounds": 6,
    "local_steps": 2,
    "batch_size": 8,
    "noise_seed": 11,
    "evaluate_every": 2,
    "data": {"name": "synthetic", "max_examples": 240},
    "model": {"name": "tiny", "max_tokens": 12},
    "method": {"rank": 2},
    "privacy": {"noise_multiplier": 1.0},
}


def tiny(**changes) -> Experiment:
    return from_table(TINY).replace(**changes)


def timeless(run):
    """The lines of metrics.jsonl without what the clock decides."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run.metrics]


def same_bits(one, other):
    a, b = (load_file(next(run.path.glob("adapter/*.safetensors"))) for run in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
