"""What tuning costs: sums compose, the best alone by its theorem, and what is not covered is said."""

import math

import pytest
from dp_accounting import dp_event, rdp

from ffalora_jax import accounting, composition, search_cost
from ffalora_jax.config_search import SearchConfig

CAPACITY, DELTA = 200, 1e-5


def privacy(sizes=(400, 500), noise=1.1, steps=60, delta=DELTA, capacity=CAPACITY):
    """What privacy.json says of a run of DP-SGD."""
    draws = [accounting.sampling(size, 20, capacity) for size in sizes]
    epsilon = max(accounting.epsilon_of(draw, noise, steps, delta) for draw in draws)
    clients = [
        {
            "num_examples": draw.num_examples,
            "sampling_probability": draw.probability,
            "capacity": draw.capacity,
            "noise_multiplier": noise,
            "steps": steps,
        }
        for draw in draws
    ]
    facts = {"unit": "example", "delta": delta, "epsilon": epsilon}
    return facts | {"clients": clients, "num_clients": len(clients)}


def search(**settings):
    given = {"strategy": "random", "over": {"optimizer.learning_rate": "0.1..1"}, "trials": 10}
    return SearchConfig(**(given | settings))


def test_runs_cost_what_one_run_of_all_their_steps_costs():
    runs = [privacy(), privacy(), privacy()]
    whole = privacy(steps=180)["epsilon"]
    assert search_cost.of_all(runs, True).epsilon == pytest.approx(whole, rel=1e-3)
    assert search_cost.of_all(runs[:1], True).epsilon == pytest.approx(runs[0]["epsilon"], rel=1e-3)


@pytest.mark.thorough
def test_with_the_same_split_a_client_pays_for_its_own_draws_alone():
    runs = [privacy((400, 1000)), privacy((1000, 400))]
    mine = search_cost.of_all(runs, True).epsilon
    dearest = search_cost.of_all(runs, False).epsilon
    assert mine < dearest
    assert dearest == pytest.approx(privacy((400,), steps=120)["epsilon"], rel=1e-3)


def test_other_noise_and_other_lengths_are_summed_as_they_are():
    draw = accounting.sampling(400, 20, CAPACITY)
    runs = [privacy((400,), noise=1.1, steps=60), privacy((400,), noise=2.2, steps=30)]
    schedule = ((1.0, 60), (2.0, 30))
    expected = accounting.epsilon_of(draw, 1.1, schedule, DELTA)
    assert search_cost.of_all(runs, True).epsilon == pytest.approx(expected, rel=1e-3)


def test_runs_whose_cost_is_no_plain_composition_are_added_up():
    odd = privacy() | {"epsilon": 3.3}  # by some rule of its own
    cost = search_cost.of_all([odd, odd], True)
    assert (cost.epsilon, cost.delta) == (pytest.approx(6.6), 2 * DELTA)
    assert "basic composition" in cost.how


def test_nothing_is_promised_for_what_promises_nothing():
    open_run = privacy() | {"unit": None, "epsilon": None}
    assert search_cost.of_all([privacy(), open_run], True).epsilon is None
    clients = privacy() | {"unit": "client"}
    assert search_cost.of_all([privacy(), clients], True).epsilon is None
    assert search_cost.of_all([], True).epsilon == 0.0


@pytest.mark.parametrize(("law", "shape"), [("poisson", math.inf), ("geometric", 1.0)])
def test_the_best_alone_costs_what_the_theorem_says(law, shape):
    runs = [privacy((400,)), privacy((400,))]
    cost = search_cost.of_the_best(search(trials_law=law, seeds=2), runs, is_whole=True)
    one = dp_event.PoissonSampledDpEvent(20 / 400, dp_event.GaussianDpEvent(1.1))
    ledger = rdp.RdpAccountant()
    run = dp_event.SelfComposedDpEvent(one, 120)
    ledger.compose(dp_event.RepeatAndSelectDpEvent(run, 10.0, shape))
    assert cost.epsilon == pytest.approx(ledger.get_epsilon(DELTA / 2), rel=1e-6)
    assert cost.delta == DELTA
    assert cost.epsilon > privacy((400,), steps=120)["epsilon"]
    assert cost.epsilon < search_cost.of_all(runs * 10, True).epsilon


