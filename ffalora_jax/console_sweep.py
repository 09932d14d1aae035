"""What a person sees of a search at its end: the combinations, comparisons, and what all of it cost."""

from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from ffalora_jax.report import words
from ffalora_jax.sweeps import Sweep

MOST_SHOWN = 30
FEWEST = 3
"""Seeds from which on an interval says something."""


def show(found: Sweep) -> None:
    """Prints the combinations, the best first, comparisons, and what all of it cost."""
    console = Console()
    trials = [trial for trial in found.summary["trials"] if trial["refused"] is None]
    trials.sort(key=lambda t: (-t["rounds"], -_or_least(t["score"])))
    every = found.summary["trials"]
    names = list(every[0]["settings"]) if every else []
    short = {name: name.removesuffix(".name").rpartition(".")[2] for name in names}
    varied = [name for name in names if len({str(t["settings"][name]) for t in every}) > 1]
    table = Table(box=None, pad_edge=False)
    for name in ("trial", *varied, "rounds", "validation", "test", "epsilon", "a site", "failed"):
        side = "left" if name in varied else "right"
        table.add_column(short.get(name, name), justify=side, no_wrap=True)
    for trial in trials[:MOST_SHOWN]:
        table.add_row(*_cells(trial, varied, found.summary["best"]))
    # Never cut: a narrow terminal wraps its lines.
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, needed)).print(table, highlight=False)
    _say(console, found, trials)


def _cells(trial: dict[str, Any], varied: list[str], best: int | None) -> list[str]:
    settings = [trial["settings"][name] for name in varied]
    return [
        f"{'best ' * (trial['trial'] == best)}{trial['trial']}",
        *(f"{value:.3g}" if isinstance(value, float) else str(value) for value in settings),
        str(trial["rounds"]),
        _with_interval(trial["validation_accuracy"], trial["runs"]),
        _with_interval(trial["test_accuracy"], trial["runs"]),
        words.number(trial["epsilon"]),
        "–" if trial["bytes_per_client"] is None else words.size(trial["bytes_per_client"]),
        f"{trial['failed']} of {trial['runs']}",
    ]


def _say(console: Console, found: Sweep, trials: list[dict[str, Any]]) -> None:
    """Prints what is no table."""
    summary = found.summary
    lines = []
    if len(trials) > MOST_SHOWN:
        lines.append(f"... and {len(trials) - MOST_SHOWN} more")
    refused = {t["refused"] for t in summary["trials"] if t["refused"]}
    lines += [f"not made: {why}" for why in sorted(refused)]
    lines.append(_of_seeds(summary["seeds"]))
    majority = [row["majority_accuracy"] for row in found.rows if row.get("majority_accuracy")]
    if majority:
        lines.append(f"always naming each site's commonest class: {100 * max(majority):.1f} %")
    lines += [_comparison(one) for one in summary["compared"] or []]
    every, best = summary["privacy"]["every_run"], summary["privacy"]["best_alone"]
    lines.append(f"privacy of all runs together: {_cost(every)}")
    lines.append(f"privacy of the best alone: {_cost(best)}")
    if not summary["privacy"]["releasable"]:
        lines.append(
            "a noise seed was given: the search is repeatable, and nothing of it is for release"
        )
    lines.append(f"tables: {found.path}/results.csv, .parquet, .jsonl; {found.path}/summary.json")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _of_seeds(seeds: int) -> str:
    if seeds == 1:
        return "one seed: differences of a point or two may be chance (--seeds 5)"
    if seeds < FEWEST:
        return f"{seeds} seeds say little about what chance does: no intervals (--seeds 5)"
    return f"±: 95 % interval of the mean over {seeds} seeds (Student's t)"


def _comparison(one: dict[str, Any]) -> str:
    if one["trial"] is None:
        return f"{one['value']}: no run of it can be compared"
    mean = words.percent(one["test_accuracy"]["mean"])
    said = f"{one['value']}: test {mean} with trial {one['trial']}, its best of {one['tried']} by validation"
    gap = one["difference"]
    if gap is None:
        return f"{said} and the best of all"
    if gap["mean"] is None:
        return f"{said}; no run to compare it with"
    said += f"; {100 * gap['mean']:+.1f} points against the best, seed by seed"
    if gap["low"] is None:
        return f"{said} (one seed: no interval)"
    within = "; zero lies within: no difference is shown" if gap["low"] <= 0 <= gap["high"] else ""
    return f"{said} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}{within})"


def _cost(cost: dict[str, Any]) -> str:
    if cost["epsilon"] is None:
        return cost["how"]
    at = "" if cost["delta"] is None else f" (delta {cost['delta']:.3g})"
    return f"epsilon {cost['epsilon']:.3g}{at}: {cost['how']}"


def _with_interval(value: dict[str, Any], runs: int) -> str:
    if value["mean"] is None or value["low"] is None or runs < FEWEST:
        return words.percent(value["mean"])
    return f"{words.percent(value['mean'])} ± {100 * (value['high'] - value['mean']):.1f}"


def _or_least(score: float | None) -> float:
    return float("-inf") if score is None else score
