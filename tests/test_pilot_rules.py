"""What is recommended follows from the figures by rules that can be read."""

import numpy as np
import pytest

from ffalora_jax.pilot_rules import (
    Option,
    as_good_as_the_best,
    chance,
    gains_of_sites,
    longer,
    paired,
    recommend,
    safe_accuracy,
    tightest,
    verdict,
)

ALONE = dict(enumerate([0.70, 0.71, 0.69, 0.70, 0.72]))
NOISE = np.asarray([0.004, -0.003, 0.001, 0.0, -0.002])


def option(method="ffa_lora", mean=0.80, count=5, failed=0, sent=1e6, noise=NOISE):
    return Option(method, {k: mean + float(noise[k]) for k in range(count)}, failed, sent)


def recommended(*options, alone=ALONE, majority=0.55):
    return recommend(options, single(alone), majority)


def single(accuracy, failed=0):
    """Every site alone: it sends nothing."""
    return Option("local_only", accuracy, failed, 0.0)


def test_a_clear_gain_over_five_repetitions_is_rolled_out_with_certainty():
    found = recommended(option())
    assert (found.decision, found.certainty, found.method) == ("roll_out", "high", "ffa_lora")
    assert found.repetitions == 5
    assert 0 < found.gain.low < found.gain.mean < found.gain.high


def test_of_methods_that_are_alike_the_cheaper_one_is_recommended():
    other = np.asarray([-0.02, 0.03, -0.01, 0.02, -0.005])
    found = recommended(option(sent=1e6), option("fedavg_lora", 0.802, sent=2e6, noise=other))
    assert found.method == "ffa_lora"
    assert set(found.alike) == {"ffa_lora", "fedavg_lora"}


def test_a_method_that_is_better_beyond_its_interval_is_recommended_though_it_costs_more():
    found = recommended(option(sent=1e6), option("fedavg_lora", 0.83, sent=2e6))
    assert (found.method, found.alike) == ("fedavg_lora", ("fedavg_lora",))


@pytest.mark.parametrize("first", [0, 7])
def test_fewer_than_three_pairs_tell_no_methods_apart_so_the_cheaper_one_is_taken(first):
    far = option("fedavg_lora", 0.82, 2, sent=2e6)
    far = far._replace(accuracy={first + k: value for k, value in far.accuracy.items()})
    found = recommended(far, option())
    assert (found.method, found.repetitions) == ("ffa_lora", 5)
    assert set(found.alike) == {"ffa_lora", "fedavg_lora"}


def test_a_method_that_has_learned_comes_before_a_cheaper_one_that_has_not():
    far, flat = option("fedavg_lora", 0.82, 2, sent=2e6), option(mean=0.55, count=2)
    found = recommended(far, flat, majority=0.55)
    assert (found.method, found.alike) == ("fedavg_lora", ("fedavg_lora",))
    assert recommended(flat, majority=0.55).decision == "no_learning"


@pytest.mark.parametrize(
    ("count", "failed", "certainty"),
    [(2, 0, "low"), (3, 0, "medium"), (4, 0, "medium"), (5, 1, "medium"), (3, 1, "low")],
)
def test_certainty_grows_with_repetitions_and_falls_with_failures(count, failed, certainty):
    assert recommended(option(count=count, failed=failed)).certainty == certainty


def test_a_method_that_fails_often_never_stands_in_the_way_of_one_that_works():
    works = option("fedavg_lora", 0.80, sent=2e6)
    for lucky in (0, 1, 3):
        fails = option(mean=0.805, count=lucky, failed=5 - lucky)
        found = recommended(fails, works, alone=dict.fromkeys(range(5), 0.6))
        assert (found.decision, found.method, found.certainty) == (
            "roll_out",
            "fedavg_lora",
            "high",
        )
        assert verdict(works, fails, 0.5) == "failing"
    assert recommended(option(count=1, failed=4)).method == "ffa_lora"  # nothing else is there


def test_failures_of_training_alone_lower_the_certainty_too():
    for failed, certainty in ((0, "high"), (1, "medium"), (2, "low")):
        found = recommend([option()], single(ALONE, failed), 0.5)
        assert found.certainty == certainty


def test_what_is_within_its_interval_is_never_called_better():
    flat = np.asarray([0.0, 0.03, -0.01, 0.02, -0.02])
    ours, other = option(mean=0.52, noise=flat), option("fedavg_lora", 0.51, noise=-flat)
    assert verdict(ours, other, 0.505) == "unlearned"
    assert verdict(ours, other, 0.3) == "alike"
    assert verdict(option(), option("fedavg_lora", 0.7), 0.3) == "better"
    assert verdict(option(count=2), option("fedavg_lora", 0.7, 2), 0.3) == "close"


def test_nineteen_of_twenty_runs_that_differ_by_chance_lie_within_what_chance_does():
    random = np.random.default_rng(0)
    inside = []
    for _ in range(4000):
        *known, one, other = 0.8 + 0.02 * random.normal(size=6)
        inside.append(abs(one - other) < chance(known))
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)
    assert chance([0.8, 0.7]) is None


