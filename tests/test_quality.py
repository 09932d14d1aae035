"""The quality bar of the quickstart, on the real model and data (slow: needs the package index once)."""

import os
from pathlib import Path

import numpy as np
import pytest

import ffalora_jax as ffa

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "quickstart.toml"


@pytest.mark.slow
def test_private_quickstart_is_18_points_above_guessing_over_three_seeds(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "FFALORA_CACHE", str(Path.home() / ".cache" / "ffalora_jax"))
    experiment = ffa.load_experiment(EXPERIMENT)
    gains = []
    for seed in range(3):
        run = ffa.simulate(experiment.replace(seed=seed, noise_seed=seed), out=tmp_path / f"{seed}")
        assert run.epsilon <= 6
        gains.append(run.accuracy - run.metrics[-1]["majority_accuracy"])
    assert np.mean(gains) >= 0.18
