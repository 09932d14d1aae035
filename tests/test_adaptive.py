"""Clip norms that follow a quantile: direction, where they settle, whose noise they scale, what they cost."""

import dp_accounting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

import ffalora_jax as ffa
from ffalora_jax import rng
from ffalora_jax.client import centred
from ffalora_jax.clipping import ClipFacts
from ffalora_jax.config import PrivacyConfig
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms._adaptive import next_factor, remaining
from ffalora_jax.prepare import prepare
from ffalora_jax.rng import Keys
from tests.helpers import compiled, keys, prepared, run_rounds

BOTH = ("dp_sgd_adaptive", "dp_fedavg_adaptive")


def followed(norms, steps=300, stddev=1e-6, **settings):
    """The clip norm after many draws of all these norms."""
    privacy = PrivacyConfig(mechanism="none", **settings)

    @jax.jit
    def follow(factor):
        def one(step, factor):
            within = jnp.sum(jnp.where(norms <= factor, 0.5, -0.5))
            key = jax.random.fold_in(jax.random.key(0), step)
            return next_factor(key, factor, within, len(norms), privacy, stddev)

        return jax.lax.fori_loop(0, steps, one, factor)

    return float(follow(jnp.float32(1)))


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("stddev", [1e-6, 5.0])
def test_the_norm_settles_at_the_quantile_from_below_and_from_above(quantile, stddev):
    norms = jnp.asarray(np.random.default_rng(0).lognormal(0, 1, 400), jnp.float32)
    for scale in (0.05, 20.0):
        found = followed(norms * scale, target_quantile=quantile, stddev=stddev)
        share = float(jnp.mean(norms * scale <= found))
        assert share == pytest.approx(quantile, abs=0.04)


@pytest.mark.parametrize(("within", "way"), [(0.5, -1), (-0.5, 1)])
def test_it_grows_where_all_are_cut_and_shrinks_where_none_is(within, way, key):
    privacy = PrivacyConfig(mechanism="none", target_quantile=0.25, clip_learning_rate=0.3)
    found = next_factor(key, jnp.float32(2), jnp.float32(40 * within), 40, privacy, 1e-9)
    share = 0.5 + within
    assert float(found) == pytest.approx(2 * np.exp(-0.3 * (share - 0.25)), rel=1e-5)
    assert (found > 2) == (way > 0)


def test_an_example_moves_the_count_by_one_half_broken_ones_included():
    def facts(real, clipped, broken):
        return ClipFacts(*(jnp.float32(x) for x in (real, clipped, broken, 0, 0)))

    assert centred(facts(5, 2, 0)) == 0.5
    for more in ((6, 2, 0), (6, 3, 0), (6, 2, 1)):
        assert abs(float(centred(facts(*more)) - centred(facts(5, 2, 0)))) == 0.5


@pytest.mark.parametrize(("noise", "stddev"), [(0.8, 1.0), (1.5, 1.0), (4.0, 3.0)])
def test_sum_and_count_together_cost_what_one_sum_of_the_plans_noise_does(noise, stddev):
    both, one = (PLDAccountant(value_discretization_interval=1e-3) for _ in range(2))
    both.compose(dp_accounting.GaussianDpEvent(float(remaining(noise, stddev))), 7)
    both.compose(dp_accounting.GaussianDpEvent(stddev / 0.5), 7)
    one.compose(dp_accounting.GaussianDpEvent(noise), 7)
    assert both.get_epsilon(1e-5) == pytest.approx(one.get_epsilon(1e-5), rel=2e-3)
    assert remaining(noise, stddev) > noise


@pytest.mark.parametrize(
    ("mechanism", "packing"),
    [
        pytest.param("dp_sgd_adaptive", True, marks=pytest.mark.thorough),
        pytest.param("dp_fedavg_adaptive", True, marks=pytest.mark.slow),
        pytest.param("dp_sgd_adaptive", False, marks=pytest.mark.slow),
    ],
)
def test_in_rounds_the_norm_moves_towards_the_quantile(mechanism, packing):
    base = prepared(mechanism=mechanism, clip_norm=50.0, num_examples=192).experiment
    for norm, way in ((50.0, -1), (1e-3, 1)):
        run = prepare(base.replace(packing=packing, **{"privacy.clip_norm": norm}))
        state, infos = run_rounds(run, 6)
        factors = np.concatenate([np.asarray(info.clip_factor) for info in infos])
        assert factors[0] == 1
        assert (np.log(float(state.clip_factor)) > 0) == (way > 0)
        assert 0.02 < abs(np.log(float(state.clip_factor)))


@pytest.mark.thorough
def test_with_a_clip_norm_that_stays_the_round_is_dp_sgds_with_the_noise_beside_the_count():
    run = prepared(mechanism="dp_sgd_adaptive")
    still = prepare(run.experiment.replace(**{"privacy.clip_learning_rate": 1e-12}))
    noise = float(remaining(run.experiment.privacy.noise_multiplier, 1.0))
    plain = prepared(mechanism="dp_sgd")
    plain = prepare(plain.experiment.replace(**{"privacy.noise_multiplier": noise}))
    ours, theirs = (run_rounds(r, 2)[0].adapters for r in (still, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("mechanism", BOTH)
def test_the_norm_that_clips_a_round_is_the_norm_that_scales_its_noise(mechanism):
    """Nobody draws anything: what moves is noise, in proportion to the state's clip norm."""
    run = prepared(mechanism=mechanism)
    numbers = run.numbers._replace(threshold=jnp.zeros_like(run.numbers.threshold))
    step = compiled(run, "round_step")

    def moved(factor):
        state = run.state.replace(clip_factor=jnp.float32(factor))
        both = Keys(keys(run).public, rng.secret_root(4))
        _, info = step(both, state, run.frozen, run.data, numbers)
        return float(info.update_norm)

    assert moved(0.25) == pytest.approx(0.25 * moved(1.0), rel=0.15)


@pytest.mark.parametrize("mechanism", BOTH)
def test_the_bill_is_the_plain_mechanisms(mechanism):
    run, plain = (
        prepared(mechanism=mechanism),
        prepared(mechanism=mechanism.replace("_adaptive", "")),
    )
    assert run.plan.spent(0, 12) == plain.plan.spent(0, 12)


@pytest.mark.thorough
def test_the_clip_norm_is_written_down_and_survives_a_stop(tmp_path):
    base = prepared(mechanism="dp_sgd_adaptive").experiment.replace(noise_seed=5, evaluate_every=2)
    whole = ffa.simulate(base.replace(rounds=4), out=tmp_path / "four")
    ffa.simulate(base.replace(rounds=2), out=tmp_path / "two")
    longer = ffa.resume(tmp_path / "two", rounds=2)
    norms = [line["clip_norm"] for line in whole.metrics]
    assert norms[0] == pytest.approx(0.7)
    assert len(set(norms)) == 4
    assert norms == [line["clip_norm"] for line in longer.metrics]


@pytest.mark.parametrize("mechanism", BOTH)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy.count_noise": 0.3}, r"count_noise > 0\.4"),
        ({"privacy.clip_schedule": "linear 0.5"}, "clip_schedule = 'constant'"),
        ({"privacy.target_quantile": 1.5}, "target_quantile"),
    ],
)
def test_what_leaves_nothing_for_the_count_is_refused(mechanism, changes, words):
    with pytest.raises(InputError, match=words):
        prepare(prepared(mechanism=mechanism).experiment.replace(**changes))
