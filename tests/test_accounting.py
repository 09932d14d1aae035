"""Epsilon against published figures, and the capped draw against the uncapped."""

import pytest

from ffalora_jax import accounting
from ffalora_jax.errors import InputError

SST2 = accounting.Sampling(22449, 200 / (67349 / 3))


def test_noise_for_sst2_over_three_clients_is_the_papers():
    assert accounting.noise_for(SST2, 6, 10_000, 1e-5, "rdp") == pytest.approx(0.989, abs=0.003)
    assert accounting.epsilon_of(SST2, 0.995, 10_000, 1e-5, "rdp") == pytest.approx(5.93, abs=0.01)


@pytest.mark.parametrize(("accountant", "epsilon"), [("pld", 6.19), ("rdp", 6.71)])
def test_epsilon_at_one_percent_and_ten_thousand_steps(accountant, epsilon):
    draw = accounting.Sampling(100_000, 0.01)
    assert accounting.epsilon_of(draw, 1.0, 10_000, 1e-5, accountant) == pytest.approx(
        epsilon, abs=0.01
    )


@pytest.mark.parametrize(("num_examples", "batch_size"), [(300, 16), (2000, 32), (2000, 64)])
def test_the_default_cap_costs_almost_nothing_and_never_less_than_nothing(num_examples, batch_size):
    capacity = accounting.default_capacity(batch_size)
    free = accounting.epsilon_of(accounting.sampling(num_examples, batch_size), 0.6, 30, 1e-5)
    capped = accounting.epsilon_of(
        accounting.sampling(num_examples, batch_size, capacity), 0.6, 30, 1e-5
    )
    assert free <= capped * (1 + 1e-6) <= free * 1.002


def test_a_tight_cap_is_paid_for():
    free = accounting.epsilon_of(accounting.sampling(500, 16), 1.0, 30, 1e-5)
    capped = accounting.epsilon_of(accounting.sampling(500, 16, 16), 1.0, 30, 1e-5)
    assert capped > 1.5 * free


def test_calibrated_noise_keeps_to_the_budget_and_hardly_wastes_any():
    draw = accounting.sampling(400, 16, accounting.default_capacity(16))
    for epsilon in (0.5, 3.0):
        sigma = accounting.noise_for(draw, epsilon, 20, 1e-5)
        assert 0.985 * epsilon < accounting.epsilon_of(draw, sigma, 20, 1e-5) <= epsilon


def test_at_the_same_expected_batch_a_smaller_client_spends_more():
    sizes = (100, 130, 200, 400, 1000, 5000)
    capacity = accounting.default_capacity(16)
    spent = [
        accounting.epsilon_of(accounting.sampling(n, 16, capacity), 0.8, 20, 1e-5) for n in sizes
    ]
    assert spent == sorted(spent, reverse=True)


def test_trajectory_never_reports_less_than_was_spent():
    draw = accounting.sampling(400, 16)
    steps = list(range(1, 130))
    reported = accounting.trajectory(draw, 1.0, steps, 1e-5)
    assert reported == sorted(reported)
    for index in (0, 50, 77, 128):
        assert reported[index] >= accounting.epsilon_of(draw, 1.0, steps[index], 1e-5) - 1e-9
    assert reported[-1] == pytest.approx(accounting.epsilon_of(draw, 1.0, 129, 1e-5))


def test_rdp_refuses_the_cap_and_pld_tiny_deltas():
    with pytest.raises(InputError, match="capped"):
        accounting.epsilon_of(accounting.sampling(400, 16, 40), 1.0, 10, 1e-5, "rdp")
    with pytest.raises(InputError, match="rdp"):
        accounting.epsilon_of(accounting.sampling(400, 16), 1.0, 10, 1e-16)


def test_no_step_costs_nothing():
    assert accounting.epsilon_of(accounting.sampling(400, 16), 1.0, 0, 1e-5) == 0.0


@pytest.mark.parametrize("delta", [0.0, -1e-5, 0.1, 0.5])
def test_deltas_that_promise_nothing_are_refused(delta):
    with pytest.raises(InputError):
        accounting.check_delta(delta, 400)
