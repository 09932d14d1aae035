"""The questions of a pilot, the most important ones first, so that it may stop at any time.

A generator gives a few jobs, is sent what they scored, and gives the next ones: what is asked later depends
on what came out. Jobs of one step are runs of few programs, so they are computed together. Repetition 0
chooses learning rates, so what is reported begins at 1; a quick pilot reports 0 as well.
"""

import contextlib
from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

from ffalora_jax.config import Experiment

METHODS = ("ffa_lora", "fedavg_lora")
ALONE = "local_only"
EPSILONS = (6.0, 3.0, 1.0)
INITS = ("kaiming", "gaussian", "orthonormal")
WIDEST = 3
"""Steps by a factor of two that the learning rate is looked for, up or down."""
REPEATS, MORE_REPEATS = 3, 2
RATE = "optimizer.learning_rate"
OPEN = ("privacy.mechanism", "none")
ALL_THERE = {
    "cohort_size": None,
    "sites.preset": "none",
    "sites.available": "",
    "sites.trace": None,
    "sites.deadline": None,
    "sites.late_weight": 0.0,
    "sites.over_select": 1.0,
    "sites.adapt": "none",
}
"""A site that trains alone waits for nobody and is never away from itself."""
QUICK_PARTS = (0.5, 0.25)
"""Of the learning rate that is asked for: where a quick pilot looks for that of training alone."""


class Job(NamedTuple):
    """One run of the pilot."""

    question: str
    """methods, rate, privacy, repeat, adapt, init, rank, clip, share or alone."""
    changes: tuple[tuple[str, Any], ...]
    """Settings that differ from the experiment's."""
    repeat: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """The changes as a table."""
        return dict(self.changes)


Scores = dict[Job, float | None]
"""Accuracy on the validation part; None of a run that failed."""
Course = Generator[list[Job], Scores, None]


def course(experiment: Experiment, quick: bool = False, deadline: float | None = None) -> Course:
    """Yields the jobs of a pilot.

    Args:
        experiment: rank, clip norm and budget to start from.
        quick: the learning rate as it is for private training, no look at initialisers, rank, clip norm
            and share.
        deadline: simulated seconds that slow sites might adapt to; None: there is nothing to gain by it.
    """
    rates = yield from _rates(experiment, quick)
    main, other, alone = (settings_of(experiment, name, rates[name]) for name in (*METHODS, ALONE))
    first = first_repeat(quick)
    repeats = range(first, first + REPEATS)
    ways = [("repeat", main), ("alone", alone)]
    # Whether it is worth it at all comes before what it costs.
    for repeat in repeats[quick:]:
        yield [_of(name, one, repeat) for name, one in ways]
    if quick:  # one is enough to see what it sends
        yield [_of("repeat", other, first)]
    without = yield from _without_privacy(main, rates[ALONE], quick)
    # From the ends inwards: where time is short the middle is the least loss.
    others = [main | {"privacy.epsilon": e} for e in reversed(other_epsilons(experiment))]
    privacies = [without, *others]
    yield [_of("privacy", one, first) for one in privacies]
    if deadline is not None:
        adapted = main | {"sites.adapt": "deadline", "sites.deadline": deadline}
        yield [_of("adapt", adapted, first)]
    yield [_of("repeat", other, repeat) for repeat in repeats[quick:]]
    if quick:
        return
    inits = [main | {"method.init": name} for name in INITS if name != experiment.method.init]
    yield [_of("init", one, first) for one in inits]
    yield _around(experiment, main, first)
    yield [
        _of("privacy", one, repeat) for one in privacies for repeat in repeats if repeat != first
    ]
    more = range(first + REPEATS, first + REPEATS + MORE_REPEATS)
    ways.append(("repeat", other))
    yield [_of(name, one, repeat) for repeat in more for name, one in ways]
    yield [_of("init", one, repeat) for one in inits for repeat in repeats if repeat != first]


def first_repeat(quick: bool) -> int:
    """Returns the first repetition that is reported."""
    return 0 if quick else 1


def other_epsilons(experiment: Experiment) -> list[float]:
    """Returns the epsilons beside the one that is asked for."""
    return [epsilon for epsilon in EPSILONS if epsilon != experiment.privacy.budget]


def settings_of(experiment: Experiment, method: str, rate: float) -> dict[str, Any]:
    """Returns the settings of a method, or of every site alone.

    A site that trains alone gives nothing away, so it needs no noise: that is what training together under
    a promise has to beat.
    """
    found = {"method.name": method, RATE: rate}
    if method == ALONE:
        found |= dict([OPEN])
        found |= {n: v for n, v in ALL_THERE.items() if _value(experiment, n) != v}
    return found


