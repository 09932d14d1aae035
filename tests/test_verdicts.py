"""Rules that turn figures into verdicts: what the fourteen experiments share."""

import numpy as np
import pytest

from experiments._verdicts import (
    HELD,
    NOT_HELD,
    NOT_SHOWN,
    above,
    accuracy,
    below,
    beyond,
    cell,
    chosen,
    differences,
    overall,
    proved_above,
    steadier,
    within,
)

SURE, WIDE = [2.0, 2.1, 1.9], [2.0, -3.0, 4.0]


@pytest.mark.parametrize(
    ("values", "bound", "verdict"),
    [
        (SURE, 0.0, HELD),
        (SURE, 3.0, NOT_HELD),
        (SURE, 2.0, NOT_SHOWN),
        (WIDE, 0.0, NOT_SHOWN),
        ([9.0], 0.0, NOT_SHOWN),
        ([], 0.0, NOT_SHOWN),
        ([1.0, float("nan")], 0.0, NOT_SHOWN),
    ],
)
def test_a_part_held_only_if_the_whole_interval_is_on_the_claimed_side(values, bound, verdict):
    assert above("", values, bound).verdict == verdict
    assert below("", [-value for value in values], -bound).verdict == verdict


def test_within_a_bound_needs_both_ends_inside():
    assert within("", SURE, 3.0).verdict == HELD
    assert within("", SURE, 2.0).verdict == NOT_SHOWN
    assert within("", SURE, 1.0).verdict == NOT_HELD
    assert within("", [-value for value in SURE], 1.0).verdict == NOT_HELD
    assert within("", WIDE, 3.0).verdict == NOT_SHOWN


def test_the_interval_of_a_part_is_students_t():
    part = above("", [1.0, 2.0, 3.0])
    assert part.mean == pytest.approx(2.0)
    assert part.high - part.mean == pytest.approx(4.302653 / 3**0.5)


def test_spread_is_compared_by_pairs_and_holds_as_often_as_it_says():
    few, many = [1.0, 2.0, 3.0, 2.5, 1.5], [0.0, 100.0, -100.0, 50.0, -70.0]
    assert steadier("", few, many).verdict == HELD
    assert steadier("", many, few).verdict == NOT_HELD
    assert steadier("", few, [1.0, 2.5, 3.0, 1.2, 2.0]).verdict == NOT_SHOWN
    assert steadier("", few, [1.0] * 5).verdict == NOT_SHOWN
    assert steadier("", few, many[:4]).verdict == NOT_SHOWN
    draw = np.random.default_rng(0)
    covered = []
    for _ in range(4000):
        common = draw.normal(size=5)
        mine, theirs = (2 * common + draw.normal(size=5), 3 * (2 * common + draw.normal(size=5)))
        part = steadier("", mine.tolist(), theirs.tolist())
        covered.append(part.low <= 1 / 3 <= part.high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


def test_what_is_proved_from_below_is_never_disproved():
    assert proved_above("", 2.0, 1.0).verdict == HELD
    assert proved_above("", 0.5, 1.0).verdict == NOT_SHOWN


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([HELD, HELD], HELD),
        ([HELD, NOT_SHOWN], NOT_SHOWN),
        ([HELD, NOT_SHOWN, NOT_HELD], NOT_HELD),
        ([], NOT_SHOWN),
    ],
)
def test_a_claim_held_if_all_its_parts_did(verdicts, whole):
    assert overall(verdicts) == whole


def row(method, rate, seed, validation, test, status="done"):
    found = {"method.name": method, "optimizer.learning_rate": rate, "seed": seed, "status": status}
    return found | {
        "validation_accuracy": validation,
        "test_accuracy": test,
        "majority_accuracy": 0.5,
    }


ROWS = [
    row("a", 0.1, 0, 0.7, 0.60),
    row("a", 0.1, 1, 0.7, 0.62),
    row("a", 0.3, 0, 0.8, 0.50),
    row("a", 0.3, 1, 0.8, 0.52),
    row("a", 1.0, 0, 0.9, 0.99),
    row("a", 1.0, 1, None, None, "failed"),
    row("b", 0.1, 1, 0.6, 0.40),
    row("b", 0.1, 0, 0.6, 0.45),
    row("c", 0.1, 0, None, None, "failed"),
    row("d", 0.1, 0, None, None, "refused"),
]


def test_a_rate_is_chosen_by_validation_and_never_where_a_run_failed():
    found = chosen(ROWS, ["method.name"])
    assert [one["test_accuracy"] for one in found[("a",)]] == [0.50, 0.52]
    assert ("d",) not in found
    assert [accuracy(one) for one in found[("c",)]] == [50.0]


def test_differences_are_between_runs_of_one_seed():
    found = chosen(ROWS, ["method.name"])
    assert differences(found[("a",)], found[("b",)]) == pytest.approx([5.0, 12.0])
    assert differences(found[("a",)], found[("c",)]) == pytest.approx([0.0])


def test_what_was_never_run_shows_nothing_and_breaks_nothing():
    found = chosen(ROWS, ["method.name"])
    assert found[("d",)] == []
    assert cell(found[("d",)]) == "-"
    assert above("", differences(found[("a",)], found[("d",)])).verdict == NOT_SHOWN


def test_a_difference_of_differences_is_taken_over_the_seeds_that_all_four_have():
    found = chosen(ROWS, ["method.name"])
    a, b, c = (found[name,] for name in "abc")
    assert beyond((a, b), (a, b)) == [0.0, 0.0]
    assert beyond((a, b), (b, b)) == pytest.approx([5.0, 12.0])
    assert beyond((a, b), (a, c)) == pytest.approx([5.0 - 0.0])


def test_a_cell_tells_the_rate_its_place_in_the_grid_and_what_failed():
    found = chosen(ROWS, ["method.name"])
    assert cell(found[("a",)], ROWS).endswith("(0.3)")
    assert cell(found[("b",)], ROWS).endswith("(0.1*)")
    assert cell(found[("c",)]) == "50.0 (0.1, 1 failed)"
