"""Time and peak memory as a round grows: clients, rank, tokens, devices; every point in a process of its own.

Claim: from 16 to 256 clients the time grows at most 16.5 times and the peak memory at most 1.3 times.

Run: python experiments/benchmarks/scaling.py [--axes clients rank tokens devices]
     Time: about 8 minutes on two cores
Result: docs/benchmarks.md. One JSON line a point.

MiniLM, one step of 8 expected examples a client and round; every client owns 60 texts of as many tokens as
the point says (24 where that is not the axis). The devices are a CPU's cores called so many: they show what
sharing costs, not a speed-up.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

AXES = {
    "clients": (16, 64, 256),
    "rank": (2, 8, 64),
    "tokens": (16, 64, 256),
    "devices": (1, 2, 8),
}
START = {"clients": 16, "rank": 8, "tokens": 24, "devices": 1}
TEXTS = 60
REPEATS = 3


def measure(clients: int, rank: int, tokens: int, devices: int) -> dict[str, Any]:
    """Times rounds in this process; returns seconds and the largest resident set."""
    from ffalora_jax.mesh import make_cpu_devices

    mesh = f"clients={devices}"
    make_cpu_devices(mesh)
    from _timing import seconds_per_round

    import ffalora_jax as ffa
    from ffalora_jax.prepare import prepare

    experiment = ffa.Experiment().replace(
        **{
            "local_steps": 1,
            "batch_size": 8,
            "evaluate_every": 1,
            "mesh": mesh,
            "partition.name": "iid",
            "partition.num_clients": clients,
            "partition.test_share": 0.0,
            "partition.validation_share": 0.0,
            "model.max_tokens": max(16, tokens),
            "method.rank": rank,
            "privacy.noise_multiplier": 1.0,
        }
    )
    words = "good day bad night film old new end".split()
    count = clients * TEXTS
    texts = [" ".join(words[(i + j) % 8] for j in range(tokens - 2)) for i in range(count)]
    run = prepare(experiment, {"text": texts, "label": [i % 2 for i in range(count)]})
    seconds = seconds_per_round({"round": run}, REPEATS)["round"]
    return {
        "seconds_per_round": statistics.median(seconds),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Measures every point of the chosen axes; one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--point", type=json.loads, help="one point, in this process")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(**options.point)))
        return
    for axis in options.axes:
        for value in AXES[axis]:
            point = START | {axis: value}
            command = [sys.executable, __file__, "--point", json.dumps(point)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.strip().splitlines()[-1])
            print(json.dumps({"benchmark": "scaling", "axis": axis, **point, **found}), flush=True)


if __name__ == "__main__":
    main()
