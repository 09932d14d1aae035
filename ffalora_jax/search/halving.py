"""Successive halving: many combinations for a few rounds, the best part of them for more (arXiv:1502.07943).

Every trial is planned, and its noise set, for all rounds; one that ends early has spent less.
"""

import math

import numpy as np

from ffalora_jax import rng
from ffalora_jax.config_search import SearchConfig, Space
from ffalora_jax.search import Trial, Wave, Waves, every_combination, rungs, sampled, size_of


def build(search: SearchConfig, space: Space, rounds: int, seed: int, secret: int) -> Waves:
    """Yields the combinations of the grid, or as many draws as ``trials`` if it has more; then the best."""
    if size_of(space) <= search.trials:
        trials = every_combination(space)
    else:
        trials = sampled(space, rng.numpy_rng(seed, rng.Purpose.SEARCH), search.trials)
    return _waves(search, trials, rounds)


def _waves(search: SearchConfig, trials: list[Trial], rounds: int) -> Waves:
    for done in rungs(search, rounds):
        scores = yield Wave(trials, done)
        kept = math.ceil(len(trials) / search.keep)
        best = np.argsort(-np.asarray(scores), kind="stable")[:kept]
        trials = [trials[index] for index in sorted(best)]
