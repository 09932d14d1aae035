"""A pilot while it is gone through: its runs, one question after another, as long as there is time."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from ffalora_jax import rng
from ffalora_jax.config import Experiment
from ffalora_jax.config_pilot import PilotConfig
from ffalora_jax.errors import InputError
from ffalora_jax.loaded_run import Run
from ffalora_jax.loop import Event, Observer
from ffalora_jax.many_runs import ManyRuns, Member
from ffalora_jax.pilot_course import METHODS, Job, course, longest
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.run_facts import message_bytes
from ffalora_jax.run_folder import RunFolder
from ffalora_jax.sweep_results import refused_row, row_of

RUNS = "runs"
WORTH = 0.95
"""Of the slowest site's time: a deadline above that saves too little to be tried."""
SLACK = 1.001
QUICK_VALIDATION, QUICK_TEST = 100, 300
"""Held-out examples of a site in a quick pilot."""
MOST_AT_ONCE = 8
LATEST = 4
"""Runs whose longest says how long the next one takes."""


class Answer(NamedTuple):
    """A run of the pilot and its row (``sweep_results.row_of``)."""

    job: Job
    row: dict[str, Any]


class Piloting:
    """A pilot while it is gone through."""

    def __init__(
        self,
        experiment: Experiment,
        asked: PilotConfig,
        path: Path,
        secret: int,
        observe: Observer,
        data: Any = None,
        model: nnx.Module | None = None,
    ):
        self.asked, self.path, self.observe = asked, path, observe
        self.secret = secret if experiment.noise_seed is None else experiment.noise_seed
        self.many = ManyRuns(data, model, self._tell)
        self._begin = time.monotonic()
        self.before = 0.0
        """Seconds that earlier calls took."""
        self._done = self._planned = 0
        self._question = ""
        self._last: list[float] = []
        self._round_bytes: dict[str, float] = {}
        observe(Event("reading data and model"))
        experiment = experiment.replace(**{"method.name": METHODS[0]})
        self.experiment = quicker(experiment, self.many) if asked.quick else experiment
        # Known before any of them: how many are made at a time is a matter of the clock. What is kept is
        # made before the first run, and a pilot may stop early, so half of them have to make it pay.
        planned = longest(self.experiment, asked.quick, None)
        self.many.loader.expect([self.experiment], planned / 2)
        self.first = prepare(self.experiment, loader=self.many.loader)
        self.deadline = deadline_worth_trying(self.first)
        self.answers: list[Answer] = []
        self.whole = False
        """Whether all questions were asked."""
        self.fresh = False
        """Whether a run was computed by this call."""

    @property
    def used(self) -> float:
        """Seconds so far, of this call."""
        return time.monotonic() - self._begin

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.asked.seconds - self.used

    @property
    def longest_run(self) -> float:
        """Seconds of the longest of the last runs; 0 before the first."""
        return max(self._last[-LATEST:], default=0.0)

    def steps(self) -> Iterator[None]:
        """Goes through the questions, a step at a time, until all are asked or the time is over."""
        course_of = self.experiment, self.asked.quick, self.deadline
        going = course(*course_of)
        self._planned = longest(*course_of)
        jobs = next(going)
        while self._ask(jobs):
            yield
            scores = {one.job: validated(one.row) for one in self.answers if one.job in jobs}
            try:
                jobs = going.send(scores)
            except StopIteration:
                self.whole = True
                return

    def round_bytes(self, method: str) -> float:
        """Returns what a site sends and receives in a round with a method, run or not; 0 if it cannot be."""
        if method not in self._round_bytes:
            named = self.experiment.replace(**{"method.name": method})
            try:
                run = prepare(named, loader=self.many.loader)
                self._round_bytes[method] = sum(float(np.mean(one)) for one in message_bytes(run))
            except InputError:
                self._round_bytes[method] = 0.0
        return self._round_bytes[method]

    def _ask(self, jobs: list[Job]) -> bool:
        """Makes runs, as many at a time as there is time for; returns whether all were made."""
        known = {(one.job.changes, one.job.repeat): one.row for one in self.answers}
        todo = []
        for job in jobs:  # what was asked before under another question is not made again
            row = known.get((job.changes, job.repeat))
            todo += [job] if row is None else []
            self.answers += [] if row is None else [Answer(job, row)]
        self._done += len(jobs) - len(todo)
        while todo:
            if self._last and self.left < self.longest_run and not self._is_ahead():
                return False
            count = int(self.left / self.longest_run) if self.longest_run else 1
            count = max(1, min(count, MOST_AT_ONCE))
            now, todo = todo[:count], todo[count:]
            self._make(now)
        return True

    def _is_ahead(self) -> bool:
        """Whether an earlier call came further than this one has."""
        made = (int(p.parent.name.partition("-")[0]) for p in self.path.glob(f"{RUNS}/*/adapter"))
        return max(made, default=-1) >= len(self.answers)

    def _make(self, jobs: list[Job]) -> None:
        """Makes runs that differ in their settings; those that cannot be made get a row that says why."""
        first = len(self.answers)
        places = [f"{RUNS}/{first + k:02d}-{job.question}" for k, job in enumerate(jobs)]
        todo = [place for place in places if not (self.path / place / "adapter").is_dir()]
        whys, members = dict.fromkeys(places, ""), {}
        for number, (place, job) in enumerate(zip(places, jobs, strict=True), first):
            try:
                members[place] = self._member(number, place, job)
            except InputError as error:
                whys[place] = " ".join(str(error).split())
        self._question, begin = jobs[0].question, time.monotonic()
        refused = self.many.advance(list(members.values()), self.experiment.rounds)
        whys |= {place: why or "" for place, why in zip(members, refused, strict=True)}
        rows = [self._row(place, job, whys[place]) for place, job in zip(places, jobs, strict=True)]
        self.answers += [Answer(job, row) for job, row in zip(jobs, rows, strict=True)]
        if todo:
            self.fresh = True
            self._last.append((time.monotonic() - begin) / len(todo))
        elif not self._last:  # of an earlier call: what its rounds took is better than nothing
            self._last.append(max(row.get("seconds") or 0.0 for row in rows))

    def _row(self, place: str, job: Job, why: str) -> dict[str, Any]:
        facts = {"folder": place, "seed": self.experiment.seed + job.repeat, **job.settings}
        if why:
            return refused_row(facts, why)
        return row_of(Run(RunFolder(self.path / place)), facts)

    def _member(self, number: int, place: str, job: Job) -> Member:
        name = f"{self.experiment.name} {Path(place).name}"
        settings = job.settings | {"seed": self.experiment.seed + job.repeat, "name": name}
        secret = rng.noise_seed_of(self.secret, number, job.repeat)
        return Member(self.experiment.replace(**settings), self.path / place, secret)

    def _tell(self, ended: int, doing: str) -> None:
        self._done += ended
        left = max(0.0, self.left)
        stage = doing or f"runs: {self._question}, at most {left / 60:.1f} min left"
        self.observe(Event(stage, self._done, max(self._planned, self._done)))


