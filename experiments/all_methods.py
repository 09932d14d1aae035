"""Every method at epsilon none, 6 and 1: one data set, mechanism, grid of learning rates, three seeds.

SST-2 cut to 8,000 texts, MiniLM with adapters on its last two blocks, three sites with classes mixed 1:9, 9:1
and 5:5, 30 local steps of 32 expected texts (``all_methods.toml``). The rate is chosen from ``RATES`` on
seed 0 by the sites' validation parts (not private: said beside the table), and reported on SST-2's official
validation part over ``SEEDS``, which draw the split, A, the head and the noise anew. A method's programs are
compiled twice, with privacy and without: rates and noise are arguments.

Claim: none beforehand.
Run: python experiments/all_methods.py run RESULTS.jsonl [METHOD ...]
     python experiments/all_methods.py page RESULTS.jsonl docs/all_methods.md
Time: about 4 minutes a method on one core. Several can run at once on different methods; what stands in the
file is not run again. Needs GLUE's SST-2 as a TFDS folder (``ffalora prepare glue/sst2``).
Result: docs/all_methods.md
"""

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ffalora_jax as ffa
from ffalora_jax import registry, rng
from ffalora_jax.data import Dataset
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.held_out import test, validation
from ffalora_jax.load import load_dataset
from ffalora_jax.messages import bytes_of
from ffalora_jax.prefix import Seen, kept_prefix
from ffalora_jax.prepare import Prepared, prepare
from ffalora_jax.rng import Keys

EPSILONS, RATES, SEEDS = (None, 6.0, 1.0), (0.1, 0.3, 1.0, 3.0), (0, 1, 2)
TEXTS, MEMBERS = 8000, 4096
WHOLE = len(EPSILONS) * (len(RATES) + len(SEEDS) - 1)
"""Runs of a method."""
LEFT_OUT = {"local_only": "no clients meet", "centralized": "one place"}
STUDENT = {3: 4.303}
"""97.5 % quantile of Student's t at so many values."""


class Programs(NamedTuple):
    """What is compiled once for a method, with or without privacy."""

    rounds: Any
    predict: Any


def data() -> Dataset:
    """8,000 training texts, the same for all, and the official validation part."""
    whole = load_dataset(ffa.load_experiment(TOML).replace(**{"data.max_examples": None}))
    assert whole.held_out is not None
    rows = np.flatnonzero(~whole.held_out)
    kept = rng.numpy_rng(0, rng.Purpose.SUBSET).choice(rows, TEXTS, replace=False)
    return whole.take(np.sort(np.concatenate([kept, np.flatnonzero(whole.held_out)])))


TOML = Path(__file__).with_name("all_methods.toml")


def prepared(dataset: Dataset, method: str, epsilon: float | None, seed: int, prefix) -> Prepared:
    """One run before its first round, its learning rate an argument."""
    changes = {
        "data.max_examples": None,
        "method.name": method,
        "optimizer.learning_rate": 1.0,
        "optimizer.schedule": "steps 0:1",
        "privacy.mechanism": "none" if epsilon is None else "dp_sgd",
        "privacy.epsilon": epsilon,
    }
    base = ffa.load_experiment(TOML).replace(seed=seed, prefix_cache="never", **changes)
    run = prepare(base, dataset)
    if prefix is None:
        rows = np.arange(len(dataset))
        prefix, _ = kept_prefix(
            "always", Seen(run.model, run.frozen.backbone, run.encoded), rows, 10**9
        )
        prefix = jax.tree.map(jnp.asarray, prefix)
    width = MEMBERS - run.data.members.shape[1] if not run.method.pooled else 0
    members = jnp.pad(run.data.members, ((0, 0), (0, width)))
    return run._replace(data=run.data._replace(prefix=prefix, members=members))


def trained(run: Prepared, programs: Programs, rate: float, seed: int) -> dict[str, Any]:
    """Runs all rounds and scores."""
    assert run.frozen.rates is not None
    rates = run.frozen.rates
    rates = rates._replace(learning_rate=jnp.full_like(rates.learning_rate, rate))
    keys = Keys(rng.public_root(seed), rng.secret_root(1000 + seed))
    state = run.state
    for _ in range(0, run.experiment.rounds, run.settings.rounds_per_call):
        count = jnp.int32(run.settings.rounds_per_call)
        frozen = run.frozen._replace(rates=rates)
        state, _ = programs.rounds(keys, state, frozen, run.data, run.numbers, count)
    return {
        "validation": validation(run, programs.predict, state)["accuracy"],
        "test": test(run, programs.predict, state)["test_accuracy"],
    }


