"""The questions of a pilot, the most important ones first, so that it may stop at any time.

A generator gives a few jobs, is sent what they scored, and gives the next ones: what is asked later depends
on what came out. Jobs of one step are runs of few programs, so they are computed together.
"""

import contextlib
from collections.abc import Generator
from typing import Any, NamedTuple

from ffalora_jax.config import Experiment

METHODS = ("ffa_lora", "fedavg_lora")
ALONE = "local_only"
OTHER_EPSILONS = (None, 3.0, 1.0)
OTHER_INITS = ("gaussian", "orthonormal")
WIDEST = 3
"""Steps by a factor of two that the learning rate is looked for, up or down."""
REPEATS, MORE_REPEATS = (1, 2), (3, 4)
RATE = "optimizer.learning_rate"


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
        quick: leave out the second look at the learning rate, initialisers, rank, clip norm and share.
        deadline: simulated seconds that slow sites might adapt to; None: there is nothing to gain by it.
    """
    rates = yield from _rates(experiment, quick)
    best = {method: {"method.name": method, RATE: rates[method]} for method in METHODS}
    alone = {"method.name": ALONE, RATE: rates[METHODS[0]]}
    yield [_of("alone", alone)]
    main = best[METHODS[0]]
    yield [_of("privacy", main | _at(epsilon)) for epsilon in OTHER_EPSILONS]
    ways = [("repeat", one) for one in best.values()] + [("alone", alone)]
    if deadline is not None:
        yield [_of("adapt", main | {"sites.adapt": "deadline", "sites.deadline": deadline})]
    yield [_of(name, one, repeat) for repeat in REPEATS for name, one in ways]
    if quick:
        return
    yield [_of("init", main | {"method.init": init}) for init in OTHER_INITS]
    yield _around(experiment, main)
    yield [_of(name, one, repeat) for repeat in MORE_REPEATS for name, one in ways]
    yield [
        _of("privacy", main | _at(epsilon), repeat)
        for epsilon in OTHER_EPSILONS
        for repeat in REPEATS
    ]
    yield [
        _of("init", main | {"method.init": init}, repeat)
        for init in OTHER_INITS
        for repeat in REPEATS
    ]


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
    """Looks for each method's learning rate: half and twice, and on where the best lies at the edge."""
    start = experiment.optimizer.learning_rate
    known: dict[str, dict[float, float]] = {method: {} for method in METHODS}
    todo = {method: [start] for method in METHODS}
    for step in range(1 if quick else WIDEST + 1):
        asked = [_of("rate", {"method.name": m, RATE: r}) for m in METHODS for r in todo[m]]
        if step == 0:
            asked = [one._replace(question="methods") for one in asked]
        scores = yield asked
        for one in asked:
            score, table = scores.get(one), known[one.settings["method.name"]]
            table[one.settings[RATE]] = float("-inf") if score is None else score
        todo = {method: _next_rates(known[method]) for method in METHODS}
        if not any(todo.values()):
            break
    return {
        method: max(table, key=lambda r, table=table: table[r]) for method, table in known.items()
    }


def _next_rates(known: dict[float, float]) -> list[float]:
    """Returns the rates beside the best one that are not known yet."""
    best = max(known, key=lambda rate: known[rate])
    return [rate for rate in (best / 2, best * 2) if rate not in known]


def _around(experiment: Experiment, main: dict[str, Any]) -> list[Job]:
    """What the result hangs on: half and twice the rank and the clip norm, and a share of A thawed."""
    rank, norm = experiment.method.rank, experiment.privacy.clip_norm
    found = [_of("rank", main | {"method.rank": max(1, round(rank * f))}) for f in (0.5, 2)]
    found += [_of("clip", main | {"privacy.clip_norm": norm * factor}) for factor in (0.5, 2)]
    return [*found, _of("share", main | {"method.freeze": "thaw 0.5 rank"})]


def _at(epsilon: float | None) -> dict[str, Any]:
    if epsilon is None:
        return {"privacy.mechanism": "none"}
    return {"privacy.epsilon": epsilon}


def _of(question: str, changes: dict[str, Any], repeat: int = 0) -> Job:
    return Job(question, tuple(sorted(changes.items(), key=lambda item: item[0])), repeat)
