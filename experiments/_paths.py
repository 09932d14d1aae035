"""Where a run's A B ends, for comparing two runs path by path under the same draws and noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ffalora_jax import rng
from ffalora_jax.config import Experiment
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.rng import Keys

Products = dict[str, np.ndarray]


def silent(run: Prepared) -> Prepared:
    """Returns the run with its noise switched off: clipping and draws stay."""
    nothing = jnp.zeros_like(run.numbers.noise_multiplier)
    return run._replace(numbers=run.numbers._replace(noise_multiplier=nothing))


def prepared(experiment: Experiment, model: Any = None, noise: bool = True) -> Prepared:
    """Returns a run before its first round."""
    run = prepare(experiment, model=model)
    return run if noise else silent(run)


def products(run: Prepared) -> Products:
    """Returns scaling A B of every layer after all rounds; one seed has one set of draws and noise."""
    seed, count = run.experiment.seed, run.experiment.rounds
    keys = Keys(rng.public_root(seed), rng.secret_root(seed))
    given = keys, run.state, run.frozen, run.data, run.numbers, jnp.int32(count)
    state, _ = run.rounds()(*given)
    scaling = run.experiment.method.lora_alpha / run.experiment.method.rank
    found = {}
    for layer in run.model.adapted:
        leaves = {**run.frozen.adapters.get(layer, {}), **state.adapters[layer]}
        exact = jax.lax.Precision.HIGHEST
        product = jnp.matmul(leaves["lora_a"], leaves["lora_b"], precision=exact)
        found[layer] = scaling * np.asarray(product)
    return found


def distance(ours: Products, theirs: Products) -> float:
    """Returns the largest difference, relative to the largest entry of ours."""
    most = max(np.abs(product).max() for product in ours.values())
    return float(max(np.abs(ours[layer] - theirs[layer]).max() for layer in ours) / most)
