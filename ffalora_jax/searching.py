"""A search while it is gone through: its runs, their rows, and what they have cost."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from ffalora_jax import rng, search_cost
from ffalora_jax.config import Experiment
from ffalora_jax.config_search import SearchConfig
from ffalora_jax.errors import InputError
from ffalora_jax.loaded_run import Run
from ffalora_jax.loop import Event, Observer
from ffalora_jax.many_runs import ManyRuns, Member
from ffalora_jax.matched import with_matched_rank
from ffalora_jax.run_folder import RunFolder
from ffalora_jax.search import Trial, Waves
from ffalora_jax.shared_search import SharedSearch
from ffalora_jax.sweep_results import (
    best_of,
    compared,
    refused_row,
    row_of,
    score_of,
    trials_of,
    write_summary,
    write_tables,
)

RUNS = "runs"


def folder_of(trial: int, repeat: int) -> str:
    """Returns where a run lies in the search's folder."""
    return f"{RUNS}/{trial:03d}-{repeat}"


class Searching:
    """A search while it is gone through."""

    def __init__(
        self,
        experiment: Experiment,
        search: SearchConfig,
        path: Path,
        secret: int,
        observe: Observer,
        data: Any = None,
        model: nnx.Module | None = None,
    ):
        self.experiment, self.search, self.path, self.secret = experiment, search, path, secret
        self.observe = observe
        self.many = ManyRuns(data, model, self.tell)
        self.rows: list[dict[str, Any]] = []
        self.told: dict[str, Any] = {}
        self.lost: list[dict[str, Any]] = []
        """Attempts of workers that died elsewhere, each at the price of the one that came after it."""
        self.is_whole = False
        """Whether all that was to be tried was tried."""
        self.begun: dict[int, Trial] = {}
        self._ended = self._planned = 0
        if search.strategy == "bayesian" or search.storage is not None:
            # Their trials come one by one; of the others the first wave has all.
            seeds = range(experiment.seed, experiment.seed + search.seeds)
            each = [experiment.replace(seed=seed) for seed in seeds]
            self.many.loader.expect(each, search.trials)

    def tell(self, ended: int, doing: str) -> None:
        """Says that so many runs more have come as far as they should now, or what takes time."""
        self._ended += ended
        self.observe(Event(doing or "runs", self._ended, self._planned))

    def through(self, waves: Waves) -> None:
        """Goes through all waves; whatever has its rounds already is only read."""
        scores: list[float] | None = None
        while True:
            try:
                wave = next(waves) if scores is None else waves.send(scores)
            except StopIteration:
                self.is_whole = True
                return
            scores = self.advance(wave.trials, wave.rounds)

    def with_others(self, shared: SharedSearch) -> None:
        """Does what falls to this worker of a search by many, and gathers what all of them found."""

        def advance(trial: Trial, rounds: int) -> tuple[float, list[dict[str, Any]]]:
            (score,) = self.advance([trial], rounds)
            mine = [row for row in self.rows if row["trial"] == trial.number]
            return score, [{"row": row, "privacy": self.privacy_of(row)} for row in mine]

        # Known by a hash of the secret: workers that share the folder have it in common.
        shared.work(advance, hashlib.sha256(str(self.secret).encode()).hexdigest()[:16])
        told = [run for runs in shared.known().values() for run in runs]
        self.rows = [run["row"] for run in told]
        self.told = {run["row"]["folder"]: run["privacy"] for run in told}
        again = shared.lost()
        self.lost = [
            run["privacy"]
            for run in told
            for _ in range(again.get(run["row"]["trial"], 0))
            if run["privacy"] is not None
        ]

    def privacy_of(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what a run's cost follows from; None of one that was not made."""
        if row["folder"] in self.told:  # of another worker, perhaps on another disk
            return self.told[row["folder"]]
        file = self.path / row["folder"] / "privacy.json"
        if not file.is_file():
            return None
        whole = RunFolder(file.parent).read_json(file.name)
        return {name: whole.get(name) for name in search_cost.READ}

    def advance(self, trials: Sequence[Trial], rounds: int) -> list[float]:
        """Brings trials to so many rounds; returns their scores."""
        members: dict[tuple[int, int], Member] = {}
        refused: dict[tuple[int, int], str | None] = {}
        self.begun |= {trial.number: trial for trial in trials}
        for trial in trials:
            for repeat in range(self.search.seeds):
                try:
                    members[trial.number, repeat] = self.member(trial, repeat)
                except InputError as error:
                    refused[trial.number, repeat] = str(error)
        self._planned += len(members)
        share = min(1.0, rounds / self.experiment.rounds)
        self.many.loader.expect([one.experiment for one in members.values()], share)
        whys = self.many.advance(list(members.values()), rounds)
        refused |= zip(members, whys, strict=True)
        here = {trial.number for trial in trials}
        self.rows = [row for row in self.rows if row["trial"] not in here]
        scores = []
        for trial in trials:
            mine = [self.row(trial, k, refused[trial.number, k]) for k in range(self.search.seeds)]
            self.rows += mine
            scores.append(score_of(mine, self.search.objective))
        self.rows.sort(key=lambda row: (row["trial"], row["repeat"]))
        write_tables(self.path, self.rows)
        return scores

    def member(self, trial: Trial, repeat: int) -> Member:
        """Returns one run of a trial.

        Raises:
            InputError: its settings do not go together.
        """
        experiment = self.experiment.replace(**trial.settings, seed=self.experiment.seed + repeat)
        folder = folder_of(trial.number, repeat)
        if self.search.trials_law == "fixed":  # else the best is given out without its number
            experiment = experiment.replace(name=f"{experiment.name} {Path(folder).name}")
        if self.search.match == "parameters":
            same = {n: v for n, v in trial.settings.items() if n != "method.name"}
            reference = self.experiment.replace(**same, seed=experiment.seed)
            experiment = with_matched_rank(experiment, reference, self.many.loader)
        # A given one makes all of it repeatable; each run's noise is its own all the same.
        given = self.experiment.noise_seed
        secret = self.secret if given is None else given
        seed = rng.noise_seed_of(secret, trial.number, repeat)
        return Member(experiment, self.path / folder, seed)

    def row(self, trial: Trial, repeat: int, why: str | None) -> dict[str, Any]:
        """Returns one run's row."""
        folder = folder_of(trial.number, repeat)
        facts = {"trial": trial.number, "repeat": repeat, "seed": self.experiment.seed + repeat}
        facts |= {"folder": folder, **trial.settings}
        if why is not None:
            return refused_row(facts, why)
        return row_of(Run(RunFolder(self.path / folder)), facts)

    def take_stock(self) -> None:
        """Makes rows of all that was begun, as it stands, where a stop came before they were made."""
        known = {(row["trial"], row["repeat"]) for row in self.rows if row["status"] == "done"}
        self.rows = [row for row in self.rows if (row["trial"], row["repeat"]) in known]
        for trial in self.begun.values():
            for repeat in range(self.search.seeds):
                begun = self.path / folder_of(trial.number, repeat) / "privacy.json"
                if (trial.number, repeat) not in known and begun.is_file():
                    self.rows.append(self.row(trial, repeat, None))
        self.rows.sort(key=lambda row: (row["trial"], row["repeat"]))

    def write(self) -> dict[str, Any]:
        """Writes the tables and the summary as they stand."""
        trials = trials_of(self.rows, list(self.search.over), self.search.objective)
        best = best_of(trials)
        summary = {
            "strategy": self.search.strategy,
            "objective": self.search.objective,
            "intervals": "Student's t over the repetitions, 95 %",
            "seeds": self.search.seeds,
            "runs": len(self.rows),
            "failed": sum(row["status"] == "failed" for row in self.rows),
            "refused": sum(row["status"] == "refused" for row in self.rows),
            "best": None if best is None else best["trial"],
            "trials": trials,
            "compared": compared(self.rows, trials, self.search.compare)
            if self.search.compare
            else None,
            "privacy": self.cost(),
        }
        write_tables(self.path, self.rows)
        write_summary(self.path, summary)
        return summary

    def cost(self) -> dict[str, Any]:
        """Returns what the search has cost."""
        runs = [made for row in self.rows if (made := self.privacy_of(row)) is not None]
        runs += self.lost
        moved = [name for name in self.search.over if name.startswith(search_cost.SPLITS)]
        all_runs = search_cost.of_all(runs, self.search.seeds == 1 and not moved)
        best = search_cost.of_the_best(self.search, runs, self.is_whole)
        return {
            "every_run": all_runs._asdict(),
            "best_alone": best._asdict(),
            "releasable": self.experiment.noise_seed is None,
            "note": search_cost.SCORED_BY,
        }
