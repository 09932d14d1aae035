"""What schedules and plans count and refuse, rule by rule, at an accountant whose sums one can follow."""

import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import accounting, registry
from ffalora_jax.config import Experiment, PrivacyConfig
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import ClientPlan, Mechanism, Plan, Schedule, no_epsilons
from ffalora_jax.mechanisms._examples import example_plan
from ffalora_jax.mechanisms._noise import add_noise


def planned(sizes, schedule=None, multipliers=None, *, capacity=31, more=None, **privacy):
    """The plan of DP-SGD at batches of eight; without more words a budget of two sets the noise."""
    settings = PrivacyConfig(delta=1e-6, **(privacy or {"epsilon": 2.0}))
    plan = example_plan(settings, 8, capacity, **(more or {}))
    return plan(sizes, schedule or Schedule(10, 3, 8), multipliers)


def noises(plan):
    return [client.noise_multiplier for client in plan.clients]


@pytest.mark.parametrize(
    ("noise", "bands", "sums"),
    [
        ((1.0,), 1, ((1.0, 8),)),
        ((2.0, 2.0), 1, ((2.0, 8),)),
        ((2.0, 3.0), 1, ((2.0, 2), (3.0, 2), (3.0, 2), (3.0, 2))),
        ((2.0, 3.0, 4.0, 5.0, 6.0), 1, ((2.0, 2), (3.0, 2), (4.0, 2), (5.0, 2))),
        ((2.0,), 2, ((2.0, 4),)),
        ((2.0,), 3, ((2.0, 3),)),  # eight steps in turns of three: of one group, three
    ],
)
def test_four_rounds_of_two_sums_are_paid_for_as_these_sums(noise, bands, sums):
    assert Schedule(9, 2, 16, noise, bands=bands).sums(4, 2) == sums


def test_a_schedule_says_what_each_client_does_and_its_own_numbers_where_they_differ():
    plain, own = Schedule(9, 2, 16), Schedule(9, 2, 16, client_steps=(1, 5), client_batches=(4, 3))
    assert (plain.steps, plain.noise, plain.bands) == (18, (1.0,), 1)
    assert [plain.steps_of(1), plain.batch_of(1)] == [2, 16]
    assert [own.steps_of(1), own.batch_of(1)] == [5, 3]


def test_what_a_mechanism_does_not_say_is_that_it_noises_plain_sums_at_the_client():
    found = Mechanism(None, None, 1.0)
    assert not found.sums_integers
    assert not found.hides_uploads
    assert found._replace(private_total=max).hides_uploads
    assert found.beside_count(1.5) == 1.5
    assert ClientPlan(accounting.sampling(9, 3), 1.0, None).local_steps == 1
    assert no_epsilons(0, 3) == [np.inf] * 4


def test_a_plans_largest_epsilon_is_the_largest_of_any_kind_of_client():
    """Three kinds; the clients of one are alike, and the first of them stands for it."""
    asked = []

    def epsilons(client, rounds):
        asked.append(client)
        return [client * round_index for round_index in range(rounds + 1)]

    small, large = accounting.sampling(10, 5), accounting.sampling(20, 5)
    facts = [(large, 1.0, 2), (large, 1.0, 2), (small, 1.0, 2), (large, 1.0, 2), (large, 1.0, 3)]
    clients = tuple(ClientPlan(draw, noise, None, steps) for draw, noise, steps in facts)
    plan = Plan(clients, 9, "example", epsilons, lambda *given: epsilons(*given)[-1], 5)
    assert plan.kinds == {facts[0]: [0, 1, 3], facts[2]: [2], facts[4]: [4]}
    assert plan.largest_epsilons(3) == [0, 4, 8, 12]
    assert plan.largest_spent(3) == 12
    assert set(asked) == {0, 2, 4}


def test_the_noise_of_each_client_is_what_its_own_draws_need(simple):
    """Of n examples eight are drawn, 30 times: 30 * 8 / n over a budget of two."""
    plan = planned([80, 160, 80])
    assert noises(plan) == [1.5, 0.75, 1.5]
    assert [client.local_steps for client in plan.clients] == [3, 3, 3]
    assert plan.epsilons(1, 4) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert plan.spent(1, 4) == pytest.approx(0.8)
    assert plan.epsilons(1, 0) == [0]
    assert noises(planned([80, 160], more={"common": True})) == [1.5, 1.5]
    own = Schedule(10, 3, 8, client_steps=(1, 3), client_batches=(8, 4))
    plan = planned([80, 80], own)
    assert noises(plan) == pytest.approx([0.5, 0.75])
    assert [client.sampling.probability for client in plan.clients] == [0.1, 0.05]


def test_up_to_eight_sizes_have_their_own_noise_and_of_more_all_have_the_smallest_ones(simple):
    sizes = [80 + 10 * index for index in range(8)]
    assert noises(planned(sizes)) == pytest.approx([120 / size for size in sizes])
    plan = planned([*sizes, 60])
    assert noises(plan) == [2.0] * 9
    # Of nine sizes every second is priced, the others as the next smaller one.
    priced = [60, 60, 90, 90, 110, 110, 130, 130, 150]
    found = sorted(plan.spent(client, 10) for client in range(9))
    assert found == pytest.approx(sorted(30 * 8 / size / 2 for size in priced))
    steps = Schedule(10, 3, 8, client_steps=(1, 2, 3) * 3)
    assert noises(planned([60] * 9, steps)) == pytest.approx([2 / 3, 4 / 3, 2] * 3)
    assert noises(planned([*sizes, 60], steps)) == [2.0] * 9