def test_a_gain_that_few_repetitions_show_is_promising_and_no_more():
    assert recommended(option(count=3, failed=1)).decision == "promising"


def test_what_does_not_beat_the_commonest_class_has_not_learned():
    assert recommended(option(mean=0.555), majority=0.55).decision == "no_learning"


def test_a_gain_inside_its_interval_is_not_shown_and_a_loss_beyond_it_means_alone():
    wide = np.asarray([0.1, -0.1, 0.08, -0.09, 0.02])
    assert recommended(option(mean=0.71, noise=wide)).decision == "not_shown"
    assert recommended(option(mean=0.62)).decision == "train_alone"
    assert recommended(option(count=1)).decision == "not_shown"


def test_without_a_run_nothing_is_recommended():
    found = recommended(Option("ffa_lora", {}, 3, 1e6))
    assert (found.decision, found.method, found.certainty) == ("nothing", None, "low")


def test_a_method_whose_runs_failed_is_never_taken_for_alike():
    found = as_good_as_the_best([option(), Option("fedavg_lora", {}, 5, 1.0)])
    assert [one.method for one in found] == ["ffa_lora"]


def test_differences_are_taken_in_pairs_of_one_repetition():
    one, other = {0: 0.9, 1: 0.5, 7: 0.1}, {1: 0.4, 0: 0.8, 5: 0.0}
    assert paired(one, other).mean == pytest.approx(0.1)
    assert paired({0: 1.0}, {1: 1.0}).mean is None


def test_nineteen_of_twenty_further_repetitions_reach_the_safe_accuracy():
    draw = np.random.default_rng(0)
    reached = []
    for _ in range(4000):
        *seen, new = draw.normal(0.8, 0.02, 6)
        reached.append(new >= safe_accuracy(seen))
    assert np.mean(reached) == pytest.approx(0.95, abs=0.012)
    assert safe_accuracy([0.8, 0.81]) is None


def test_each_sites_gain_is_its_own():
    together = [{"a": 0.8, "b": 0.6}, {"a": 0.82, "b": 0.61}]
    alone = [{"a": 0.7, "b": 0.65}, {"a": 0.71, "b": 0.66}]
    found = gains_of_sites(together, alone)
    assert found["a"].mean == pytest.approx(0.105)
    assert found["b"].mean == pytest.approx(-0.05)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [([], None), ([0.5, 0.6], None), ([0.5, 0.6, 0.7], True), ([0.5, 0.7, 0.702], False)],
)
def test_more_rounds_are_advised_only_where_accuracy_still_rose(curve, expected):
    assert longer(curve) is expected


def test_a_tighter_epsilon_is_offered_only_where_no_loss_was_shown():
    at_six = {0: 0.80, 1: 0.81, 2: 0.79}
    alike = {k: v - d for (k, v), d in zip(at_six.items(), (0.01, -0.01, 0.005), strict=True)}
    worse = {k: v - 0.05 for k, v in at_six.items()}
    assert tightest({6.0: at_six, 3.0: alike, 1.0: worse}, 6.0) == 3.0
    assert tightest({6.0: at_six, 3.0: worse, 1.0: alike}, 6.0) is None
    assert tightest({6.0: at_six, 3.0: {0: 0.8}}, 6.0) is None
    assert (
        tightest({6.0: at_six, 3.0: at_six, 1.0: alike}, 1.0) is None
    )  # nothing below it was tried
    assert tightest({6.0: worse, 3.0: at_six, 1.0: alike}, 3.0) == 1.0
    assert tightest({}, 6.0) is None


def test_two_pairs_decide_nothing():
    ours = Option("ffa_lora", {0: 0.8, 1: 0.81, 2: 0.8}, 0, 1.0)
    result = recommend([ours], single({0: 0.75, 1: 0.76}), 0.5)
    assert (result.decision, result.certainty, result.repetitions) == ("not_shown", "low", 2)
    assert result.gain.mean == pytest.approx(0.05)
    assert result.gain.low is None
    worse = recommend([ours], single({0: 0.85, 1: 0.86}), 0.5)
    assert worse.decision == "not_shown"


def test_among_many_sites_without_a_gain_none_seems_to_have_one():
    draw = np.random.default_rng(0)
    names = [f"site {k}" for k in range(40)]
    chance = 0
    for _ in range(40):
        parts = [
            [dict(zip(names, draw.normal(0.7, 0.05, 40), strict=True)) for _ in range(4)]
            for _ in "ab"
        ]
        gains = gains_of_sites(*parts)
        chance += any(gain.low > 0 or gain.high < 0 for gain in gains.values())
    assert chance <= 6  # 5 % of 40, and room; without the correction nearly all of them


def test_a_site_that_is_missing_in_a_repetition_is_compared_in_the_others():
    together = [{"a": 0.8, "b": 0.7}, {"a": 0.8}, {"a": 0.8, "b": 0.7}]
    alone = [{"a": 0.7, "b": 0.7}, {"a": 0.7, "b": 0.6}, {"a": 0.7}]
    gains = gains_of_sites(together, alone)
    assert gains["a"].mean == pytest.approx(0.1)
    assert gains["b"] == (0.0, None, None)
