"""Packed rows and blocks of a draw, against one padded block of the whole capacity.

Claim: on a CPU, computing only what the draw filled takes well under half the time of the padded form, and
packing the texts into rows the least of all.

Run: python experiments/benchmarks/rounds.py        Time: about 2 minutes on two cores
Result (26 November 2026, AMD EPYC, 2 cores, the quickstart's model, data and sizes, seconds per client-step,
medians of three): padded 0.93; blocks of 8 at full width 0.42, at three widths 0.30; packed rows 0.27.
"""

import statistics
import time

import jax
import jax.numpy as jnp

import ffalora_jax as ffa
from ffalora_jax import rng
from ffalora_jax.clipping import Blocks
from ffalora_jax.prepare import prepare
from ffalora_jax.round import Keys
from ffalora_jax.text import block_widths

REPEATS = 3


def plain(size: int, widths: tuple[int, ...]) -> dict:
    """Returns the changes to a prepared run that make it compute examples in blocks, without packing."""
    return {"blocks": Blocks(size, widths), "packing": None}


def main() -> None:
    """Times one round of every form in turn, the forms interleaved, and prints medians."""
    run = prepare(ffa.load_experiment("experiments/quickstart.toml"))
    tokens, capacity = run.experiment.model.max_tokens, run.plan.capacity
    forms = {
        "padded, one block": plain(capacity, (tokens,)),
        "blocks of 8, full width": plain(8, (tokens,)),
        "blocks of 8, three widths": plain(8, block_widths(tokens)),
        "packed rows": {"packing": run.packing},
    }
    keys = Keys(rng.public_root(0), rng.secret_root(0))
    arguments = (keys, run.state, run.frozen, run.data, run.numbers, jnp.int32(1))
    calls = {
        name: run._replace(**form).rounds().lower(*arguments).compile()
        for name, form in forms.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            seconds[name].append(time.perf_counter() - begin)
    steps = run.settings.cohort_size * run.experiment.local_steps
    for name, found in seconds.items():
        print(f"{name:28} {statistics.median(found[1:]) / steps:.3f} s a client-step")


if __name__ == "__main__":
    main()