def test_eight_kinds_by_size_and_steps_are_priced_each_as_it_is(simple):
    sizes = [80, 80, 96, 96, 120, 120, 160, 160]
    plan = planned(sizes, Schedule(10, 3, 8, client_steps=(1, 3) * 4), noise_multiplier=1.0)
    found = [plan.spent(client, 10) for client in range(8)]
    assert found == pytest.approx([80 * (1, 3)[n % 2] / size for n, size in enumerate(sizes)])


def test_a_tight_cap_or_own_batches_are_refused_from_nine_kinds_of_clients_on(simple):
    sizes = [80 + 10 * index for index in range(9)]
    enough = accounting.default_capacity(8)
    assert planned(sizes, capacity=enough).capacity == enough
    assert planned(sizes[:8], capacity=enough - 1).capacity == enough - 1
    with pytest.raises(InputError, match="more than 8 client sizes, got 30"):
        planned(sizes, capacity=enough - 1)
    own = Schedule(10, 3, 8, client_batches=(8, 4, 8, 4, 8, 4, 8, 4, 8))
    assert len(noises(planned(sizes[:8], own))) == 8
    with pytest.raises(InputError, match=r"at most 8 kinds of clients .* got 9"):
        planned(sizes, own)


def test_a_run_that_goes_on_keeps_its_noise_if_its_clients_are_still_as_many(simple):
    assert noises(planned([80, 160], multipliers=[7.0, 9.0])) == [7.0, 9.0]
    for given in ([7.0], [7.0, 9.0, 9.0]):
        with pytest.raises(InputError, match=f"began with {len(given)} clients"):
            planned([80, 160], multipliers=given)


def test_rounds_are_counted_against_a_budget_only_where_it_did_not_set_the_noise(simple):
    """A round of a client costs 3 * 8 / n over its noise: .3 and .15 here."""
    assert planned([80, 160]).rounds_within_budget == 10
    assert planned([80, 160], noise_multiplier=1.0).rounds_within_budget == 10
    both = {"noise_multiplier": 1.0, "epsilon": 1.0}
    assert planned([80, 160], **both).rounds_within_budget == 3
    assert planned([160, 160], **both).rounds_within_budget == 6
    went_on = planned([80, 160], multipliers=[1.0, 0.25], epsilon=1.25)
    assert went_on.rounds_within_budget == 2


def test_bands_draw_out_of_groups_that_each_fill_a_batch(simple):
    plan = planned([26, 24], more={"bands": 3})
    assert [client.sampling.num_examples for client in plan.clients] == [9, 8]
    assert plan.spent(1, 10) == pytest.approx(2)  # thirty steps: ten draws
    with pytest.raises(InputError, match="3 x 8 examples at every client, got 23"):
        planned([24, 23], more={"bands": 3})
    two = planned([17, 16], more={"bands": 2})
    assert two.spent(1, 10) == pytest.approx(2)
    with pytest.raises(InputError, match="2 x 8 examples at every client, got 15"):
        planned([15], more={"bands": 2})
    assert planned([8]).clients[0].sampling.num_examples == 8
    with pytest.raises(InputError, match="at least batch_size = 8 examples at every client"):
        planned([7])


@pytest.mark.parametrize("name", ["dp_sgd", "none", "dp_sgd_banded", "dp_sgd_secagg"])
def test_the_capacity_is_the_one_that_was_set_or_six_deviations_above_the_batch(name):
    for capacity, found in ((None, accounting.default_capacity(16)), (20, 20)):
        privacy = PrivacyConfig(name, noise_multiplier=1.0, capacity=capacity)
        experiment = Experiment(batch_size=16, local_steps=1, privacy=privacy)
        plan = registry.lookup("mechanisms", name)(experiment).plan
        assert plan([400], Schedule(20, 1, 16), None).capacity == found


def test_without_privacy_nothing_is_noised_and_every_round_is_within_the_budget():
    plan = registry.lookup("mechanisms", "none")(Experiment(batch_size=16)).plan
    found = plan([40, 50], Schedule(7, 3, 16, client_steps=(3, 1)), None)
    assert noises(found) == [0.0, 0.0]
    assert [client.local_steps for client in found.clients] == [3, 1]
    assert found.rounds_within_budget == 7


def test_a_clients_sum_is_noised_in_units_of_the_norm_and_divided_by_the_expected_batch(key):
    privacy = PrivacyConfig("dp_sgd", noise_multiplier=1.0, clip_norm=0.5)
    found = registry.lookup("mechanisms", "dp_sgd")(Experiment(batch_size=16, privacy=privacy))
    total = {"a": {"x": jnp.full(3, 10.0)}}
    sample = add_noise(key, {"a": {"x": jnp.zeros(3)}}, 1.0)["a"]["x"]
    noised = found.private_grad(key, total, 1.5)["a"]["x"]
    np.testing.assert_allclose(noised, (10 + 1.5 * 0.5 * sample) / 16, rtol=1e-6)
    plain = registry.lookup("mechanisms", "none")(Experiment(batch_size=16))
    assert plain.private_grad(key, total, 1.5)["a"]["x"].tolist() == [10 / 16] * 3
