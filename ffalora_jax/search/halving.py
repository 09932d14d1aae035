"""Successive halving: many combinations for a few rounds, the best part of them for more (arXiv:1502.07943).

Every trial is planned, and its noise set, for all rounds; one that ends early has spent less.
"""

import math

import numpy as np

from ffalora_jax import rng
from ffalora_jax.config_search import SearchConfig, Space
from ffalora_jax.search import Wave, Waves, every_combination, sampled, size_of


def build(search: SearchConfig, space: Space, rounds: int, seed: int, secret: int) -> Waves:
    """Yields the combinations of the grid, or as many draws as ``trials`` if it has more; then the best."""
    if size_of(space) <= search.trials:
        trials = every_combination(space)
    else:
        trials = sampled(space, rng.numpy_rng(seed, rng.Purpose.SEARCH), search.trials)
    done = min(rounds, search.first_rounds or math.ceil(rounds / 9))
    while True:
        scores = yield Wave(trials, done)
        if done >= rounds:
            return
        kept = math.ceil(len(trials) / search.keep)
        best = np.argsort(-np.asarray(scores), kind="stable")[:kept]
        trials = [trials[index] for index in sorted(best)]
        done = min(rounds, math.ceil(done * search.keep))
