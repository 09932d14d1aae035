"""``ffalora doctor``: what this machine has, and whether a private round comes out right on it."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ffalora_jax import flags
from ffalora_jax.errors import InputError

HELP = """usage: ffalora doctor [--json]

Says what a report of a bug needs: versions, devices, memory, caches, whether the model hub answers. Then
runs one tiny private round twice, packed into rows and with the plain vmap(grad) of one example at a time,
and compares them. Exit code 1 if something that a run needs is missing or wrong, else 0.

  --json          one JSON object on standard output
"""
LARGEST_DIFFERENCE = 1e-4
"""Between two ways to the same round, relative to the longest step; rounding gives 1e-6, TF32 about 1e-3."""


def run(arguments: list[str], use_jax: Callable[[], None]) -> int:
    """Looks at everything, prints it, and returns the exit code.

    Args:
        arguments: of the command.
        use_jax: prepares JAX, once the arguments are read.
    """
    as_json, rest = flags.switch(arguments, "--json")
    if rest:
        raise InputError(f"ffalora doctor takes --json alone, got {rest[0]!r}.")
    use_jax()
    print("looking at the machine, then one tiny private round", file=sys.stderr)
    found, wrong = _machine()
    found["round"], more = _round()
    wrong += more
    if as_json:
        print(json.dumps({**found, "wrong": wrong}, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:14} {_in_words(value)}")
        print("\n".join(f"wrong: {one}" for one in wrong) or "all well")
    return 1 if wrong else 0


def _machine() -> tuple[dict[str, Any], list[str]]:
    """Returns what there is, and what a run would miss."""
    import jax

    from ffalora_jax.cache import folder
    from ffalora_jax.fetch import hub_answers
    from ffalora_jax.memory import free_bytes
    from ffalora_jax.run_log import versions

    wrong, cache = [], ""
    try:
        place = folder()
        with tempfile.TemporaryFile(dir=place):
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
        cache = f"{place}, {size / 2**20:.0f} MiB"
    except OSError as error:
        wrong.append(
            f"the cache cannot be written ({error}): set FFALORA_CACHE to a folder of yours"
        )
    devices = [f"{device.device_kind} ({device.platform})" for device in jax.devices()]
    return {
        "versions": versions(),
        "devices": devices,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "free memory": f"{free_bytes() / 2**30:.1f} GiB",
        "cache": cache or "none",
        "model hub": hub_answers() or "answers",
    }, wrong


def _round() -> tuple[dict[str, Any], list[str]]:
    """Makes one private round in both forms; returns how it went and what is wrong with it."""
    import jax
    import numpy as np

    from ffalora_jax import rng
    from ffalora_jax.config import Experiment
    from ffalora_jax.prepare import prepare

    base = Experiment().replace(
        rounds=1,
        local_steps=2,
        batch_size=16,
        **{
            "model.name": "tiny",
            "data.name": "synthetic",
            "data.max_examples": 400,
            "privacy.noise_multiplier": 1.0,
        },
    )
    keys = rng.Keys(rng.public_root(0), rng.secret_root(0))
    begin, moved, packed = time.perf_counter(), [], []
    for changes in ({}, {"packing": False, "client_chunk": "1"}):
        ready = prepare(base.replace(**changes))
        state, _ = ready.rounds()(keys, ready.state, ready.frozen, ready.data, ready.numbers, 1)
        difference = jax.tree.map(
            lambda a, b: np.asarray(a) - b, state.adapters, ready.state.adapters
        )
        moved.append(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(difference)]))
        packed.append(ready.packing is not None)
    apart = float(np.abs(moved[0] - moved[1]).max() / np.abs(moved[1]).max())
    facts = {
        "forms": " and ".join("in rows" if one else "padded" for one in packed),
        "largest relative difference": apart,
        "seconds, compiling with them": round(time.perf_counter() - begin, 1),
    }
    wrong = []
    if not apart <= LARGEST_DIFFERENCE:
        wrong.append(
            f"two ways to the same round differ by {apart:.2g} (expected {LARGEST_DIFFERENCE:g} at most): "
            "the device may compute in a lower precision; try JAX_DEFAULT_MATMUL_PRECISION=highest"
        )
    return facts, wrong


def _in_words(value: Any) -> str:
    """Returns a value as one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.2g}" if isinstance(value, float) and value < 0.01 else str(value)
