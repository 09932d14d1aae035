"""A search over settings: many runs in one folder, their table, the best combination, what all of it cost.

sweeps/NAME/    sweep.toml  secret.json (owner only)  runs/TRIAL-REPEAT/ (each a whole run folder)
                results.jsonl  results.csv  results.parquet  summary.json
"""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from ffalora_jax import registry, rng, search_cost
from ffalora_jax.cache import write_atomically
from ffalora_jax.config import Experiment
from ffalora_jax.config_search import SearchConfig, space_of
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import search_toml
from ffalora_jax.loaded_run import Run
from ffalora_jax.loop import Event, Observer
from ffalora_jax.many_runs import ManyRuns, Member
from ffalora_jax.matched import with_matched_rank
from ffalora_jax.run_folder import RunFolder, check_free
from ffalora_jax.search import Trial, Waves
from ffalora_jax.shared_search import SharedSearch
from ffalora_jax.simulation import folder_of, free_path
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

FILE, SECRET, RUNS = "sweep.toml", "secret.json", "runs"


class Sweep(NamedTuple):
    """A finished search."""

    path: Path
    rows: list[dict[str, Any]]
    """One a run."""
    summary: dict[str, Any]
    """Combinations, the best one, comparisons, privacy."""

    def frame(self):
        """Returns the rows as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.rows)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; what was done is saved."""

    def __init__(self, path: Path):
        super().__init__(f"stopped; go on with `ffalora resume {path}`")


def sweep(
    experiment: Experiment,
    search: SearchConfig,
    data: Any = None,
    *,
    model: nnx.Module | None = None,
    out: str | Path | None = None,
    observe: Observer = lambda event: None,
) -> Sweep:
    """Runs a search. A folder of the same search goes on where it stopped.

    Runs of one program are computed by one compiled call (``together``); each leaves a run folder like a
    run made alone, with the same numbers up to rounding. Each has noise of its own, from the search's secret.

    Args:
        experiment: what all runs have in common.
        search: what is varied, and how it is gone through.
        data: as in ``simulate``.
        model: as in ``simulate``.
        out: folder to make; left out, ``sweeps/NAME``, numbered if that exists.
        observe: is told how many runs have ended.

    Raises:
        InputError: something given cannot be used, or no run can be made.
        KeyboardInterrupt: Ctrl-C; what was done is saved.
    """
    space = space_of(search, experiment)
    make = registry.lookup("searches", search.strategy)
    path = Path(out) if out is not None else Path("sweeps") / folder_of(experiment.name).name
    if out is None and search.storage is None:
        path = free_path(path)
    text = search_toml(experiment.replace(noise_seed=None), search)
    arguments = search, space, experiment.rounds, experiment.seed
    if not (path / FILE).is_file():
        check_free(path)
        make(*arguments, 0)  # refuses before anything is written
        _begin(path, text, experiment.noise_seed)
    secret, given = _taken_up(path, text)
    experiment = experiment.replace(noise_seed=given)
    going = _Going(experiment, search, path, secret, observe)
    going.many = ManyRuns(data, model, going.tell)
    try:
        if search.storage is None:
            going.through(make(*arguments, secret))
        else:
            going.with_others(SharedSearch(search, space, experiment.name, text, experiment.rounds))
    except KeyboardInterrupt:
        going.write()
        raise Interrupted(path) from None
    return Sweep(path, going.rows, going.write())


def _begin(path: Path, text: str, noise_seed: int | None) -> None:
    """Makes the folder; of several workers that do so at once the first one's secret stands."""
    (path / RUNS).mkdir(parents=True, exist_ok=True)
    kept = {"secret": rng.fresh_noise_seed(), "given": noise_seed}
    with contextlib.suppress(FileExistsError):
        handle = os.open(path / SECRET, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(kept) + "\n")
    write_atomically(path / FILE, text)


def _taken_up(path: Path, text: str) -> tuple[int, int | None]:
    """Returns the secret of a search that is there already, if it is the same one, and a given noise seed.

    Raises:
        InputError: another search.
    """
    if (path / FILE).read_text() != text:
        raise InputError(
            f"{str(path)!r} holds another search: give another folder with --out, or go on with "
            f"`ffalora resume {path}`."
        )
    kept = json.loads((path / SECRET).read_text())
    return int(kept["secret"]), kept["given"]


