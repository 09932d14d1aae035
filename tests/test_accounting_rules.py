"""The accountant's own rules, bound by bound, at sums that one can follow in place of the library's."""

import hashlib
import itertools
import json
import math
from importlib.metadata import version

import dp_accounting
import pytest
from dp_accounting import rdp
from dp_accounting.pld import PLDAccountant

from ffalora_jax import accounting
from ffalora_jax.errors import InputError

FREE = accounting.Sampling(400, 0.04)


@pytest.fixture
def asked(monkeypatch):
    """What was asked; epsilon is the sums over the noise squared, and with a cap over that of a third."""
    seen = []

    def priced(draw, kinds, delta, accountant, interval):
        seen.append((draw, kinds, interval))
        assert len(seen) < 500, "it asks for ever"
        share = 1.0 if draw.capacity is None else 3.0
        return sum(count / (noise / share) ** 2 for noise, count in kinds)

    monkeypatch.setattr(accounting, "_epsilon", priced)
    return seen


def test_a_client_needs_a_batch_of_examples_and_a_capacity_a_batch_of_slots():
    assert accounting.sampling(40, 8) == (40, 0.2, None)
    assert accounting.sampling(8, 8, 8) == (8, 1.0, 8)
    with pytest.raises(InputError, match=r"at least batch_size = 8 .* got 7"):
        accounting.sampling(7, 8)
    with pytest.raises(InputError, match=r"capacity >= batch_size = 8, got 7.* for 31"):
        accounting.sampling(40, 8, 7)
    for wrong in ((0, 8), (40, 0), (40, 8, 0)):
        with pytest.raises(InputError, match="> 0"):
            accounting.sampling(*wrong)


@pytest.mark.parametrize(
    ("delta", "examples", "outcome"),
    [
        *((0.0, 5, "refused"), (-1e-5, 5, "refused"), (0.1, 5, "refused"), (0.5, 5, "refused")),
        *(
            (1e-12, 5, "silent"),
            (0.0999, 5, "silent"),
            (0.0999, 10, "silent"),
            (0.0999, 11, "warned"),
        ),
        *((100 / 2000, 2000, "refused"), (99.5 / 2000, 2000, "warned"), (1 / 2000, 2000, "warned")),
        (0.999 / 2000, 2000, "silent"),
    ],
)
def test_a_delta_is_refused_or_warned_of_from_its_bounds_on(delta, examples, outcome):
    if outcome == "refused":
        with pytest.raises(InputError, match=rf"below 1 / {examples} = {1 / examples:.1e}"):
            accounting.check_delta(delta, examples)
        return
    assert bool(accounting.check_delta(delta, examples)) is (outcome == "warned")


def test_the_least_noise_the_grids_and_the_least_delta_are_these():
    assert (accounting.COARSE, accounting.FINE) == (1e-3, 1e-4)
    accounting.check_noise(0.1)
    for less in (0.0999, 0.0, -1.0, math.nan):
        with pytest.raises(InputError, match=r"noise_multiplier >= 0\.1"):
            accounting.check_noise(less)
    accounting.check_draw(FREE, 2e-15, "pld")
    accounting.check_draw(FREE, 0.999, "pld")
    accounting.check_draw(FREE, 0.0, "rdp")
    for delta, accountant in ((1e-15, "pld"), (1.0, "pld"), (1.0, "rdp"), (-0.5, "rdp")):
        with pytest.raises(InputError):
            accounting.check_draw(FREE, delta, accountant)


def test_only_a_capped_draw_is_refused_by_rdp():
    capped = FREE._replace(capacity=30)
    accounting.check_draw(capped, 1e-5, "pld")
    accounting.check_draw(FREE, 1e-5, "rdp")
    with pytest.raises(InputError, match="RDP cannot price a capped draw"):
        accounting.check_draw(capped, 1e-5, "rdp")
    with pytest.raises(InputError, match="accountant"):
        accounting.check_draw(FREE, 1e-5, "gdp")


def test_the_event_is_that_of_the_draw_with_its_cap_where_it_has_one():
    free, capped = (accounting.event_of(FREE._replace(capacity=c), 1.5) for c in (None, 30))
    gaussian = dp_accounting.GaussianDpEvent(1.5)
    assert free == dp_accounting.PoissonSampledDpEvent(0.04, gaussian)
    assert capped == dp_accounting.TruncatedSubsampledGaussianDpEvent(
        dataset_size=400, sampling_probability=0.04, truncated_batch_size=30, noise_multiplier=1.5
    )


