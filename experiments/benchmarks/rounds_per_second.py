"""Rounds per second, model by clients by rank by method by mechanism, in turn in one process.

Claim: DP-SGD costs at most a tenth more than no privacy, FFA-LoRA no more than plain LoRA of its rank.

Run: python experiments/benchmarks/rounds_per_second.py --models tiny minilm --clients 4 16 --ranks 8 ...
     Time: about 6 minutes on two cores with the defaults
Result: docs/benchmarks.md. One JSON line for every combination, and one for each of the two claims.
"""

import argparse
import itertools
import json
import statistics
from typing import Any

from _timing import client_steps, seconds_per_round

import ffalora_jax as ffa
from ffalora_jax.plan import work_of
from ffalora_jax.prepare import Prepared, prepare

CLAIMS = {
    "DP-SGD against none": ("mechanism", "dp_sgd", "none"),
    "FFA-LoRA against LoRA": ("method", "ffa_lora", "fedavg_lora"),
}


def main() -> None:
    """Prepares every combination, times them in turn, prints JSON lines."""
    options = _options()
    axes = options.models, options.clients, options.ranks, options.methods, options.mechanisms
    names = "model", "clients", "rank", "method", "mechanism"
    cells = [dict(zip(names, cell, strict=True)) for cell in itertools.product(*axes)]
    runs = {json.dumps(cell): _prepared(options, **cell) for cell in cells}
    seconds = seconds_per_round(runs, options.repeats)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for cell in cells:
        name = json.dumps(cell)
        print(json.dumps(_line(cell, runs[name], seconds[name])), flush=True)
    for claim, (axis, one, other) in CLAIMS.items():
        ratios = [
            medians[json.dumps(cell)] / medians[json.dumps(cell | {axis: other})]
            for cell in cells
            if cell[axis] == one and json.dumps(cell | {axis: other}) in medians
        ]
        if ratios:
            found = {"benchmark": "rounds_per_second", "claim": claim, "ratios": ratios}
            print(json.dumps(found | {"ratio": statistics.median(ratios)}), flush=True)


def _line(cell: dict[str, Any], run: Prepared, seconds: list[float]) -> dict[str, Any]:
    work = work_of(run, run.settings.num_clients, run.settings.slots(1))
    median, steps = statistics.median(seconds), client_steps(run)
    return {
        "benchmark": "rounds_per_second",
        **cell,
        "rounds_per_second": 1 / median,
        "seconds_per_client_step": {"median": median / steps, "min": min(seconds) / steps},
        "tokens_per_second": work.tokens_per_step * steps / median,
        "gflop_per_second": work.flops_per_step * steps / median / 1e9,
    }


def _prepared(options, model, clients, rank, method, mechanism) -> Prepared:
    experiment = ffa.Experiment().replace(
        **{
            "local_steps": options.local_steps,
            "batch_size": options.batch_size,
            "evaluate_every": 1,
            "data.name": "synthetic",
            "data.max_examples": 200 * clients,
            "partition.name": "iid",
            "partition.num_clients": clients,
            "model.name": model,
            "model.max_tokens": 48,
            "method.name": method,
            "method.rank": rank,
            "privacy.mechanism": mechanism,
        }
    )
    if mechanism != "none":
        experiment = experiment.replace(**{"privacy.noise_multiplier": 1.0})
    return prepare(experiment)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["minilm"])
    parser.add_argument("--clients", nargs="+", type=int, default=[4])
    parser.add_argument("--ranks", nargs="+", type=int, default=[8])
    parser.add_argument("--methods", nargs="+", default=["ffa_lora", "fedavg_lora"])
    parser.add_argument("--mechanisms", nargs="+", default=["dp_sgd", "none"])
    parser.add_argument("--local-steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    main()
