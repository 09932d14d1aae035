"""A cohort of 64 out of 1,000, 10,000 and 100,000 clients, whose examples stay on the host.

Claim: what lies on the device, and the time of a round, do not grow with the clients that do not take part.
On the host the examples themselves do (their texts and tokens), and nothing else that matters.

Run: python experiments/benchmarks/many_clients.py        Time: about 5 minutes on two cores
Result: docs/benchmarks.md.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_CLIENTS = (1_000, 10_000, 100_000)
EXAMPLES_PER_CLIENT = 12
ROUNDS = 6
MIB = 2**20


def measure(num_clients: int) -> dict:
    """Runs the rounds in this process; returns seconds, MiB and the run folder's size."""
    import jax

    from ffalora_jax.config import Experiment
    from ffalora_jax.loop import Event
    from ffalora_jax.simulation import simulate

    experiment = Experiment(
        rounds=ROUNDS, local_steps=2, batch_size=4, cohort_size=64, client_data="host"
    ).replace(
        **{
            "evaluate_every": ROUNDS,
            "max_validation": 1,
            "data.name": "synthetic",
            "data.max_examples": num_clients * EXAMPLES_PER_CLIENT,
            "partition.name": "iid",
            "partition.num_clients": num_clients,
            "model.name": "tiny",
            "model.max_tokens": 12,
            "method.rank": 2,
            "privacy.noise_multiplier": 1.0,
        }
    )
    on_device, begin = [0], time.perf_counter()

    def observe(event: Event) -> None:
        on_device.append(sum(leaf.nbytes for leaf in jax.live_arrays()))

    with tempfile.TemporaryDirectory() as folder:
        run = simulate(experiment, out=Path(folder, "run"), observe=observe)
        files = sum(f.stat().st_size for f in Path(folder, "run").glob("*") if f.is_file())
    return {
        "benchmark": "many_clients",
        "clients": num_clients,
        "seconds_per_round": statistics.median(line["seconds"] for line in run.metrics[1:]),
        "seconds_in_all": time.perf_counter() - begin,
        "device_mib": max(on_device) / MIB,
        "host_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB,
        "files_mib": files / MIB,
        "epsilon": run.epsilon,
    }


def main() -> None:
    """Measures every number of clients in a process of its own; one JSON line each."""
    for count in NUM_CLIENTS:
        command = [sys.executable, __file__, str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=True)
        print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
