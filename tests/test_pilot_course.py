"""A pilot asks the most important things first, and goes where the scores lead."""

import math

import pytest

from ffalora_jax.config import Experiment
from ffalora_jax.pilot_course import ALONE, METHODS, RATE, course

START = Experiment().optimizer.learning_rate


def gone(score=lambda settings: 0.5, quick=False):
    """All steps of a course in which jobs score so."""
    going, told, steps = course(Experiment(), quick), None, []
    while True:
        try:
            step = next(going) if told is None else going.send(told)
        except StopIteration:
            return steps
        steps.append(step)
        told = {job: score(job.settings) for job in step}


def peak(at):
    """Scores that are best at one learning rate for each method."""

    def score(settings):
        best = at.get(settings["method.name"], START)
        return -abs(math.log2(settings[RATE] / best))

    return score


def test_both_methods_come_first_and_repetitions_before_what_is_nice_to_know():
    steps = gone()
    assert [job.settings["method.name"] for job in steps[0]] == list(METHODS)
    order = [job.question for step in steps for job in step]
    first = {name: order.index(name) for name in dict.fromkeys(order)}
    assert sorted(first, key=first.get)[:5] == ["methods", "rate", "alone", "repeat", "privacy"]
    assert {"init", "rank", "clip", "share"} <= set(order)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1, 2, 4])
def test_the_learning_rate_is_followed_to_its_peak(factor):
    wanted = {"ffa_lora": START * factor, "fedavg_lora": START}
    steps = gone(peak(wanted))
    repeats = [job for step in steps for job in step if job.question == "repeat"]
    assert {(j.settings["method.name"], j.settings[RATE]) for j in repeats} == set(wanted.items())


def test_the_search_for_a_rate_ends_after_a_few_steps():
    steps = gone(lambda settings: settings[RATE])  # ever higher
    rates = {job.settings[RATE] for step in steps for job in step}
    assert max(rates) == START * 8


def test_a_run_that_failed_is_not_chosen():
    steps = gone(lambda settings: None if settings[RATE] > START else settings[RATE])
    alone = next(job for step in steps for job in step if job.question == "alone")
    assert alone.settings == {"method.name": ALONE, RATE: START}


def test_no_run_is_asked_for_twice():
    for quick in (False, True):
        steps = gone(peak({"ffa_lora": 2 * START}), quick)
        asked = [(job.changes, job.repeat) for step in steps for job in step]
        assert len(asked) == len(set(asked))


def test_repetitions_of_both_methods_and_of_training_alone_are_the_same_ones():
    steps = gone()
    seen = {}
    for job in (job for step in steps for job in step):
        if job.question in ("repeat", "alone", "methods"):
            seen.setdefault(job.settings["method.name"], set()).add(job.repeat)
    assert seen == {name: {0, 1, 2, 3, 4} for name in (*METHODS, ALONE)}


def test_a_quick_pilot_leaves_out_what_can_be_left_out():
    order = [job.question for step in gone(quick=True) for job in step]
    assert set(order) == {"methods", "alone", "privacy", "repeat"}
    assert len(order) == 2 + 1 + 3 + 6
