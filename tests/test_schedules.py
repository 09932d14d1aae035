"""Schedules by round: what the line of text means, what rounds do with it, and what each round costs."""

import functools

import dp_accounting
import jax
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

import ffalora_jax as ffa
from ffalora_jax import accounting, schedules
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Schedule
from ffalora_jax.prepare import prepare
from tests.helpers import prepared, run_rounds

EVERY = {"optimizer.schedule": "steps 1:0.5", "privacy.clip_schedule": "steps 1:0.25"}
EVERY |= {"privacy.noise_schedule": "steps 1:3"}


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear 0.2", [1, 0.8, 0.6, 0.4, 0.2]),
        ("linear 3", [1, 1.5, 2, 2.5, 3]),
        ("cosine 0.5", [1, 0.75 + 0.25 * np.sqrt(0.5), 0.75, 0.75 - 0.25 * np.sqrt(0.5), 0.5]),
        ("exponential 0.0625", [1, 0.5, 0.25, 0.125, 0.0625]),
        ("steps 2:0.5 4:0.1", [1, 1, 0.5, 0.5, 0.1]),
        ("warmup 2 then linear 0.5", [1 / 3, 2 / 3, 1, 0.75, 0.5]),
        ("warmup 4", [0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_a_line_of_text_gives_these_factors(text, factors):
    np.testing.assert_allclose(schedules.read("name", text, 5), factors, rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "linear",
            "linear x",
            "linear 0.1 0.2",
            "sideways 2",
            "steps",
            "steps 3",
            "constant 2",
        ),
        *("linear 0.1 then cosine 2", "warmup", "warmup x", "steps -1:2", "steps 1:nan"),
        *("linear 1e999", "linear 0", "steps 2:-1", "cosine -0.5"),
    ],
)
def test_any_other_text_is_refused_with_what_is_expected(text):
    with pytest.raises(InputError, match=r"Expected .*optimizer\.schedule"):
        schedules.read("optimizer.schedule", text, 5)


def test_noise_goes_in_few_levels_whose_mean_is_that_of_the_schedule():
    factors = schedules.read("noise", "linear 0.2", 100)
    levels = schedules.in_levels(factors)
    assert len(levels) == 100
    assert len(set(levels)) == 8
    assert np.mean(levels) == pytest.approx(np.mean(factors))
    assert schedules.in_levels(factors[:8]) == factors[:8]


def scheduled(mechanism, **changes):
    base = prepared(mechanism=mechanism, clip_norm=0.05).experiment
    return prepare(base.replace(**changes))


@functools.cache
def by_hand(mechanism):
    """Two rounds whose settings are those of the schedules, each given as plain settings."""
    first = prepared(mechanism=mechanism, clip_norm=0.05)
    state, _ = run_rounds(first, 1)
    changes = {"optimizer.learning_rate": 0.4 * 0.5, "privacy.clip_norm": 0.05 * 0.25}
    changes |= {"privacy.noise_multiplier": 0.8 * 3}
    return run_rounds(prepare(first.experiment.replace(**changes)), 1, state)[0]


@pytest.mark.parametrize(
    ("mechanism", "packing"),
    [
        ("dp_sgd", True),
        pytest.param("dp_sgd", False, marks=pytest.mark.slow),
        pytest.param("dp_fedavg", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.thorough
def test_rounds_with_schedules_are_rounds_with_those_settings(mechanism, packing):
    run = scheduled(mechanism, packing=packing, **EVERY)
    state, _ = run_rounds(run, 2)
    assert int(state.round_index) == 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.adapters,
        by_hand(mechanism).adapters,
    )


@pytest.mark.slow
def test_the_learning_rates_schedule_is_the_optimisers_own_rate_for_adam_too():
    plain = prepared(mechanism="none", optimizer="adam", learning_rate=0.01)
    half = prepare(plain.experiment.replace(**{"optimizer.learning_rate": 0.005}))
    slower = prepare(plain.experiment.replace(**{"optimizer.schedule": "steps 0:0.5"}))
    for a, b in zip(*(jax.tree.leaves(run_rounds(r, 2)[0]) for r in (half, slower)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.thorough
def test_every_round_is_paid_at_its_own_noise():
    run = scheduled("dp_sgd", **{"privacy.noise_schedule": "steps 1:3 2:0.9"})
    client = run.plan.clients[0]
    ledger = PLDAccountant(value_discretization_interval=1e-3)
    for factor, rounds in ((1, 1), (3, 1), (0.9, 10)):
        event = accounting.event_of(client.sampling, 0.8 * float(np.float32(factor)))
        ledger.compose(dp_accounting.SelfComposedDpEvent(event, 2 * rounds))
    assert run.plan.spent(0, 12) == pytest.approx(ledger.get_epsilon(1e-3), rel=1e-3)
    curve = run.plan.epsilons(0, 12)
    assert curve[12] == pytest.approx(run.plan.spent(0, 12), rel=1e-6)
    assert curve[2] - curve[1] < curve[3] - curve[2]


def test_the_same_factor_in_all_rounds_is_that_noise():
    draw = accounting.sampling(300, 16)
    twice = Schedule(6, 2, 16, (2.0,)).sums(6, 2)
    assert accounting.epsilon_of(draw, 0.7, twice, 1e-5) == pytest.approx(
        accounting.epsilon_of(draw, 1.4, 12, 1e-5)
    )


@pytest.mark.parametrize(
    "text",
    [
        "steps 6:0.5",
        *(pytest.param(text, marks=pytest.mark.slow) for text in ("linear 0.3", "linear 3")),
    ],
)
@pytest.mark.thorough
def test_noise_is_calibrated_for_the_schedule_and_keeps_to_the_budget(text):
    changes = {"privacy.noise_multiplier": None, "privacy.epsilon": 4.0}
    run = scheduled("dp_sgd", **changes, **{"privacy.noise_schedule": text})
    assert 0.98 * 4 < run.plan.largest_spent(12) <= 4
    assert run.plan.rounds_within_budget == 12


@pytest.mark.thorough
def test_rounds_are_counted_against_the_budget_by_their_noise():
    changes = {"privacy.noise_multiplier": 1.0, "privacy.noise_schedule": "steps 4:0.25"}
    run = scheduled("dp_sgd", **changes, **{"privacy.epsilon": 6.0})
    within = run.plan.rounds_within_budget
    assert run.plan.largest_spent(within) <= 6 < run.plan.largest_spent(within + 1)
    assert 4 <= within < 12


@pytest.mark.slow
def test_added_rounds_leave_the_schedule_of_the_first_ones(tmp_path):
    base = prepared().experiment.replace(rounds=2, evaluate_every=2, noise_seed=5)
    base = base.replace(
        **{"privacy.noise_schedule": "linear 0.5", "optimizer.schedule": "linear 2"}
    )
    whole = base.replace(rounds=4, schedule_rounds=2)
    ffa.simulate(base, out=tmp_path / "two")
    longer = ffa.resume(tmp_path / "two", rounds=2)
    at_once = ffa.simulate(whole, out=tmp_path / "four")
    for a, b in zip(longer.metrics, at_once.metrics, strict=True):
        assert a["loss"] == b["loss"]
        assert a["epsilon"] == pytest.approx(b["epsilon"])


@pytest.mark.parametrize("name", ["privacy.clip_schedule", "privacy.noise_schedule"])
def test_schedules_of_what_is_not_there_are_refused(name):
    with pytest.raises(InputError, match="without privacy"):
        scheduled("none", **{name: "linear 0.5"})
