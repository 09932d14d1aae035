"""One search by many workers: optuna's storage says which trial is whose, and what came of it.

A worker is this command, started anywhere with the same settings. It asks for a trial, says every few seconds
that it is alive, and tells the score. A trial whose worker has been silent for ``search.stale_seconds`` (the
machines' clocks have to agree that far) is taken over by another one: where they share the disk with the
search's folder, from its checkpoint and with its noise, else from the start.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ffalora_jax.config_search import SearchConfig, Space
from ffalora_jax.errors import InputError
from ffalora_jax.run_folder import Busy
from ffalora_jax.search import Trial, every_combination, rungs, size_of
from ffalora_jax.search._optuna import FAILED_SCORE, need_optuna, suggested

POLL_SECONDS = 1.0
ATTEMPTS = 3
"""To open a storage."""
Advance = Callable[[Trial, int], tuple[float, list[dict[str, Any]]]]
"""(trial, rounds) -> its score after them, and what is to be known of its runs."""


class Mine(NamedTuple):
    """A trial that this worker has."""

    trial: Any
    """optuna's."""
    what: Trial
    was_elsewhere: bool = False


class SharedSearch:
    """A worker's side of a search that others take part in."""

    def __init__(self, search: SearchConfig, space: Space, name: str, text: str, rounds: int):
        assert search.storage is not None
        need_optuna()
        self.search, self.space, self.rounds = search, space, rounds
        self._grid = every_combination(space) if search.strategy == "grid" else None
        few = search.strategy == "halving" and size_of(space) <= search.trials
        self._grid = every_combination(space) if few else self._grid
        self.count = search.trials if self._grid is None else len(self._grid)
        self._me = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
        self._place = ""
        self._study = _study(search, name, rounds)
        told = self._study.user_attrs.get("search")
        if told is None:
            self._study.set_user_attr("search", text)
        elif told != text:
            raise InputError(
                f"The storage has another search by the name {name!r}: give this one another --name."
            )

    def work(self, advance: Advance, place: str = "") -> None:
        """Does trials until none is left, and none of a worker that died.

        Args:
            advance: makes a trial's rounds.
            place: names the folder that the runs lie in. What a worker with another one had begun of a trial
                that is taken over is lost, and is counted beside what is made anew.
        """
        self._place = place
        while True:
            mine = self._begun() or self._taken_over()
            if mine is not None:
                if mine.was_elsewhere:
                    self._lose(mine.trial)
                with self._alive(mine.trial), contextlib.suppress(Busy):  # it lives, and is at it
                    self._run(mine, advance)
            elif not self._running():
                return
            else:
                time.sleep(POLL_SECONDS)

    def known(self) -> dict[int, list[dict[str, Any]]]:
        """Returns what all workers told of their runs, by trial."""
        trials = self._study.get_trials(deepcopy=False)
        found = {t.number: t.user_attrs.get("runs") for t in trials if t.number < self.count}
        return {number: json.loads(runs) for number, runs in sorted(found.items()) if runs}

    def lost(self) -> dict[int, int]:
        """Returns how often a trial was begun by a worker that died, and could not be gone on with."""
        trials = self._study.get_trials(deepcopy=False)
        return {t.number: t.user_attrs["lost"] for t in trials if "lost" in t.user_attrs}

    def _run(self, mine: Mine, advance: Advance) -> None:
        import optuna

        told = self._now(mine.trial).intermediate_values
        for rounds in rungs(self.search, self.rounds) if self._is_halving else [self.rounds]:
            score, runs = advance(mine.what, rounds)
            if self._owner(mine.trial) != self._me:
                return  # it was taken for dead: the trial is another one's now
            score = max(score, FAILED_SCORE)
            mine.trial.set_user_attr("runs", json.dumps(runs))
            if rounds not in told:  # by the worker before: optuna keeps what was said first
                mine.trial.report(score, rounds)
            is_free = rounds >= mine.trial.user_attrs.get("at_least", 0)
            if is_free and rounds < self.rounds and mine.trial.should_prune():
                self._study.tell(mine.trial, state=optuna.trial.TrialState.PRUNED)
                return
        self._study.tell(mine.trial, score)

    @property
    def _is_halving(self) -> bool:
        return self.search.strategy == "halving"

    def _lose(self, trial: Any) -> None:
        """Notes an attempt whose runs are elsewhere: it is charged as much as the next one.

        So the next one goes at least as far as the lost one may have come, which is the rung after the last
        of which it told.
        """
        frozen = self._now(trial)
        told = max(frozen.intermediate_values, default=0)
        further = [one for one in rungs(self.search, self.rounds) if one > told]
        trial.set_user_attr("at_least", min(further, default=self.rounds))
        trial.set_user_attr("lost", frozen.user_attrs.get("lost", 0) + 1)

    def _begun(self) -> Mine | None:
        """Asks for a trial; None where all have been given out."""
        import optuna

        if len(self._study.get_trials(deepcopy=False)) >= self.count:
            return None
        trial = self._study.ask()
        if trial.number >= self.count:  # another worker was faster
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return None
        self._claim(trial)
        return Mine(trial, Trial(trial.number, self._settings(trial)))

    def _settings(self, trial: Any) -> dict[str, Any]:
        if self._grid is not None:
            return self._grid[trial.number].settings
        return suggested(trial, self.space)

    def _taken_over(self) -> Mine | None:
        """Returns a trial whose worker is silent, if this one gets it."""
        import optuna

        for frozen in self._running():
            if time.time() - frozen.user_attrs.get("alive", 0.0) < self.search.stale_seconds:
                continue
            moved = frozen.user_attrs.get("place") != self._place
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            self._claim(trial)
            time.sleep(POLL_SECONDS)  # of several that claim it the last one has it
            if self._owner(trial) == self._me:
                return Mine(trial, Trial(trial.number, self._settings(trial)), moved)
        return None

    def _now(self, trial: Any) -> Any:
        """Returns a trial as it is now; optuna's own object remembers what it was when it was made."""
        trials = self._study.get_trials(deepcopy=False)
        return next(one for one in trials if one.number == trial.number)

    def _owner(self, trial: Any) -> str | None:
        """Returns whose a trial is now."""
        return self._now(trial).user_attrs.get("worker")

    def _running(self) -> list[Any]:
        import optuna

        state = (optuna.trial.TrialState.RUNNING,)
        found = self._study.get_trials(deepcopy=False, states=state)
        return [trial for trial in found if trial.number < self.count]

    def _claim(self, trial: Any) -> None:
        trial.set_user_attr("worker", self._me)
        trial.set_user_attr("place", self._place)
        trial.set_user_attr("alive", time.time())

    @contextlib.contextmanager
    def _alive(self, trial: Any) -> Iterator[None]:
        """Says every few seconds that this worker is alive."""
        ended = threading.Event()

        def tell() -> None:
            while not ended.wait(self.search.stale_seconds / 5):
                with contextlib.suppress(Exception):  # the next time, then
                    trial.set_user_attr("alive", time.time())

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _study(search: SearchConfig, name: str, rounds: int) -> Any:
    """Opens the study, or makes it.

    Raises:
        InputError: the storage cannot be opened.
    """
    import optuna

    samplers = optuna.samplers
    sampler = samplers.RandomSampler()
    if search.strategy == "bayesian":
        sampler = samplers.TPESampler(constant_liar=True)
    pruner = optuna.pruners.NopPruner()
    if search.strategy == "halving":
        # Of the trials that reached a rung so far, those among the best part go on: nobody waits.
        pruner = optuna.pruners.SuccessiveHalvingPruner(
            min_resource=rungs(search, rounds)[0], reduction_factor=round(search.keep)
        )
    for attempt in range(ATTEMPTS):
        try:
            return optuna.create_study(
                storage=_storage(str(search.storage)),
                study_name=name,
                sampler=sampler,
                pruner=pruner,
                direction="maximize",
                load_if_exists=True,
            )
        except Exception as error:  # of as many kinds as there are databases
            if attempt + 1 < ATTEMPTS:  # two workers that make the tables at once hinder each other
                time.sleep(POLL_SECONDS)
                continue
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"Cannot open --storage {_without_password(search)}: {said}"
            ) from error
    raise AssertionError("unreachable")


def _storage(address: str) -> Any:
    import optuna

    if "://" in address:
        return optuna.storages.RDBStorage(address)
    from optuna.storages.journal import JournalFileBackend

    return optuna.storages.JournalStorage(JournalFileBackend(address))


def _without_password(search: SearchConfig) -> str:
    before, at, after = str(search.storage).rpartition("@")
    return f"{before.partition('://')[0]}://...{at}{after}" if at else after
