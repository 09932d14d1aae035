"""Four sites of unequal machines and lines: wait for all, drop the late, or let each do what it can.

The quickstart's data and model (adapters on the last two blocks), speeds of 400, 100, 25 and 12 GFLOP/s,
lines of 1000, 50, 5 and 1 Mbit/s up. Waiting, every round lasts as long as the slowest site takes; with a
deadline at .45 of that and nothing else the slow sites are never heard; adapted to it they take fewer
local steps and come in time. Each site's noise is calibrated to its own number of steps.

Claim: adapted, all sites are heard in less than half of the simulated time.
Run: python experiments/unequal_sites.py        Time: 5 minutes on two cores
Result (28 November 2026, one seed; differences of a point or two are chance):
  wait for all         74.7 %, 102 s simulated, sites 70.6 75.0 77.1 84.3
  drop the late        75.5 %, 46 s, sites 73.4 81.7 75.4 76.5: the last two never heard
  late next time       76.1 %, 56 s, sites 72.3 79.6 75.9 84.3: the last one never heard
  adapted              75.6 %, 37 s, sites 72.6 75.9 75.6 83.8, with 3, 3, 2 and 1 local steps a round
  slow lines, wait     70.4 %, 464 s, sites 66.2 69.5 77.6 77.4 (hetlora)
  slow lines, adapted  71.7 %, 198 s, sites 68.1 71.2 77.1 78.0, with ranks 8, 8, 8 and 2
"""

import tempfile
from pathlib import Path
from typing import Any

import ffalora_jax as ffa
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
"""Where it is the messages that take the time; a method whose sites may have ranks of their own."""


def main() -> None:
    """Runs all ways and prints a line each."""
    base = ffa.load_experiment(Path(__file__).with_name("quickstart.toml"))
    base = base.replace(noise_seed=1, **{"method.layers": "4-5"}, **SITES)
    late = {"sites.deadline": 0.45 * slowest(base)}
    lines = SLOW_LINES | {"sites.deadline": 0.45 * slowest(base.replace(**SLOW_LINES))}
    ways: dict[str, dict[str, Any]] = {
        "wait for all": {},
        "drop the late": late,
        "late next time": {"sites.deadline": 0.55 * slowest(base), "sites.late_weight": 0.5},
        "adapted": late | {"sites.adapt": "deadline"},
        "slow lines, wait": SLOW_LINES,
        "slow lines, adapted": lines | {"sites.adapt": "deadline"},
    }
    for name, changes in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            experiment = base.replace(**changes)
            run = ffa.simulate(experiment, out=Path(folder, "run"))
            print(line(name, run, prepare(experiment).numbers.rank), flush=True)


def slowest(experiment: ffa.Experiment) -> float:
    """Returns the simulated seconds that the slowest site takes for a round."""
    ready = prepare(experiment)
    assert ready.sites is not None
    return float(times_of(ready.sites, ready.step_flops, *message_bytes(ready)).total.max())


def line(name: str, run: Any, ranks: Any) -> str:
    """Accuracy, time, steps, ranks and epsilon of each site."""
    seconds = sum(one["simulated_seconds"] for one in run.metrics)
    heard = sorted({client for one in run.metrics for client in one["participants"]})
    steps = [one["steps"] // len(run.metrics) for one in run.privacy["clients"]]
    spent = [round(one["epsilon"], 2) for one in run.privacy["clients"]]
    each = [round(100 * x, 1) for x in run.metrics[-1]["test_accuracy_per_client"].values()]
    return (
        f"{name:19} accuracy {100 * run.accuracy:.1f} % (sites {each}), {seconds:.0f} s simulated, heard "
        f"{heard}, steps a round {steps}, ranks {'all' if ranks is None else list(map(int, ranks))}, "
        f"epsilon {spent}"
    )


if __name__ == "__main__":
    main()