def run_all(results: Path, methods: list[str]) -> None:
    """Runs what is not in the file yet."""
    dataset, prefix = data(), None
    for method in methods:
        for private in (False, True):
            programs = None
            for epsilon in [e for e in EPSILONS if (e is not None) == private]:
                rates: list[float] = list(RATES)
                for seed in SEEDS:
                    wanted = [r for r in rates if (method, epsilon, seed, r) not in done(results)]
                    if wanted:
                        run = prepared(dataset, method, epsilon, seed, prefix)
                        prefix = run.data.prefix
                        if programs is None:
                            predict = make_predictor(run.model, run.task, run.mesh)
                            programs = Programs(run.rounds(), predict)
                        one(results, run, programs, (method, epsilon, seed), wanted)
                    if seed == SEEDS[0]:
                        rates = [best_rate(results, method, epsilon)]


def one(results: Path, run: Prepared, programs: Programs, key: tuple, rates: list[float]) -> None:
    """Runs some rates of a method, epsilon and seed, and writes them down."""
    method, epsilon, seed = key
    up, down = bytes_of(run.method, run.state.adapters, 3, run.experiment.rounds - 1)
    for rate in rates:
        begin = time.perf_counter()
        found = trained(run, programs, rate, seed)
        line = {"method": method, "epsilon": epsilon, "seed": seed, "rate": rate, **found}
        line |= {"up": up, "down": down, "seconds": time.perf_counter() - begin}
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def lines(results: Path) -> list[dict[str, Any]]:
    """What stands in the file."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text().splitlines()]


def done(results: Path) -> set[tuple]:
    """Which runs stand in the file."""
    return {(x["method"], x["epsilon"], x["seed"], x["rate"]) for x in lines(results)}


def best_rate(results: Path, method: str, epsilon: float | None) -> float:
    """The rate with the best validation accuracy on seed 0; of equal ones the smaller."""
    tried = [
        x for x in lines(results) if (x["method"], x["epsilon"], x["seed"]) == (method, epsilon, 0)
    ]
    return max(tried, key=lambda x: (x["validation"], -x["rate"]))["rate"]


def page(results: Path, out: Path) -> None:
    """Writes the table, best at epsilon 6 first."""
    counts = Counter(x["method"] for x in lines(results))
    methods = sorted(m for m, count in counts.items() if count >= WHOLE)
    missing = sorted(set(registry.available("methods")) - set(methods) - set(LEFT_OUT))
    rows = {method: [cell(results, method, epsilon) for epsilon in EPSILONS] for method in methods}
    order = sorted(methods, key=lambda m: -rows[m][1][0])
    text = [
        "# Every method under one mechanism",
        "",
        (__doc__ or "").split("\n\n")[1].replace("\n", " "),
    ]
    text += [
        "",
        "| method | no privacy | epsilon 6 | epsilon 1 | kB up a round | kB down |",
        "|---|---|---|---|---|---|",
    ]
    for method in order:
        last = next(x for x in lines(results) if x["method"] == method)
        cells = " | ".join(f"{100 * m:.1f} ± {100 * h:.1f} ({r:g})" for m, h, r in rows[method])
        text.append(
            f"| `{method}` | {cells} | {last['up'] / 1000:.1f} | {last['down'] / 1000:.1f} |"
        )
    text += [
        "",
        *NOTES,
        *([f"Not run, or not wholly: {', '.join(missing)}."] if missing else []),
        f"{len(lines(results))} runs, {sum(x['seconds'] for x in lines(results)) / 60:.0f} minutes.",
    ]
    out.write_text("\n".join(text) + "\n")


def cell(results: Path, method: str, epsilon: float | None) -> tuple[float, float, float]:
    """Mean test accuracy over the seeds at the chosen rate, half its 95 % interval, the rate."""
    rate = best_rate(results, method, epsilon)
    found = [
        x["test"]
        for x in lines(results)
        if (x["method"], x["epsilon"], x["rate"]) == (method, epsilon, rate)
    ]
    if len(found) < 2:
        return found[0], float("nan"), rate
    half = STUDENT.get(len(found), 12.7) * statistics.stdev(found) / len(found) ** 0.5
    return statistics.mean(found), half, rate


NOTES = (
    "Accuracy in per cent, mean over three seeds and half the 95 % interval by Student's t (of three values:",
    "wide), in brackets the learning rate that was chosen. Cut to fit two cores: adapters on two of six",
    "blocks, 8,000 texts, 30 steps, four rates, one rate search (seed 0). Methods whose intervals meet are",
    "not told apart by this table; a method at the edge of the grid may do better beyond it. Made by",
    "`experiments/all_methods.py`. Methods with personal leaves (`fedsa_lora`) are scored on texts of all",
    "sites, which their sites' own models never aimed at.",
)


if __name__ == "__main__":
    command, file, *rest = sys.argv[1:]
    if command == "page":
        page(Path(file), Path(rest[0]))
    else:
        every = [m for m in registry.available("methods") if m not in LEFT_OUT]
        run_all(Path(file), rest or every)
