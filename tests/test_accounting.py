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


@pytest.mark.thorough
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


def test_a_delta_is_judged_by_the_number_of_examples():
    with pytest.raises(InputError, match=r"1 / 10000 = 1\.0e-04"):
        accounting.check_delta(0.01, 10_000)
    assert accounting.check_delta(0.0099, 10_000) is not None
    assert "1 / 1000:" in str(accounting.check_delta(1e-3, 1000))
    assert accounting.check_delta(0.9e-3, 1000) is None


def test_noise_that_changes_is_priced_at_each_of_its_levels():
    draw = accounting.sampling(400, 20)
    half = accounting.epsilon_of(draw, 1.6, ((0.5, 10),), 1e-5)
    assert half == accounting.epsilon_of(draw, 0.8, 10, 1e-5)
    # The first level alone does not tell what both cost.
    more, less = (
        accounting.epsilon_of(draw, 1.6, ((0.5, 10), (1, count)), 1e-5) for count in (90, 10)
    )
    assert half < less < more < accounting.epsilon_of(draw, 0.8, 100, 1e-5)


@pytest.mark.parametrize(
    ("capacity", "too_little"), [pytest.param(24, 1.06, marks=pytest.mark.thorough), (34, 1.004)]
)
@pytest.mark.thorough
def test_a_tight_cap_is_reached_with_hardly_more_noise_than_it_takes(capacity, too_little):
    draw = accounting.sampling(500, 16, capacity)
    noise = accounting.noise_for(draw, 3.0, 30, 1e-5)
    uncapped = accounting.noise_for(draw._replace(capacity=None), 3.0, 30, 1e-5)
    assert 1.001 * uncapped < noise  # more was needed
    assert accounting.epsilon_of(draw, noise, 30, 1e-5) <= 3.0
    assert accounting.epsilon_of(draw, noise / too_little, 30, 1e-5) > 3.0


def test_small_epsilons_are_computed_on_the_finer_grid(monkeypatch):
    seen = []
    whole = accounting._epsilon
    monkeypatch.setattr(accounting, "_epsilon", lambda *a: seen.append(a[-1]) or whole(*a))
    draw = accounting.Sampling(1000, 0.02)
    accounting.epsilon_of(draw, 4.0, 10, 1e-5)
    assert seen == [accounting.COARSE, accounting.FINE]
    accounting.epsilon_of(draw, 4.0, 10, 1e-5, "rdp")
    accounting.epsilon_of(draw, 0.7, 100, 1e-5)
    assert seen[2:] == [accounting.COARSE, accounting.COARSE]


def test_a_long_trajectory_takes_few_points_and_rises_through_them(monkeypatch):
    asked = []
    monkeypatch.setattr(
        accounting, "epsilon_of", lambda d, n, steps, e: asked.append(steps) or steps
    )
    found = accounting.trajectory(SST2, 1.0, list(range(1, 101)), 1e-5)
    assert asked == list(range(100, 0, -3))
    assert found == [min(100, 3 * ((count + 1) // 3) + 1) for count in range(1, 101)]


def test_the_default_capacity_is_what_it_was():
    """Part of every published figure: a run that is resumed draws with the capacity that it began with."""
    assert [accounting.default_capacity(b) for b in (1, 4, 16, 32, 200)] == [13, 22, 46, 72, 291]


def test_the_least_noise_and_the_least_delta_are_the_bounds_themselves():
    accounting.check_noise(accounting.LEAST_NOISE)
    with pytest.raises(InputError, match="noise_multiplier"):
        accounting.check_noise(accounting.LEAST_NOISE * (1 - 1e-9))
    draw, least = accounting.sampling(400, 16), accounting.PLD_SMALLEST_DELTA
    with pytest.raises(InputError, match="rdp"):
        accounting.epsilon_of(draw, 1.0, 10, least)
    assert accounting.epsilon_of(draw, 1.0, 10, 2 * least) > 0


def test_an_epsilon_is_kept_between_processes_and_infinity_is_not(monkeypatch):
    draw, computed = accounting.Sampling(777, 0.0123), []

    def compute(*arguments):
        computed.append(arguments)
        return (2.0, float("inf"))[len(computed) > 1]

    monkeypatch.setattr(accounting, "_compute", compute)
    kept = {}
    monkeypatch.setattr(accounting.cache, "read_json", lambda *name: kept.get(name))
    monkeypatch.setattr(accounting.cache, "write_json", lambda a, b, v: kept.update({(a, b): v}))
    assert [accounting.epsilon_of(draw, 1.0, 10, 1e-5) for _ in range(2)] == [2.0, 2.0]
    for _ in range(2):
        assert accounting.epsilon_of(draw, 1.1, 10, 1e-5) == float("inf")
    assert len(computed) == 3
