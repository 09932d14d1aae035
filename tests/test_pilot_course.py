"""A pilot asks the most important things first, and goes where the scores lead."""

import math

import pytest

from ffalora_jax.config import Experiment
from ffalora_jax.pilot_course import ALONE, METHODS, OPEN, RATE, course

START = Experiment().optimizer.learning_rate


def gone(score=lambda settings: 0.5, quick=False, experiment=None):
    """All steps of a course in which jobs score so."""
    going, told, steps = course(experiment or Experiment(), quick), None, []
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
    assert [job.settings["method.name"] for job in steps[0]] == [*METHODS, ALONE]
    order = [job.question for step in steps for job in step]
    first = {name: order.index(name) for name in dict.fromkeys(order)}
    assert sorted(first, key=first.get)[:5] == ["methods", "rate", "repeat", "alone", "privacy"]
    assert {"init", "rank", "clip", "share"} <= set(order)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1, 2, 4])
def test_the_learning_rate_is_followed_to_its_peak(factor):
    wanted = {"ffa_lora": START * factor, "fedavg_lora": START}
    steps = gone(peak(wanted))
    repeats = [job for step in steps for job in step if job.question == "repeat"]
    assert {(j.settings["method.name"], j.settings[RATE]) for j in repeats} == set(wanted.items())


def test_the_search_for_a_rate_ends_after_a_few_steps():
    steps = gone(lambda settings: settings[RATE])  # ever higher
    rates = {j.settings[RATE] for step in steps for j in step if j.question in ("methods", "rate")}
    assert max(rates) == START * 8


def test_a_run_that_failed_is_not_chosen():
    steps = gone(lambda settings: None if settings[RATE] > START else settings[RATE])
    alone = next(job for step in steps for job in step if job.question == "alone")
    assert alone.settings == {"method.name": ALONE, RATE: START, **dict([OPEN])}


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
    assert seen == {name: {0, 1, 2, 3, 4, 5} for name in (*METHODS, ALONE)}


def test_a_quick_pilot_leaves_out_what_can_be_left_out():
    steps = gone(quick=True)
    jobs = [job for step in steps for job in step]
    assert {job.question for job in jobs} == {"alone", "methods", "privacy", "repeat"}
    assert len(jobs) == 3 + (2 + 2) + 3 + 3
    assert {job.settings[RATE] for job in jobs if OPEN not in job.changes} == {START}
    assert [job.settings["method.name"] for job in steps[0]] == [METHODS[0], *2 * [ALONE]]


def test_a_quick_pilot_looks_for_the_rate_of_what_is_not_noised():
    steps = gone(peak({ALONE: START / 4}), quick=True)
    jobs = [job for step in steps for job in step]
    alone = [job for job in jobs if job.question == "alone"]
    assert {job.repeat for job in alone} == {1, 2}
    open_ = [job for job in jobs if OPEN in job.changes and job.question == "privacy"]
    assert {job.settings[RATE] for job in [*alone, *open_]} == {START / 4}


def test_who_trains_alone_gives_nothing_away_and_is_not_noised():
    for quick in (False, True):
        jobs = [job for step in gone(quick=quick) for job in step]
        alone = [job for job in jobs if job.settings["method.name"] == ALONE]
        assert alone
        assert all(OPEN in job.changes for job in alone)


@pytest.mark.parametrize("asked", [8.0, 6.0, 3.0, 2.0, 1.0])
def test_the_usual_epsilons_are_looked_at_beside_the_one_that_is_asked_for(asked):
    steps = gone(experiment=Experiment().replace(**{"privacy.epsilon": asked}))
    tried = [j.settings for step in steps for j in step if j.question == "privacy"]
    found = {one.get("privacy.epsilon") for one in tried}
    assert found == {None, 6.0, 3.0, 1.0} - {asked}


def test_the_best_rate_without_privacy_is_looked_for_by_itself():
    def score(settings):
        if settings["method.name"] == ALONE or OPEN not in settings.items():
            return 0.5
        return settings[RATE]  # ever higher

    steps = gone(score)
    last = [j for step in steps for j in step if j.question == "privacy" and OPEN in j.changes][-1]
    assert last.settings[RATE] == START * 8
    assert last.repeat > 0


def test_training_alone_has_a_rate_of_its_own_and_waits_for_nobody():
    away = Experiment().replace(
        cohort_size=2, **{"sites.preset": "phones", "sites.deadline": 5.0, "sites.over_select": 1.5}
    )
    steps = gone(peak({ALONE: 2 * START}), experiment=away)
    alone = [j for step in steps for j in step if j.question == "alone"][-1].settings
    assert alone[RATE] == 2 * START
    assert (alone["cohort_size"], alone["sites.preset"]) == (None, "none")
    assert alone["sites.deadline"] is None
    assert away.replace(**alone).sites.may_stay_away is False
    plain = next(j for step in gone() for j in step if j.question == "alone").settings
    assert plain.keys() == {"method.name", RATE, "privacy.mechanism"}


def test_what_the_experiment_has_already_is_not_tried_as_something_else():
    steps = gone(experiment=Experiment().replace(**{"method.init": "gaussian", "method.rank": 1}))
    jobs = [j for step in steps for j in step]
    assert {j.settings["method.init"] for j in jobs if j.question == "init"} == {
        "kaiming",
        "orthonormal",
    }
    assert [j.settings["method.rank"] for j in jobs if j.question == "rank"] == [2]


def test_what_chose_a_learning_rate_is_not_what_is_reported():
    jobs = [j for step in gone() for j in step]
    chosen = {j.repeat for j in jobs if j.question in ("methods", "rate")}
    reported = {j.repeat for j in jobs if j.question in ("repeat", "alone", "init", "adapt")}
    assert chosen == {0}
    assert 0 not in reported
