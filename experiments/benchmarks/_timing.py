"""Rounds of prepared runs timed in turn: what the benchmark programs share."""

import statistics
import time
from collections.abc import Mapping

import jax

from ffalora_jax import rng
from ffalora_jax.engine import Engine
from ffalora_jax.prepare import Prepared
from ffalora_jax.round import Keys

KEYS = 0, 0
"""Public and secret seed: every form draws the same."""


def seconds_per_round(
    runs: Mapping[str, Prepared], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Times one round of every run in turn, repeat by repeat; compiling and the first calls are left out."""
    keys = Keys(rng.public_root(KEYS[0]), rng.secret_root(KEYS[1]))
    engines = {
        name: Engine(run._replace(settings=run.settings._replace(rounds_per_call=1)))
        for name, run in runs.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(repeats + warm_up):
        for name, engine in engines.items():
            begin = time.perf_counter()
            jax.block_until_ready(engine(keys, engine.run.state, 1))
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def client_steps(run: Prepared) -> int:
    """Returns how many local steps all clients of a round make together."""
    return run.settings.slots(1) * run.experiment.local_steps


def median_per_step(runs: Mapping[str, Prepared], seconds: Mapping[str, list[float]]):
    """Returns the median seconds of a client's step, by name."""
    return {
        name: statistics.median(found) / client_steps(runs[name]) for name, found in seconds.items()
    }