@pytest.mark.parametrize(
    ("steps", "kinds"),
    [
        (7, ((2.0, 7),)),
        (((0.5, 3), (2, 4)), ((1.0, 3), (4.0, 4))),
        (((2, 4), (0.5, 3), (2, 1), (1, 0)), ((1.0, 3), (4.0, 5))),
    ],
)
def test_sums_are_priced_each_at_its_own_noise(asked, steps, kinds):
    spent = accounting.epsilon_of(FREE, 2.0, steps, 1e-5)
    assert spent == sum(count / noise**2 for noise, count in kinds)
    assert asked == [(FREE, kinds, 1e-3)]


def test_no_sum_costs_nothing_and_too_little_noise_in_one_of_them_is_refused(asked):
    assert accounting.epsilon_of(FREE, 2.0, 0, 1e-5) == 0
    assert accounting.epsilon_of(FREE, 2.0, ((1.0, 0),), 1e-5) == 0
    assert asked == []
    accounting.epsilon_of(FREE, 1.0, ((0.1, 1), (1, 1)), 1e-5)
    with pytest.raises(InputError, match=r"noise_multiplier >= 0\.1"):
        accounting.epsilon_of(FREE, 1.0, ((0.09, 1), (1, 1)), 1e-5)


@pytest.mark.parametrize(("noise", "fine"), [(1.0, False), (0.8, False), (1.01, True)])
def test_below_an_epsilon_of_one_the_finer_grid_is_taken(asked, noise, fine):
    accounting.epsilon_of(FREE, noise, 1, 1e-5)
    assert [interval for *_, interval in asked] == [1e-3] + [1e-4] * fine
    asked.clear()
    accounting.epsilon_of(FREE, noise, 1, 1e-5, "rdp")
    assert [interval for *_, interval in asked] == [1e-3]


@pytest.mark.parametrize(
    ("steps", "epsilon", "noise"),
    [
        *((900, 9, 10), (900, 1e-3, 948.68), (9, 25, 0.6)),
        *((((3, 900),), 9, 10 / 3), (((0.5, 900),), 9, 20), (((0.5, 9), (1, 9)), 45, 1)),
        # As little as there may be: 0.1, at the quietest of the schedule.
        *((1, 1e6, 0.1), (0, 1, 0.1), (((3, 1),), 1e6, 0.1), (((0.5, 1),), 1e6, 0.2)),
        (((0.05, 1),), 1e6, 2),
    ],
)
def test_the_noise_for_a_budget_is_the_least_that_keeps_to_it(asked, steps, epsilon, noise):
    found = accounting.noise_for(FREE, epsilon, steps, 1e-5)
    assert noise * (1 - 1e-5) <= found <= noise * 1.0006
    assert accounting.epsilon_of(FREE, found, steps, 1e-5) <= epsilon


def test_noise_that_spends_the_budget_to_the_last_bit_keeps_to_it(monkeypatch):
    def epsilon_of(draw, noise, *rest):
        return 2.0 if noise >= 0.3 else 5.0

    monkeypatch.setattr(accounting, "epsilon_of", epsilon_of)
    assert 0.3 <= accounting.noise_for(FREE, 2.0, 9, 1e-5) <= 0.3002


@pytest.mark.parametrize(("first", "found"), [(10_000, True), (10_000.5, False), (9_999.5, True)])
def test_noise_of_up_to_ten_thousand_is_tried_and_no_more(monkeypatch, first, found):
    """The first to be tried is what makes the schedule's quietest .1; then twice as much each time."""
    start = first / 2**13
    steps = ((accounting.LEAST_NOISE / start, 3), (1.0, 4))
    enough = lambda draw, noise, *rest: 1.0 if noise > 6000 else 5.0  # noqa: E731
    monkeypatch.setattr(accounting, "epsilon_of", enough)
    if found:
        assert accounting.noise_for(FREE, 2.0, steps, 1e-5) == pytest.approx(6000, rel=1e-3)
    else:
        with pytest.raises(InputError, match=r"up to 10,000 gives epsilon 2\.0 over 7 steps"):
            accounting.noise_for(FREE, 2.0, steps, 1e-5)