def test_a_cap_that_is_passed_too_often_is_said_with_one_that_is_not():
    runs = [privacy((400,), capacity=50)]
    cost = search_cost.of_the_best(search(trials_law="poisson"), runs, is_whole=True)
    assert cost.epsilon is None
    needed = int(cost.how.split("privacy.capacity ")[1].split()[0])
    again = [privacy((400,), capacity=needed)]
    assert (
        search_cost.of_the_best(search(trials_law="poisson"), again, is_whole=True).epsilon
        is not None
    )
    less = [privacy((400,), capacity=needed - 1)]
    assert (
        search_cost.of_the_best(search(trials_law="poisson"), less, is_whole=True).epsilon is None
    )


def test_passing_the_cap_costs_no_more_than_half_of_delta():
    from scipy.stats import binom

    draw = accounting.sampling(400, 20, CAPACITY)
    epsilon = composition.epsilon_of_the_best(draw, 1.1, 60, DELTA, 10.0, "poisson")
    capacity = composition.needed_capacity(draw, 60, 10.0, epsilon, DELTA)
    passed = 60 * 10 * binom.sf(capacity, 400, 20 / 400)
    assert (1 + math.exp(epsilon)) * passed <= DELTA / 2
    assert (1 + math.exp(epsilon)) * 600 * binom.sf(capacity - 1, 400, 0.05) > DELTA / 2


def test_the_cap_has_to_hold_for_every_client_not_for_the_dearest_alone():
    """At one expected batch a larger client passes a cap more often, though it costs less."""
    small, both = (
        privacy((20,), capacity=20, noise=3.0),
        privacy((20, 1000), capacity=20, noise=3.0),
    )
    law = search(trials_law="poisson")
    assert search_cost.of_the_best(law, [small], is_whole=True).epsilon is not None
    assert search_cost.of_the_best(law, [both], is_whole=True).epsilon is None


def test_where_a_cap_is_tight_the_dearest_is_not_guessed():
    """There the client that draws with the highest probability is not the one that pays most."""
    runs = [privacy((40, 1000), capacity=24, noise=1.5, steps=3)] * 2
    cost = search_cost.of_all(runs, False)
    assert "basic composition" in cost.how
    assert cost.epsilon == pytest.approx(2 * runs[0]["epsilon"])
    same = search_cost.of_all(runs, True)
    draw = accounting.sampling(1000, 20, 24)
    assert same.epsilon >= accounting.epsilon_of(draw, 1.5, 6, DELTA) * 0.999


def test_small_epsilons_compose_too():
    runs = [privacy(noise=20.0, steps=3)] * 2
    assert runs[0]["epsilon"] < 0.1
    assert "composed" in search_cost.of_all(runs, True).how


def test_whole_clients_have_a_cost_only_where_they_are_the_same_in_all_runs():
    runs = [privacy() | {"unit": "client"}] * 2
    assert search_cost.of_all(runs, False).epsilon is None
    assert (
        search_cost.of_the_best(search(trials_law="poisson", seeds=2), runs, is_whole=True).epsilon
        is None
    )


def test_what_a_start_has_cost_is_not_forgotten():
    runs = [privacy() | {"started_from": {"epsilon": 3.0}}]
    assert search_cost.of_all(runs, True).epsilon is None
    assert (
        search_cost.of_the_best(search(trials_law="poisson"), runs, is_whole=True).epsilon is None
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "as that of all runs"),
        ({"trials_law": "poisson", "over": {"privacy.epsilon": [1.0, 3.0]}}, "privacy.epsilon"),
        ({"trials_law": "poisson", "over": {"batch_size": [8, 16]}}, "batch_size"),
    ],
)
def test_what_the_theorem_does_not_cover_is_said(settings, said):
    cost = search_cost.of_the_best(search(**settings), [privacy()], is_whole=True)
    assert cost.epsilon is None
    assert said in cost.how


def test_a_search_that_was_stopped_has_drawn_no_number_by_the_law():
    cost = search_cost.of_the_best(search(trials_law="geometric"), [privacy()], is_whole=False)
    assert cost.epsilon is None
    assert "was stopped" in cost.how


def test_one_run_without_privacy_leaves_the_best_uncovered():
    runs = [privacy(), privacy() | {"unit": None}]
    assert (
        search_cost.of_the_best(search(trials_law="poisson"), runs, is_whole=True).epsilon is None
    )
