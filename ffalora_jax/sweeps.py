"""A search over settings: many runs in one folder, their table, the best combination, what all of it cost.

sweeps/NAME/    sweep.toml  secret.json (owner only)  runs/TRIAL-REPEAT/ (each a whole run folder)
                results.jsonl  results.csv  results.parquet  summary.json
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from ffalora_jax import registry, rng
from ffalora_jax.cache import write_atomically
from ffalora_jax.config import Experiment
from ffalora_jax.config_search import SearchConfig, Space, space_of
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import build, with_table
from ffalora_jax.loaded_run import Run, load_run
from ffalora_jax.loop import Event, Observer
from ffalora_jax.run_folder import RunFolder, check_free, keep_secret, lines_of, locked
from ffalora_jax.searching import RUNS, Searching
from ffalora_jax.shared_search import SharedSearch
from ffalora_jax.simulation import folder_of, free_path
from ffalora_jax.sweep_results import SUMMARY, TABLE

FILE, SECRET = "sweep.toml", "secret.json"


class Sweep(NamedTuple):
    """A finished search."""

    path: Path
    rows: list[dict[str, Any]]
    """One a run."""
    summary: dict[str, Any]
    """Combinations, the best one, comparisons, privacy."""

    @property
    def best(self) -> Run | None:
        """The first run of the best combination; None if all failed."""
        row = next((row for row in self.rows if row["trial"] == self.summary["best"]), None)
        return None if row is None else load_run(self.path / row["folder"])

    def frame(self) -> Any:
        """Returns the rows as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.rows)


def load_sweep(path: str | Path) -> Sweep:
    """Returns a search from its folder, as far as it came.

    Raises:
        InputError: no search is there, or none that came so far.
    """
    folder = RunFolder(Path(path))
    if not (folder.path / FILE).is_file():
        raise InputError(f"Expected the folder of a search, with {FILE} in it, got {str(path)!r}.")
    if not (folder.path / SUMMARY).is_file():
        raise InputError(
            f"The search in {str(path)!r} was stopped before its summary was written: go on with "
            f"`ffalora resume {path}`."
        )
    found = Sweep(folder.path, lines_of(folder.path / TABLE), folder.read_json(SUMMARY))
    if sum(trial["runs"] for trial in found.summary["trials"]) != len(found.rows):
        raise InputError(
            f"The search in {str(path)!r} went on after its summary was written: go on with `ffalora "
            f"resume {path}`."
        )
    return found


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; what was done is saved."""

    def __init__(self, path: Path):
        super().__init__(f"stopped; go on with `ffalora resume {path}`")


def sweep(
    experiment: Experiment,
    search: SearchConfig | dict[str, Any],
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
    search = _asked(search)
    space = space_of(search, experiment)
    _check_names(space)
    make = registry.lookup("searches", search.strategy)
    path = Path(out) if out is not None else folder_of(experiment.name, "sweeps")
    if out is None and search.storage is None:
        path = free_path(path)
    without = dataclasses.replace(search, storage=None)
    text = with_table(experiment.replace(noise_seed=None), "search", without)
    arguments = search, space, experiment.rounds, experiment.seed
    shared = None
    if search.storage is not None:  # opened first: a refusal leaves nothing behind
        shared = SharedSearch(search, space, experiment.name, text, experiment.rounds)
    if not (path / FILE).is_file():
        if not _is_half_made(path):
            check_free(path)
        make(*arguments, 0)  # refuses before anything is written
        _begin(path, text, experiment.noise_seed, search.storage)
    secret, given = _taken_up(path, text)
    observe(Event(f"folder {path}"))
    experiment = experiment.replace(noise_seed=given)
    going = Searching(experiment, search, path, secret, observe, data, model)
    try:
        if shared is None:
            with locked(path / FILE):
                going.through(make(*arguments, secret))
        else:
            going.with_others(shared)
    except KeyboardInterrupt:
        going.take_stock()
        going.write()
        raise Interrupted(path) from None
    summary = going.write()
    if going.rows and summary["refused"] == len(going.rows):
        raise InputError(f"No run of this search can be made: {going.rows[0]['why']}")
    return Sweep(path, going.rows, summary)


def _asked(search: SearchConfig | dict[str, Any]) -> SearchConfig:
    """Returns the table [search], which may be given as a dictionary."""
    if isinstance(search, dict):
        return build(SearchConfig, search, "the search", "search.")
    return search


def _check_names(space: Space) -> None:
    """Raises InputError for a name that is on no shelf: said now, not after the runs of the others."""
    for setting, values in space.items():
        if setting in registry.SHELF_OF and setting != "model.name" and isinstance(values, list):
            for name in values:
                registry.lookup(registry.SHELF_OF[setting], name)


def _is_half_made(path: Path) -> bool:
    """Whether the folder is one whose making was cut off."""
    if not path.is_dir():
        return False
    there = {file.name for file in path.iterdir() if not file.name.startswith(".")}
    return there <= {RUNS, SECRET, FILE}


def _begin(path: Path, text: str, noise_seed: int | None, storage: str | None) -> None:
    """Makes the folder; of several workers that do so at once the first one's secret stands."""
    (path / RUNS).mkdir(parents=True, exist_ok=True)
    # Beside the secret, for its password.
    kept = {"secret": rng.fresh_noise_seed(), "given": noise_seed, "storage": storage}
    with contextlib.suppress(FileExistsError):
        keep_secret(path / SECRET, kept)
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
