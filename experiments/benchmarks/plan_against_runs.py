"""What ``ffalora plan`` says a round takes, against rounds that were run.

Claim: within 30 % on four workloads: texts of four sites, of three, images, many clients of a toy.

Run: python experiments/benchmarks/plan_against_runs.py        Time: about 6 minutes on two cores
Result: docs/benchmarks.md. Workloads whose data is not there are left out, with the reason.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx

import ffalora_jax as ffa
from ffalora_jax.errors import InputError
from ffalora_jax.models.vit import ViT
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


VIT = {
    "image_size": 96,
    "patch_size": 16,
    "hidden_size": 192,
    "num_attention_heads": 3,
    "num_hidden_layers": 12,
    "intermediate_size": 768,
}


def workloads() -> dict[str, tuple]:
    """Returns (experiment, data, model) by name."""
    images = ffa.Experiment().replace(
        **SHORT, **{"partition.name": "iid", "partition.num_clients": 4, "batch_size": 32}
    )
    return {
        "quickstart": (ffa.load_experiment(HERE / "quickstart.toml").replace(**SHORT), None, None),
        "sst2": (ffa.load_experiment(HERE / "small" / "sst2.toml").replace(**SHORT), None, None),
        "vit": (images, _pictures(), ViT(VIT, 3, nnx.Rngs(0))),
        "many clients": (ffa.Experiment().replace(**TINY), None, None),
    }


def _pictures() -> dict[str, list]:
    """Returns noise in three colours: what an image shows costs nothing."""
    draw = np.random.default_rng(0)
    labels = np.arange(600) % 3
    pixels = [np.clip(draw.normal(80 + 40 * k, 30, (96, 96, 3)), 0, 255) for k in labels]
    return {"image": [x.astype(np.uint8) for x in pixels], "label": labels.tolist()}


def main() -> None:
    """Plans, then runs, one workload after another; one JSON line each."""
    for name, (experiment, data, model) in workloads().items():
        try:
            planned = plan(prepare(experiment, data, model))
        except (InputError, OSError) as error:
            print(f"{name} left out: {error}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            run = ffa.simulate(experiment, data, model=model, out=Path(folder, "run"))
            compiled = run.folder.read_json("environment.json")["compiled_bytes"]
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
            "compiled_bytes": compiled,
            "estimated_bytes": planned["client_chunk"] * planned["memory"]["per_client_at_once"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
