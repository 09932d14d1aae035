"""What came of many runs: a row a run, a summary a combination, and comparisons seed by seed."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from ffalora_jax.cache import write_atomically
from ffalora_jax.loaded_run import Run
from ffalora_jax.report import words
from ffalora_jax.run_folder import metrics_text, plain

TABLE, SUMMARY = "results.jsonl", "summary.json"
LEVEL = 0.95


class Interval(NamedTuple):
    """A mean, and where the mean of many more repetitions would lie: Student's t, 95 %."""

    mean: float | None
    low: float | None
    high: float | None


def interval_of(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Returns mean -+ t s / sqrt(n); of one value no interval, of none no mean."""
    from scipy.stats import t

    found = np.asarray(values, float)
    if found.size == 0:
        return Interval(None, None, None)
    mean = float(found.mean())
    if found.size == 1:
        return Interval(mean, None, None)
    half = t.ppf((1 + level) / 2, found.size - 1) * found.std(ddof=1) / math.sqrt(found.size)
    return Interval(mean, mean - float(half), mean + float(half))


def row_of(run: Run, facts: dict[str, Any]) -> dict[str, Any]:
    """Returns a run's row: what it was, and how it ended.

    ``status``: done; failed (figures that are not finite); stopped (not all its rounds were made).
    """
    lines, privacy = run.metrics, run.privacy
    last = lines[-1] if lines else {}
    ended = len(lines) >= privacy["planned_rounds"] or privacy["stopped_at_budget"]
    return {
        **facts,
        "rank": run.experiment.method.rank,
        "trained_parameters": run.folder.read_json("environment.json")["trained_parameters"],
        "status": "failed" if words.diverged(run) else "done" if ended else "stopped",
        "why": None,
        "rounds": len(lines),
        "validation_accuracy": last.get("accuracy"),
        "validation_loss": last.get("validation_loss"),
        "test_accuracy": last.get("test_accuracy"),
        "majority_accuracy": last.get("majority_accuracy"),
        "epsilon_spent": privacy["epsilon"],
        "delta": privacy["delta"],
        "bytes_per_client": words.row(run).bytes_per_client,
        "seconds": run.seconds,
    }


def refused_row(facts: dict[str, Any], why: str) -> dict[str, Any]:
    """Returns the row of a run that cannot be made."""
    return {**facts, "status": "refused", "why": why, "rounds": 0}


def score_of(rows: Sequence[dict[str, Any]], objective: str) -> float:
    """Returns a combination's score over its repetitions, higher is better; -inf where one failed."""
    name = {"accuracy": "validation_accuracy", "loss": "validation_loss"}[objective]
    if any(row["status"] == "failed" for row in rows):
        return -math.inf
    values = [value for row in rows if (value := row.get(name)) is not None]
    if not values or len(values) < len(rows) or not np.isfinite(values).all():
        return -math.inf
    mean = float(np.mean(values))
    return mean if objective == "accuracy" else -mean


def trials_of(rows: Sequence[dict[str, Any]], over: Sequence[str], objective: str) -> list[dict]:
    """Returns one summary a combination, in order: its settings, means with intervals, what failed."""
    found = []
    for number in dict.fromkeys(row["trial"] for row in rows):
        mine = [row for row in rows if row["trial"] == number]
        score = score_of(mine, objective)
        found.append(
            {
                "trial": number,
                "settings": {name: mine[0][name] for name in over},
                "runs": len(mine),
                "failed": sum(row["status"] == "failed" for row in mine),
                "refused": next((row["why"] for row in mine if row["status"] == "refused"), None),
                "rounds": min(row["rounds"] for row in mine),
                "ended": all(row["status"] in ("done", "failed") for row in mine),
                "score": score if math.isfinite(score) else None,
                **{
                    name: interval_of(_values(mine, name))._asdict()
                    for name in ("validation_accuracy", "test_accuracy")
                },
                "epsilon": max(_values(mine, "epsilon_spent"), default=None),
                "bytes_per_client": max(_values(mine, "bytes_per_client"), default=None),
                "seconds": interval_of(_values(mine, "seconds")).mean,
            }
        )
    return found


def best_of(trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the combination of the best score; those that ended come first, then who went furthest.

    None if all failed.
    """

    def place(trial: dict[str, Any]) -> tuple:
        return trial["ended"], 0 if trial["ended"] else trial["rounds"], trial["score"]

    return max((t for t in trials if t["score"] is not None), key=place, default=None)


def compared(
    rows: Sequence[dict[str, Any]], trials: Sequence[dict[str, Any]], name: str
) -> list[dict[str, Any]]:
    """Compares a setting's values, each with its best combination by validation, on the test part.

    The differences are to the value of the best validation score, run by run: repetition k of both has the
    same seed, so the same split.
    """
    values = dict.fromkeys(trial["settings"][name] for trial in trials)
    best = {v: best_of([t for t in trials if t["settings"][name] == v]) for v in values}
    whole = best_of([trial for trial in best.values() if trial is not None])
    if whole is None:
        return []
    found = []
    for value, trial in best.items():
        if trial is None:
            found.append({"value": value, "trial": None})
            continue
        mine, theirs = (_by_repeat(rows, one["trial"]) for one in (trial, whole))
        pairs = [mine[k] - theirs[k] for k in sorted(mine.keys() & theirs.keys())]
        tried = [t for t in trials if t["settings"][name] == value]
        found.append(
            {
                "value": value,
                "trial": trial["trial"],
                "tried": len(tried),
                "failed": sum(t["failed"] for t in tried),
                "runs": sum(t["runs"] for t in tried),
                "test_accuracy": trial["test_accuracy"],
                "difference": None if trial is whole else interval_of(pairs)._asdict(),
            }
        )
    return found


def _by_repeat(rows: Sequence[dict[str, Any]], trial: int) -> dict[int, float]:
    return {
        row["repeat"]: row["test_accuracy"]
        for row in rows
        if row["trial"] == trial and row.get("test_accuracy") is not None
    }


def _values(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def write_tables(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes ``results.jsonl``, ``results.csv`` and ``results.parquet``: a row a run."""
    write_atomically(folder / TABLE, metrics_text(list(rows)))
    names = list(dict.fromkeys(name for row in rows for name in row))
    whole = [{name: plain(row.get(name)) for name in names} for row in rows]
    table = pa.Table.from_pylist(whole)
    for name, write in (("results.csv", csv.write_csv), ("results.parquet", parquet.write_table)):
        sink = pa.BufferOutputStream()
        write(table, sink)
        write_atomically(folder / name, sink.getvalue().to_pybytes())


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes ``summary.json``."""
    write_atomically(folder / SUMMARY, json.dumps(plain(summary), indent=2) + "\n")
