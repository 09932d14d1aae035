"""Noise is what was promised, where it was promised; and a plan pays for what is run."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ffalora_jax import accounting, registry, rng
from ffalora_jax.config import Experiment, PrivacyConfig
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Schedule
from ffalora_jax.mechanisms._noise import add_noise, affordable_rounds
from tests.helpers import NOISE_SEED, prepared, run_rounds

CLIP_NORM, NOISE_MULTIPLIER, EXPECTED = 0.7, 1.3, 8


def dp_sgd(**privacy):
    settings = {"noise_multiplier": NOISE_MULTIPLIER, "clip_norm": CLIP_NORM, **privacy}
    experiment = Experiment(batch_size=EXPECTED, privacy=PrivacyConfig(**settings))
    return registry.lookup("mechanisms", "dp_sgd")(experiment)


@pytest.mark.statistical
@pytest.mark.parametrize(("factor", "fits"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_noise_has_the_promised_stddev(key, factor, fits):
    total = {"layer": {"lora_b": jnp.zeros((40, 100)), "head_bias": jnp.zeros(500)}}
    gradient = dp_sgd().private_grad(key, total, jnp.float32(NOISE_MULTIPLIER))
    samples = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])
    stddev = NOISE_MULTIPLIER * CLIP_NORM / EXPECTED
    p = scipy.stats.kstest(samples, scipy.stats.norm(scale=factor * stddev).cdf).pvalue
    assert bool(p > 0.01) is fits


@pytest.mark.statistical
@pytest.mark.parametrize(("factor", "fits"), [(1.0, True), (2 / 3, False), (3 / 2, False)])
def test_a_whole_round_moves_by_noise_of_the_promised_stddev(factor, fits):
    """End to end: noised minus unnoised uploads of one step, through scan, chunks and optimiser."""
    run = prepared(batch_size=4)
    run = run._replace(experiment=run.experiment.replace(local_steps=1))
    loud, _ = run_rounds(run, 1)
    silent, _ = run_rounds(
        run._replace(numbers=run.numbers._replace(noise_multiplier=jnp.zeros(4))), 1
    )
    moved = jax.tree.map(jnp.subtract, loud.adapters, silent.adapters)
    samples = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)])
    stddev = 0.4 * 0.8 * 0.7 / 4 / np.sqrt(4)  # lr * sigma * C / B, averaged over four clients
    p = scipy.stats.kstest(samples, scipy.stats.norm(scale=factor * stddev).cdf).pvalue
    assert bool(p > 0.01) is fits


def test_noise_is_distinct_over_rounds_clients_steps_and_leaves():
    secret = rng.secret_root(NOISE_SEED)
    shape = jnp.zeros((3, 5))
    seen = set()
    for place in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 2, 0)]:
        key = rng.stream(secret, rng.Purpose.NOISE, *place)
        noised = add_noise(key, {"a": {"x": shape, "y": shape}, "b": {"x": shape}}, 1.0)
        seen |= {float(value) for leaf in jax.tree.leaves(noised) for value in np.ravel(leaf)}
    assert len(seen) == 6 * 3 * 15


def test_noise_keeps_float32_and_the_tree(key):
    total = {"a": {"x": jnp.zeros(3, jnp.float32)}}
    noised = add_noise(key, total, jnp.float32(1.0))
    assert jax.tree.structure(noised) == jax.tree.structure(total)
    assert noised["a"]["x"].dtype == jnp.float32


def test_an_empty_draw_still_adds_noise():
    run = prepared()
    never = run.numbers._replace(threshold=jnp.zeros(4, jnp.uint32))
    state, infos = run_rounds(run._replace(numbers=never), 1)
    assert np.asarray(infos[0].facts.clip.num_real).sum() == 0
    moved = jax.tree.map(jnp.subtract, state.adapters, run.state.adapters)
    assert all((np.asarray(leaf) != 0).all() for leaf in jax.tree.leaves(moved))


@pytest.mark.thorough
def test_smaller_clients_sample_more_and_get_more_noise():
    plan = dp_sgd(noise_multiplier=None, epsilon=3.0).plan(
        [400, 200, 100], Schedule(4, 2, EXPECTED), None
    )
    probabilities = [client.sampling.probability for client in plan.clients]
    multipliers = [client.noise_multiplier for client in plan.clients]
    assert probabilities == [8 / 400, 8 / 200, 8 / 100]
    assert multipliers == sorted(multipliers)
    assert multipliers[0] < multipliers[2]
    for client in range(3):
        assert 2.9 < plan.epsilons(client, 4)[-1] <= 3.0


def test_the_plan_pays_for_the_event_it_hands_out():
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    plan = dp_sgd().plan([300], Schedule(5, 2, EXPECTED), None)
    ledger = PLDAccountant(value_discretization_interval=1e-3)
    ledger.compose(dp_accounting.SelfComposedDpEvent(plan.clients[0].event, 10))
    assert plan.epsilons(0, 5)[-1] == pytest.approx(ledger.get_epsilon(1e-5), rel=0.01)
    event = plan.clients[0].event
    assert (event.truncated_batch_size, event.dataset_size) == (plan.capacity, 300)
    assert event.noise_multiplier == NOISE_MULTIPLIER


def test_epsilon_composes_over_all_rounds_and_steps():
    plan = dp_sgd().plan([300], Schedule(6, 3, EXPECTED), None)
    spent = plan.epsilons(0, 6)
    assert spent[0] == 0
    assert all(a < b for a, b in itertools.pairwise(spent))
    draw = plan.clients[0].sampling
    assert spent[4] == pytest.approx(
        accounting.epsilon_of(draw, NOISE_MULTIPLIER, 12, 1e-5), rel=1e-6
    )


def test_a_leaf_gets_the_normal_sample_of_its_own_key_times_the_stddev(key):
    total = {"a": jnp.ones((2, 3)), "b": jnp.ones(4), "c": jnp.ones((2, 3))}
    noised = add_noise(key, total, 2.0)
    for index, name in enumerate(total):
        sample = jax.random.normal(rng.leaf(key, index), total[name].shape)
        np.testing.assert_allclose(noised[name], 1 + 2 * sample, rtol=1e-6)


def test_a_budget_beside_given_noise_ends_the_run_in_time():
    plan = dp_sgd(epsilon=1.0).plan([300], Schedule(40, 3, EXPECTED), None)
    last = plan.rounds_within_budget
    assert 0 < last < 40
    assert plan.spent(0, last) <= 1.0 < plan.spent(0, last + 1)


@pytest.mark.parametrize(
    ("budget", "rounds"),
    [(None, 7), (5.9, 0), (6.0, 1), (17.0, 2), (18.0, 3), (42.0, 7), (99.0, 7)],
)
def test_the_rounds_within_a_budget_are_all_that_spend_no_more_and_none_of_another_run(
    monkeypatch, budget, rounds
):
    """At an epsilon of one a step: six steps a round, of seven rounds."""
    asked = []

    def epsilon_of(draw, noise_multiplier, sums, delta):
        asked.append((draw, noise_multiplier, delta))
        return float(sum(count for _, count in sums))

    monkeypatch.setattr(accounting, "epsilon_of", epsilon_of)
    draw = accounting.sampling(300, 16)
    settings = PrivacyConfig(noise_multiplier=1.5, epsilon=budget, delta=1e-6)
    found = affordable_rounds(draw, 1.5, Schedule(7, 3, 16), 6, settings)
    assert found == rounds
    assert set(asked) <= {(draw, 1.5, 1e-6)}


@pytest.mark.thorough
def test_many_sizes_take_the_smallest_clients_noise():
    sizes = list(range(100, 120))
    plan = dp_sgd(noise_multiplier=None, epsilon=4.0).plan(sizes, Schedule(2, 2, EXPECTED), None)
    assert len({client.noise_multiplier for client in plan.clients}) == 1
    reported = [plan.epsilons(client, 2)[-1] for client in range(20)]
    true = [
        accounting.epsilon_of(c.sampling, c.noise_multiplier, 4, 1e-5) for c in plan.clients[::6]
    ]
    assert all(r >= t - 1e-9 for r, t in zip(reported[::6], true, strict=True))
    assert max(reported) <= 4.0


def test_many_sizes_with_a_tight_cap_are_refused():
    with pytest.raises(InputError, match="client sizes"):
        dp_sgd(capacity=10).plan(list(range(100, 120)), Schedule(2, 2, EXPECTED), None)


def test_noise_that_promises_nothing_is_refused():
    with pytest.raises(InputError, match="mechanism none"):
        dp_sgd(noise_multiplier=0.01).plan([300], Schedule(2, 2, EXPECTED), None)


def test_delta_near_one_over_n_warns_and_above_a_hundred_over_n_is_refused():
    plan = dp_sgd(delta=1 / 250).plan([200, 2000], Schedule(1, 1, EXPECTED), None)
    assert len(plan.warnings) == 1
    assert "1 / 2000" in plan.warnings[0]
    with pytest.raises(InputError, match="100 / examples"):
        dp_sgd(delta=0.09).plan([2000], Schedule(1, 1, EXPECTED), None)