def best_rate(tried: Iterable[tuple[float, float | None]], start: float) -> float:
    """Returns the learning rate of the best score; the start where none has one."""
    known = [(score, rate) for rate, score in tried if score is not None]
    return max(known, key=lambda one: one[0], default=(0.0, start))[1]


def longest(experiment: Experiment, quick: bool, deadline: float | None) -> int:
    """Returns how many runs a pilot has if the learning rate is soon found."""
    going, count = course(experiment, quick, deadline), 0
    scores: Scores | None = None
    with contextlib.suppress(StopIteration):
        while True:
            jobs = next(going) if scores is None else going.send(scores)
            scores = {job: float(job.question == "methods") for job in jobs}
            count += len(jobs)
    return count


def _rates(experiment: Experiment, quick: bool) -> Generator[list[Job], Scores, dict[str, float]]:
    """Looks for each way's learning rate.

    A quick pilot looks for that of training alone, which has no noise, and has its first repetition by that.
    """
    start, ways = experiment.optimizer.learning_rate, (*METHODS, ALONE)
    bases = {name: settings_of(experiment, name, start) for name in ways}
    if not quick:
        return (yield from _searched(bases, start, ("methods", "rate")))
    jobs = [_of("methods", bases[ALONE] | {RATE: start * part}) for part in QUICK_PARTS]
    scores = yield [_of("repeat", bases[METHODS[0]]), *jobs]
    best = best_rate(((job.settings[RATE], scores.get(job)) for job in jobs), start)
    return dict.fromkeys(METHODS, start) | {ALONE: best}


def _searched(
    bases: dict[str, dict[str, Any]], start: float, questions: tuple[str, str]
) -> Generator[list[Job], Scores, dict[str, float]]:
    """Looks for each way's learning rate: half and twice, and on where the best lies at the edge.

    Args:
        bases: settings of each way.
        start: rate to begin with.
        questions: as what the first rate is asked for, and the others.
    """
    known: dict[str, dict[float, float | None]] = {name: {} for name in bases}
    todo = {name: [start] for name in bases}
    for step in range(WIDEST + 1):
        asked = {
            (name, rate): _of(questions[step > 0], base | {RATE: rate})
            for name, base in bases.items()
            for rate in todo[name]
        }
        scores = yield list(asked.values())
        for (name, rate), job in asked.items():
            known[name][rate] = scores.get(job)
        todo = {name: _beside(known[name], start) for name in bases}
        if not any(todo.values()):
            break
    return {name: best_rate(table.items(), start) for name, table in known.items()}


def _beside(known: dict[float, float | None], start: float) -> list[float]:
    """Returns the rates beside the best one that are not known yet."""
    best = best_rate(known.items(), start)
    return [rate for rate in (best / 2, best * 2) if rate not in known]


def _without_privacy(
    main: dict[str, Any], rate: float, quick: bool
) -> Generator[list[Job], Scores, dict[str, Any]]:
    """Looks for the learning rate without privacy, where steps are neither clipped nor noised.

    Args:
        main: settings of the main method.
        rate: of training alone, which has no privacy either; a quick pilot takes it.
        quick: asks for nothing.
    """
    open_ = main | dict([OPEN]) | {RATE: rate}
    if quick:
        return open_
    found = yield from _searched({"open": open_}, rate, ("privacy", "privacy"))
    return open_ | {RATE: found["open"]}


def _around(experiment: Experiment, main: dict[str, Any], repeat: int) -> list[Job]:
    """What the result hangs on: half and twice the rank and the clip norm, and a share of A thawed."""
    rank, norm = experiment.method.rank, experiment.privacy.clip_norm
    ranks = [one for one in (rank // 2, 2 * rank) if one >= 1]
    found = [_of("rank", main | {"method.rank": one}, repeat) for one in ranks]
    norms = (norm / 2, 2 * norm)
    found += [_of("clip", main | {"privacy.clip_norm": one}, repeat) for one in norms]
    return [*found, _of("share", main | {"method.freeze": "thaw 0.5 rank"}, repeat)]


def _value(experiment: Experiment, name: str) -> Any:
    table, _, setting = name.rpartition(".")
    return getattr(getattr(experiment, table) if table else experiment, setting)


def _of(question: str, changes: dict[str, Any], repeat: int = 0) -> Job:
    return Job(question, tuple(sorted(changes.items(), key=lambda item: item[0])), repeat)
