"""The prefix cache: adapters on the last two of MiniLM's six blocks, with and without.

Claim: a client-step takes at most half the time once the four blocks below are not computed again; the
updates are the same.

Run: python experiments/benchmarks/prefix.py        Time: about 3 minutes on two cores
Result: docs/benchmarks.md.
"""

import json
import statistics
import time

import jax
import numpy as np

import ffalora_jax as ffa
from ffalora_jax import rng
from ffalora_jax.engine import Engine
from ffalora_jax.prepare import prepare
from ffalora_jax.round import Keys

REPEATS = 5
EXPERIMENT = "experiments/quickstart.toml"


def main() -> None:
    """Times rounds with and without in turn; prints one JSON line."""
    base = ffa.load_experiment(EXPERIMENT).replace(**{"method.layers": "4-5", "evaluate_every": 1})
    keys = Keys(rng.public_root(0), rng.secret_root(0))
    engines, states, prepared = {}, {}, {}
    for setting in ("never", "always"):
        begin = time.perf_counter()
        run = prepare(base.replace(prefix_cache=setting))
        prepared[setting] = time.perf_counter() - begin
        engines[setting] = Engine(run)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(REPEATS + 1):
        for name, engine in engines.items():
            begin = time.perf_counter()
            state, _ = engine(keys, engine.run.state, 1)
            jax.block_until_ready(state)
            states[name] = state.adapters
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - begin)
    run = engines["always"].run
    steps = run.settings.slots(1) * base.local_steps
    each = {name: statistics.median(found) / steps for name, found in seconds.items()}
    pairs = zip(jax.tree.leaves(states["never"]), jax.tree.leaves(states["always"]), strict=True)
    line = {
        "benchmark": "prefix",
        "experiment": EXPERIMENT,
        "layers": "4-5",
        "seconds_per_client_step": each,
        "ratio": each["never"] / each["always"],
        "seconds_to_fill": prepared["always"] - prepared["never"],
        "kept": run.prefix_note,
        "max_abs_difference": max(float(np.abs(np.subtract(a, b)).max()) for a, b in pairs),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
