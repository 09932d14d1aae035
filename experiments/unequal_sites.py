"""Four sites of unequal machines and lines: wait for all, drop the late, or let each do what it can.

The quickstart's data and model (adapters on the last two blocks), speeds of 400, 100, 25 and 12 GFLOP/s,
lines of 1000, 50, 5 and 1 Mbit/s up. Waiting, every round lasts as long as the slowest site takes; with a
deadline at .45 of that and nothing else the slow sites are never heard; adapted to it they take fewer local
steps and come in time. Each site's noise is calibrated to its own number of steps. The slow lines have
messages that take the time, and a method (``hetlora``) whose sites may have ranks of their own.

Claim (asked here): adapted, all sites are heard in less than half of the simulated time, and the accuracy
    is not more than two points below that of waiting.
Run: python -m experiments.unequal_sites        Time: 15 minutes on two cores; full: 20 seeds: 90 minutes on
    two cores
Limits: simulated time, of machines and lines that do not change; one data set of four sites.
"""

import contextlib
import shutil
import sys
from pathlib import Path
from typing import Any

import ffalora_jax as ffa
from experiments import _frame
from experiments._verdicts import Judged, Row, above, below, cell, differences
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import prepare
from ffalora_jax.presence import times_of
from ffalora_jax.run_facts import message_bytes

SITES = {
    "sites.speed": "400, 100, 25, 12",
    "sites.up": "1000, 50, 5, 1",
    "sites.down": "1000, 200, 20, 10",
    "sites.latency": "20",
}
SLOW_LINES = {"method.name": "hetlora", "sites.up": "1000, 50, 0.1, 0.02"}
WAIT, ADAPTED = "wait for all", "adapted"
MARGIN = -2.0


def run(ask: _frame.Ask) -> list[Row]:
    """Returns a row a seed and way; the smallest accuracy of a site stands in it too."""
    base = ffa.load_experiment(Path(__file__).with_name("quickstart.toml"))
    base = ask.length(base.replace(noise_seed=1, **{"method.layers": "4-5"}, **SITES))
    every = ways(base)
    ask.tell("ways", base, {"way": list(every)})
    rows = []
    for seed in range(ask.seeds):
        for number, (way, changes) in enumerate(every.items()):
            folder = ask.folder / f"{seed}-{number}"
            experiment = base.replace(seed=seed, noise_seed=1000 + seed, **changes)
            ask.check()
            rows.append({"seed": seed, "way": way} | row_of(made(experiment, folder)))
    return rows


def made(experiment: ffa.Experiment, folder: Path) -> ffa.Run:
    """Runs it, or goes on where it stopped."""
    with contextlib.suppress(InputError):  # none there, or stopped before anything was saved
        run = ffa.load_run(folder)
        return run if len(run.metrics) >= experiment.rounds else ffa.resume(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return ffa.simulate(experiment, out=folder)


def ways(base: ffa.Experiment) -> dict[str, dict[str, Any]]:
    """Returns what is changed in each."""
    slowest = slowest_site(base)
    late = {"sites.deadline": 0.45 * slowest}
    lines = SLOW_LINES | {"sites.deadline": 0.45 * slowest_site(base.replace(**SLOW_LINES))}
    return {
        WAIT: {},
        "drop the late": late,
        "late next time": {"sites.deadline": 0.55 * slowest, "sites.late_weight": 0.5},
        ADAPTED: late | {"sites.adapt": "deadline"},
        f"slow lines, {WAIT}": SLOW_LINES,
        f"slow lines, {ADAPTED}": lines | {"sites.adapt": "deadline"},
    }


def slowest_site(experiment: ffa.Experiment) -> float:
    """Returns the simulated seconds that the slowest site takes for a round."""
    ready = prepare(experiment)
    assert ready.sites is not None
    return float(times_of(ready.sites, ready.step_flops, *message_bytes(ready)).total.max())


def row_of(run: ffa.Run) -> Row:
    """Returns accuracy, time, who was heard, steps and epsilon of each site."""
    each = run.metrics[-1]["test_accuracy_per_client"].values()
    return {
        "status": "done",
        "test_accuracy": run.accuracy,
        "each": [round(value, 4) for value in each],
        "seconds": round(sum(one["simulated_seconds"] for one in run.metrics), 2),
        "heard": len({client for one in run.metrics for client in one["participants"]}),
        "steps": [one["steps"] // len(run.metrics) for one in run.privacy["clients"]],
        "epsilon": [round(one["epsilon"], 2) for one in run.privacy["clients"]],
    }


def judge(rows: list[Row]) -> Judged:
    """Time and accuracy of adapting against waiting, and who is heard."""
    by_way: dict[str, list[Row]] = {}
    for row in rows:
        by_way.setdefault(row["way"], []).append(row)
    parts = []
    for lines in ("", "slow lines, "):
        ours, theirs = by_way[lines + ADAPTED], by_way[lines + WAIT]
        shares = [a["seconds"] / b["seconds"] for a, b in zip(ours, theirs, strict=True)]
        parts.append(below(f"{lines}time, adapted over waiting", shares, 0.5))
        apart = differences(ours, theirs)
        parts.append(above(f"{lines}adapted minus waiting, points", apart, MARGIN))
        sites = [row["heard"] for row in ours]
        parts.append(above(f"{lines}sites heard, adapted", sites, len(ours[0]["steps"]) - 0.5))
    table = [
        [
            way,
            cell(found),
            cell(found, figure=lambda row: 100 * min(row["each"])),
            f"{sum(row['seconds'] for row in found) / len(found):.0f}",
            f"{min(row['heard'] for row in found)} of {len(found[0]['steps'])}",
            " ".join(map(str, found[0]["steps"])),
        ]
        for way, found in by_way.items()
    ]
    head = ["way", "accuracy", "of the worst site", "simulated s", "sites heard", "steps a round"]
    return Judged(parts, head, table)


STUDY = _frame.Study("unequal_sites", __doc__ or "", (3, 20), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
