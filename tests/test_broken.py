"""Errors that no audit sees, each made on purpose beside the check that fails then."""

import dp_accounting
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from ffalora_jax import rng
from ffalora_jax.mechanisms import Schedule
from ffalora_jax.rng import Keys
from ffalora_jax.types import HEAD_LEAVES
from tests.helpers import compiled, prepared

SEEDS = 150


def ends(run, tree):
    """What is left of a state after a round of noise alone, from many noise seeds: nobody draws anything."""
    numbers = run.numbers._replace(threshold=jnp.zeros_like(run.numbers.threshold))
    step = compiled(run, "round_step")
    public = rng.public_root(0)

    def moved(seed):
        state, _ = step(
            Keys(public, rng.secret_root(seed)), run.state, run.frozen, run.data, numbers
        )
        return tree(state)

    before = tree(run.state)
    return np.stack([np.asarray(moved(seed) - before).ravel() for seed in range(SEEDS)])


def expected_stddev(run):
    """Of what two steps' noise moves at one client."""
    privacy, lr = run.experiment.privacy, run.experiment.optimizer.learning_rate
    each = privacy.noise_multiplier * privacy.clip_norm * lr / run.experiment.batch_size
    return each * np.sqrt(run.experiment.local_steps)


def personal_head(state):
    return state.personal["head"]["head_kernel"][0]


def is_right(found, stddev):
    return bool(abs(found.std() / stddev - 1) < 0.06)


def with_gradient(run, private_grad):
    return run._replace(mechanism=run.mechanism._replace(private_grad=private_grad))


@pytest.mark.thorough
def test_a_noise_key_used_in_every_step_is_seen_in_the_sum_of_the_noise():
    run = prepared(head="personal")
    right = run.mechanism.private_grad
    same = with_gradient(run, lambda key, total, noise: right(rng.public_root(7), total, noise))
    assert is_right(ends(run, personal_head), expected_stddev(run))
    assert not is_right(ends(same, personal_head), expected_stddev(run))


def test_a_personal_head_without_noise_is_seen_in_its_noise():
    run = prepared(head="personal")
    right = run.mechanism.private_grad

    def private_grad(key, total, noise):
        found = right(key, total, noise)
        bare = right(key, total, 0.0)
        head = {name: bare["head"][name] for name in HEAD_LEAVES}
        return found | {"head": head}

    assert is_right(ends(run, personal_head), expected_stddev(run))
    assert not is_right(ends(with_gradient(run, private_grad), personal_head), expected_stddev(run))


@pytest.mark.parametrize("told", [1, 2])
@pytest.mark.thorough
def test_an_accountant_told_half_the_steps_is_seen_in_the_plan(told):
    run = prepared()
    plan = run.mechanism.plan([300], Schedule(6, told, run.experiment.batch_size), None)
    ledger = PLDAccountant(value_discretization_interval=1e-3)
    taken = 6 * run.experiment.local_steps
    ledger.compose(dp_accounting.SelfComposedDpEvent(plan.clients[0].event, taken))
    agrees = plan.spent(0, 6) == pytest.approx(ledger.get_epsilon(1e-3), rel=1e-3)
    assert agrees == (told == run.experiment.local_steps)
