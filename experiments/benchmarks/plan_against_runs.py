"""What ``ffalora plan`` says a round takes, against rounds that were run.

Claim: within 30 % on four workloads: packed texts, more texts at three sites, images, a toy with many clients.

Run: python experiments/benchmarks/plan_against_runs.py        Time: about 6 minutes on two cores
Result: docs/benchmarks.md. Workloads whose data is not there are left out, with the reason.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import ffalora_jax as ffa
from ffalora_jax.errors import InputError
from ffalora_jax.plan import plan
from ffalora_jax.prepare import prepare

HERE = Path(__file__).parents[1]
SHORT = {"rounds": 5, "evaluate_every": 5, "max_validation": 100}
TINY = {
    "model.name": "tiny",
    "data.name": "synthetic",
    "data.max_examples": 12_000,
    "partition.name": "iid",
    "partition.num_clients": 200,
    "batch_size": 8,
    "rounds": 5,
}


def workloads() -> dict[str, ffa.Experiment]:
    """Returns the experiments by name."""
    return {
        "quickstart": ffa.load_experiment(HERE / "quickstart.toml").replace(**SHORT),
        "sst2": ffa.load_experiment(HERE / "small" / "sst2.toml").replace(**SHORT),
        "fashion_mnist": ffa.load_experiment(HERE / "small" / "fashion_mnist.toml").replace(**SHORT),
        "many clients": ffa.Experiment().replace(**TINY),
    }


def main() -> None:
    """Plans, then runs, one workload after another; one JSON line each."""
    for name, experiment in workloads().items():
        try:
            planned = plan(prepare(experiment))
        except InputError as error:
            print(f"{name} left out: {error}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            run = ffa.simulate(experiment, out=Path(folder, "run"))
        seconds = statistics.median(line["seconds"] for line in run.metrics[1:])
        line = {
            "benchmark": "plan_against_runs",
            "workload": name,
            "planned_seconds_per_round": planned["seconds"]["round"],
            "measured_seconds_per_round": seconds,
            "ratio": planned["seconds"]["round"] / seconds,
            "epsilon_planned": planned["privacy"]["epsilon"],
            "epsilon_spent": run.epsilon,
            "bytes_planned": planned["bytes"]["run"],
            "bytes_sent": run.communication["bytes_total"],
            "compiled_bytes": run.folder.read_json("environment.json")["compiled_bytes"],
            "estimated_bytes": planned["client_chunk"] * planned["memory"]["per_client_at_once"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