class _Going:
    """A search while it is gone through."""

    def __init__(
        self,
        experiment: Experiment,
        search: SearchConfig,
        path: Path,
        secret: int,
        observe: Observer,
    ):
        self.experiment, self.search, self.path, self.secret = experiment, search, path, secret
        self.observe = observe
        self.many: Any = None
        self.rows: list[dict[str, Any]] = []
        self.told: dict[str, Any] = {}
        self._ended = self._planned = 0

    def tell(self, ended: int) -> None:
        """Says that so many runs more have come as far as they should now."""
        self._ended += ended
        self.observe(Event("runs", self._ended, self._planned))

    def through(self, waves: Waves) -> None:
        """Goes through all waves; whatever has its rounds already is only read."""
        scores: list[float] | None = None
        while True:
            try:
                wave = next(waves) if scores is None else waves.send(scores)
            except StopIteration:
                return
            scores = self.advance(wave.trials, wave.rounds)

    def with_others(self, shared: SharedSearch) -> None:
        """Does what falls to this worker of a search by many, and gathers what all of them found."""

        def advance(trial: Trial, rounds: int) -> tuple[float, list[dict[str, Any]]]:
            (score,) = self.advance([trial], rounds)
            mine = [row for row in self.rows if row["trial"] == trial.number]
            return score, [{"row": row, "privacy": self.privacy_of(row)} for row in mine]

        shared.work(advance)
        told = [run for runs in shared.known().values() for run in runs]
        self.rows = [run["row"] for run in told]
        self.told = {run["row"]["folder"]: run["privacy"] for run in told}

    def privacy_of(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Returns what a run's cost follows from; None of one that was not made."""
        if row["status"] == "refused":
            return None
        if row["folder"] in self.told:  # of another worker, perhaps on another disk
            return self.told[row["folder"]]
        whole = RunFolder(self.path / row["folder"]).read_json("privacy.json")
        return {name: whole[name] for name in search_cost.READ}

    def advance(self, trials: Sequence[Trial], rounds: int) -> list[float]:
        """Brings trials to so many rounds; returns their scores."""
        members, places, early = [], [], {}
        for trial in trials:
            for repeat in range(self.search.seeds):
                place = trial, repeat
                try:
                    members.append(self.member(trial, repeat))
                    places.append(place)
                except InputError as error:
                    early[trial.number, repeat] = str(error)
        self._planned += len(members)
        refused = dict(
            zip(
                ((trial.number, repeat) for trial, repeat in places),
                self.many.advance(members, rounds),
                strict=True,
            )
        )
        refused |= early
        if refused and all(refused.values()) and not self.rows:
            raise InputError(f"No run of this search can be made: {next(iter(refused.values()))}")
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
        name = f"{trial.number:03d}-{repeat}"
        experiment = self.experiment.replace(
            **trial.settings,
            seed=self.experiment.seed + repeat,
            name=f"{self.experiment.name} {name}",
        )
        if self.search.match == "parameters":
            same = {n: v for n, v in trial.settings.items() if n != "method.name"}
            reference = self.experiment.replace(**same, seed=experiment.seed)
            experiment = with_matched_rank(experiment, reference, self.many.loader)
        seed = rng.noise_seed_of(self.secret, trial.number, repeat)
        return Member(experiment, self.path / RUNS / name, seed)

    def row(self, trial: Trial, repeat: int, why: str | None) -> dict[str, Any]:
        """Returns one run's row."""
        folder = f"{RUNS}/{trial.number:03d}-{repeat}"
        facts = {"trial": trial.number, "repeat": repeat, "seed": self.experiment.seed + repeat}
        facts |= {"folder": folder, **trial.settings}
        if why is not None:
            return refused_row(facts, why)
        return row_of(Run(RunFolder(self.path / folder)), facts)

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
        moved = [name for name in self.search.over if name.startswith(search_cost.SPLITS)]
        all_runs = search_cost.of_all(runs, self.search.seeds == 1 and not moved)
        best = search_cost.of_the_best(self.search, runs)
        return {
            "every_run": all_runs._asdict(),
            "best_alone": best._asdict(),
            "note": search_cost.SCORED_BY,
        }