def validated(row: dict[str, Any]) -> float | None:
    """Returns a run's accuracy on the validation part; None of one that failed or was not made."""
    return row["validation_accuracy"] if row["status"] == "done" else None


def quicker(experiment: Experiment, many: ManyRuns) -> Experiment:
    """Leaves out what takes most time, where the experiment says nothing about it.

    Adapters go into the upper sixth of the blocks, and of each site few held-out examples are scored.
    """
    fewer = min(experiment.max_validation, QUICK_VALIDATION)
    most = QUICK_TEST if experiment.max_test is None else experiment.max_test
    experiment = experiment.replace(max_validation=fewer, max_test=most)
    if experiment.method.layers != "all":
        return experiment
    loaded = many.loader.model(experiment, many.loader.dataset(experiment).class_names)
    count = len(getattr(loaded.model, "layers", ()))
    if count < 3:
        return experiment
    return experiment.replace(**{"method.layers": f"{count - max(1, count // 6)}-{count - 1}"})


def seconds_of_sites(run: Prepared) -> np.ndarray | None:
    """Returns what a round takes at each site, in simulated seconds; None where nothing is known of them."""
    presence = run.settings.presence
    return None if presence is None else presence.seconds.max(0)


def deadline_worth_trying(run: Prepared) -> float | None:
    """Returns a deadline that all but the slowest site keep, and the slowest with fewer local steps.

    None where there is one already, or nothing to gain.
    """
    seconds = seconds_of_sites(run)
    if seconds is None or run.sites is None or len(seconds) < 2:
        return None
    if run.experiment.sites.deadline is not None:
        return None
    slowest, second = int(seconds.argmax()), float(np.sort(seconds)[-2])
    sites = run.sites
    step = float(sites.work[slowest]) * run.step_flops / (1e9 * float(sites.speed[slowest]))
    with_one = float(seconds[slowest]) - (int(sites.local_steps[slowest]) - 1) * step
    found = SLACK * max(second, with_one)
    return found if found < WORTH * float(seconds[slowest]) else None
