"""Runs that differ in numbers alone: one by one, against one search on one compiled program.

Claim: on a CPU a search of eight runs of a tiny or a toy model takes less than 1 / 2.5 of the eight runs one
after another in one process (each compiles anew: learning rate and clip norm stand in its program), and a
search is never slower.

Run: python experiments/benchmarks/sweep.py [--repeats 3] [--width N]    Time: 8 minutes on two cores
Result (28 November 2026, Intel Xeon, 2 cores that had other work beside, one turn): tiny 4.76 times as fast
(213 against 45 s), toy 4.65 (165 against 35 s; with one at a time in place of eight side by side 4.50). A
search writes no report.html for each run, which the single runs do.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

import ffalora_jax as ffa
from ffalora_jax.text import hash_tokenizer
from ffalora_jax.together import Program

RATES, NORMS = (0.1, 0.2, 0.4, 0.8), (0.3, 0.6)
WORDS = 512


class Toy(nnx.Module):
    """Mean of word vectors, one adapted layer, a head: below the size at which all clients run at once."""

    def __init__(self, rngs: nnx.Rngs):
        self.words = nnx.Embed(WORDS, 16, rngs=rngs)
        self.query = nnx.Linear(16, 32, rngs=rngs)
        self.head = nnx.Linear(32, 2, rngs=rngs)
        self.tokenizer = hash_tokenizer(WORDS)

    def __call__(self, input_ids, attention_mask):
        mask = attention_mask[..., None]
        mean = jnp.sum(self.words(input_ids) * mask, -2) / jnp.maximum(jnp.sum(mask, -2), 1)
        return self.head(nnx.relu(self.query(mean)))


WORKLOADS = {
    "tiny": {"model.name": "tiny", "rounds": 12},
    "toy": {"partition.num_clients": 64, "batch_size": 4, "rounds": 60, "method.targets": "query"},
}


def main() -> None:
    """Times both ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, help="runs side by side, in place of the choice")
    options = parser.parse_args()
    if options.width:
        Program.width = lambda self, count: min(count, options.width)
    for name, changes in WORKLOADS.items():
        given = {"data.name": "synthetic", "data.max_examples": 2000} | changes
        experiment = ffa.Experiment().replace(**given)
        model = Toy(nnx.Rngs(0)) if name == "toy" else None
        ways = {"one by one": one_by_one, "search": search}
        seconds = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, call in ways.items():
                seconds[way].append(timed(call, experiment, model))
        pairs = zip(seconds["one by one"], seconds["search"], strict=True)
        line = {"benchmark": "sweep", "workload": name, "runs": len(RATES) * len(NORMS)}
        line |= {"seconds": {way: statistics.median(found) for way, found in seconds.items()}}
        line |= {"width": options.width or "chosen", "repeats": options.repeats}
        print(
            json.dumps(line | {"speed_up": statistics.median(a / b for a, b in pairs)}), flush=True
        )


def timed(call: Callable, experiment: ffa.Experiment, model: nnx.Module | None) -> float:
    """Seconds of a call in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        call(experiment, model, Path(folder))
        return time.perf_counter() - begin


def one_by_one(experiment: ffa.Experiment, model: nnx.Module | None, folder: Path) -> None:
    """Makes the runs one after another."""
    for rate in RATES:
        for norm in NORMS:
            changes = {"optimizer.learning_rate": rate, "privacy.clip_norm": norm}
            out = folder / f"{rate}-{norm}"
            ffa.simulate(experiment.replace(**changes), model=model, out=out)


def search(experiment: ffa.Experiment, model: nnx.Module | None, folder: Path) -> None:
    """Makes them as one search."""
    over = {"optimizer.learning_rate": list(RATES), "privacy.clip_norm": list(NORMS)}
    ffa.sweep(experiment, ffa.SearchConfig(over=over), model=model, out=folder / "search")


if __name__ == "__main__":
    main()