def test_for_a_cap_noise_is_raised_in_small_steps_then_in_larger_ones(asked):
    """Three times the uncapped noise here; a five hundredth at a time up to 2 %, then a twentieth."""
    capped = FREE._replace(capacity=30)
    found = accounting.noise_for(capped, 9, 900, 1e-5)
    tried = [kinds[0][0] for draw, kinds, _ in asked if draw.capacity]
    ratios = [after / before for before, after in itertools.pairwise(tried)]
    small = sum(ratio < 1.01 for ratio in ratios)
    assert tried[0] * 1.002 ** (small - 1) < tried[0] * 1.02 <= tried[0] * 1.002**small
    assert ratios == pytest.approx([1.002] * small + [1.05] * (len(ratios) - small))
    assert found == tried[-1]
    assert 30 <= found <= 30 * 1.0501


@pytest.mark.parametrize(("share", "found"), [(3.7, True), (4.3, False)])
def test_up_to_four_times_the_uncapped_noise_is_tried_for_a_cap(monkeypatch, share, found):
    def epsilon_of(draw, noise, *rest):
        return 1.0 if noise >= (2.0 if draw.capacity is None else 2.0 * share) else 5.0

    monkeypatch.setattr(accounting, "epsilon_of", epsilon_of)
    capped = FREE._replace(capacity=30)
    if found:
        raised = accounting.noise_for(capped, 2.0, 9, 1e-5)
        assert 2 * share <= raised <= 2 * share * 1.0501
    else:
        with pytest.raises(InputError, match="capacity of 30 is too close"):
            accounting.noise_for(capped, 2.0, 9, 1e-5)


@pytest.mark.parametrize(
    ("count", "stride"), [(1, 1), (48, 1), (49, 2), (96, 2), (98, 3), (100, 3)]
)
def test_a_trajectory_takes_at_most_48_points_and_others_cost_as_the_next(
    monkeypatch, count, stride
):
    points = []
    spent = lambda draw, noise, steps, delta: points.append(steps) or steps  # noqa: E731
    monkeypatch.setattr(accounting, "epsilon_of", spent)
    found = accounting.trajectory(FREE, 1.0, list(range(1, count + 1)), 1e-5)
    assert points == list(range(count, 0, -stride))
    assert len(points) <= 48
    assert found == [min(p for p in points if p >= step) for step in range(1, count + 1)]
    assert accounting.trajectory(FREE, 1.0, [], 1e-5) == []


@pytest.mark.parametrize("kinds", [((1.5, 7),), ((1.5, 7), (2.0, 3))])
def test_what_was_computed_once_is_found_again_by_all_that_it_depends_on(monkeypatch, kinds):
    one = kinds[0] if len(kinds) == 1 else (kinds, None)
    question = [1, 400, 0.04, None, *one, 1e-5, "pld", 1e-3, version("dp-accounting")]
    name = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:24]
    kept = {("accounting", name): 3.5}
    monkeypatch.setattr(accounting.cache, "read_json", lambda *place: kept.get(place))
    monkeypatch.setattr(accounting.cache, "write_json", lambda a, b, v: kept.update({(a, b): v}))
    monkeypatch.setattr(accounting, "_compute", lambda draw, *rest: 4.5)
    assert accounting._epsilon(FREE, kinds, 1e-5, "pld", 1e-3) == 3.5
    assert accounting._epsilon(FREE, kinds, 1e-6, "pld", 1e-3) == 4.5
    assert list(kept.values()) == [3.5, 4.5]
    monkeypatch.setattr(accounting, "_compute", lambda draw, *rest: math.inf)
    assert accounting._epsilon(FREE, kinds, 1e-7, "pld", 1e-3) == math.inf
    assert len(kept) == 2


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_several_levels_of_noise_cost_what_the_library_says_of_them_together(accountant):
    kinds = ((1.0, 2), (2.0, 3))
    ledger = PLDAccountant(value_discretization_interval=1e-2)
    ledger = rdp.RdpAccountant() if accountant == "rdp" else ledger
    for noise, count in kinds:
        event = accounting.event_of(FREE, noise)
        ledger.compose(dp_accounting.SelfComposedDpEvent(event, count))
    found = accounting._compute(FREE, kinds, 1e-5, accountant, 1e-2)
    assert found == pytest.approx(ledger.get_epsilon(1e-5), rel=1e-2)


def test_a_capped_draw_is_priced_as_the_library_prices_its_event():
    draw = accounting.Sampling(50, 0.2, 20)
    ledger = PLDAccountant(value_discretization_interval=1e-2)
    ledger.compose(dp_accounting.SelfComposedDpEvent(accounting.event_of(draw, 1.0), 3))
    found = accounting._compute(draw, ((1.0, 3),), 1e-5, "pld", 1e-2)
    assert found == pytest.approx(ledger.get_epsilon(1e-5), rel=1e-6)
