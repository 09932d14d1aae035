"""Correlated noise: the matrix that is promised, groups that keep apart, and the bill of its event."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from jax_privacy.experimental.accounting import truncated_amplified_bandmf_event
from jax_privacy.matrix_factorization import toeplitz
from scipy import stats

import ffalora_jax as ffa
from ffalora_jax import registry, rng
from ffalora_jax.config import Experiment, PrivacyConfig, SitesConfig
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Schedule
from ffalora_jax.mechanisms.dp_sgd_banded import strategy
from ffalora_jax.prepare import prepare
from ffalora_jax.run_facts import privacy
from tests import reference
from tests.helpers import drawn_rows, keys, prepared, run_rounds
from tests.tiny_runs import same_bits, tiny

SIGMA, CLIP, BATCH, BANDS = 0.8, 0.7, 4, 3


def banded(bands=BANDS, **changes):
    run = prepared(num_examples=192, clients=3)
    changes = {"privacy.mechanism": "dp_sgd_banded", "privacy.bands": bands, **changes}
    return prepare(run.experiment.replace(**changes))


def mechanism(bands=BANDS):
    privacy = PrivacyConfig("dp_sgd_banded", noise_multiplier=SIGMA, clip_norm=CLIP, bands=bands)
    return registry.lookup("mechanisms", "dp_sgd_banded")(
        Experiment(batch_size=BATCH, privacy=privacy)
    )


def stream(bands, steps, key):
    """Noise of so many steps (step, entry): gradients of zero sums, times the batch, in clip norms."""
    found = mechanism(bands)
    zeros = {"layer": {"leaf": jnp.zeros(4000)}}

    def step(past, index):
        given = jax.random.fold_in(key, index), zeros, jnp.float32(SIGMA), past
        gradient, past = found.correlated.private_grad(*given)
        return past, gradient["layer"]["leaf"] * BATCH / CLIP

    return np.asarray(jax.lax.scan(step, found.correlated.begin(zeros), jnp.arange(steps))[1])


def lower(bands, steps):
    coefficients = np.zeros(steps)
    coefficients[: min(bands, steps)] = strategy(bands)[:steps]
    return np.asarray(toeplitz.materialize_lower_triangular(coefficients))


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_the_noise_is_white_again_once_the_matrix_is_applied(bands, key):
    """L x = z: normal at the promised stddev, and at none of 2/3 and 3/2 of it, and uncorrelated."""
    white = lower(bands, 12) @ stream(bands, 12, key)
    assert stats.kstest(white.ravel() / SIGMA, "norm").pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(white.ravel() / (wrong * SIGMA), "norm").pvalue < 1e-6
    correlation = np.corrcoef(white)
    assert np.abs(correlation - np.eye(12)).max() < 5 / np.sqrt(4000)


@pytest.mark.thorough
def test_one_band_is_plain_dp_sgd():
    plain = run_rounds(prepared(num_examples=192, clients=3), 2)[0]
    one = run_rounds(banded(1), 2)[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        plain.adapters,
        one.adapters,
    )


def test_the_coefficients_are_those_of_the_oracle_with_norm_one():
    theirs = np.asarray(toeplitz.optimal_max_error_strategy_coefs(6))
    np.testing.assert_allclose(strategy(6), theirs / np.linalg.norm(theirs), rtol=1e-6)
    apart = toeplitz.minsep_sensitivity_squared(jnp.asarray(strategy(6)), min_sep=6, n=30)
    assert float(apart) == pytest.approx(5, rel=1e-5)  # five times: five columns of norm one


def test_the_sum_of_many_steps_is_less_noisy_than_of_plain_dp_sgd(key):
    """What it is for; a single step is noisier."""
    noise = stream(8, 64, key)
    assert noise.sum(0).std() < 0.5 * SIGMA * np.sqrt(64)
    assert noise[0].std() > 1.2 * SIGMA


def test_an_example_is_drawn_in_the_steps_of_its_group_alone():
    run = banded()
    steps, places = 0, {}
    for index in range(6):
        for rows in drawn_rows(run, index, 0):
            for row in rows:
                place = int(np.flatnonzero(np.asarray(run.data.members)[0] == row)[0])
                assert place % BANDS == steps % BANDS
                places.setdefault(row, []).append(steps)
            steps += 1
    assert all(np.diff(seen).min(initial=BANDS) >= BANDS for seen in places.values())
    assert len(places) > 20


@pytest.mark.thorough
def test_the_bill_is_that_of_the_oracles_event():
    plan = mechanism().plan([90], Schedule(7, 2, BATCH), None)
    event = truncated_amplified_bandmf_event(
        SIGMA,
        14,
        num_bands=BANDS,
        sampling_prob=BATCH / 30,
        largest_group_size=30,
        truncated_batch_size=plan.capacity,
    )
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    theirs = accountant.compose(event).get_epsilon(1e-5)
    assert plan.spent(0, 7) == pytest.approx(theirs, rel=0.02)
    assert plan.epsilons(0, 7)[-1] == plan.spent(0, 7)


def test_the_round_follows_the_formulas_over_rounds_and_local_steps():
    """The path of an SGD without data, written with the whole matrix: x = L^-1 z."""
    run = banded(**{"partition.num_clients": 1})
    nobody = run._replace(numbers=run.numbers._replace(threshold=0 * run.numbers.threshold))
    state, _ = run_rounds(nobody, 3)
    leaves = reference.flat(run.state.adapters)
    draws = [
        reference.noise(
            rng.stream(keys(run).secret, rng.Purpose.NOISE, index, 0, step), leaves, 1.0
        )
        for index in range(3)
        for step in range(2)
    ]
    inverse = np.linalg.inv(lower(BANDS, 6))
    sigma = float(run.numbers.noise_multiplier[0])
    for place, leaf in reference.flat(state.adapters).items():
        white = np.stack([z[place] for z in draws])
        total = np.tensordot(inverse, white, axes=1).sum(0)
        expected = leaves[place] - 0.4 * sigma * CLIP / BATCH * total
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_run_that_was_cut_goes_on_with_its_noise(tmp_path):
    changes = {"privacy.mechanism": "dp_sgd_banded", "privacy.bands": 2, "batch_size": 4}
    changes |= {"privacy.noise_multiplier": 1.0, "privacy.epsilon": None}
    whole = ffa.simulate(tiny(**changes, rounds=4), out=tmp_path / "whole")
    ffa.simulate(tiny(**changes, rounds=2), out=tmp_path / "cut")
    resumed = ffa.resume(tmp_path / "cut", rounds=2)
    assert same_bits(whole, resumed)
    assert whole.privacy["epsilon"] == resumed.privacy["epsilon"]


def test_privacy_json_says_what_was_priced(tmp_path):
    """The client's own size, and beside it the group, the bands and the draws that the bill is for."""
    run = banded(bands=2)
    for client, said in enumerate(privacy(run, 3, 12, True)["clients"]):
        size = int(run.data.sizes[client])
        assert said["num_examples"] == size
        assert (said["bands"], said["group_size"]) == (2, -(-size // 2))
        assert (said["steps"], said["priced_steps"]) == (6, 3)
        assert said["sampling_probability"] == pytest.approx(BATCH / said["group_size"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy.bands": 100}, "privacy.bands <= 24"),
        ({"privacy.bands": 20}, "at least privacy.bands x batch_size"),
        ({"cohort_size": 2}, "every client in every round"),
        ({"cohort_sampling": "poisson"}, "every client in every round"),
        ({"privacy.noise_schedule": "linear 0.5"}, "noise_schedule = 'constant'"),
        ({"sites": SitesConfig(available="0.5")}, "always there"),
        ({"sites": SitesConfig(local_steps="1, 2, 2")}, "same local steps"),
        ({"method.name": "rolora"}, "train all its leaves in every step"),
        ({"method.name": "la_lora"}, "train all its leaves in every step"),
        ({"client_data": "host"}, "client_data = 'device'"),
    ],
)
def test_what_would_break_its_promise_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        banded(**changes)
