"""Runs the benchmark programs and writes docs/benchmarks.md: `make bench`.

Claim: every figure of that page comes from a program that anyone can run.

Run: python experiments/benchmarks/bench.py [--only NAME ...] [--quick] [--page]
     Time: about 40 minutes on two cores, an hour with the PyTorch peers
Result: docs/benchmarks.json, and docs/benchmarks.md and its pictures made from it.

--only runs some programs again and keeps what is stored of the others; --quick runs less of each and stores
nothing; --page writes the page alone. The peers need PEERS_PYTHON (an interpreter with torch, peft, opacus)
and their folder beside the project; without them their rows keep what is stored.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import _plots
from _page import page

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
STORE = DOCS / "benchmarks.json"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
PEERS = {
    "sst2": (3, 4, "fast_torch_bucket4"),
    "vader": (4, 3, "fast_torch_bucket4"),
    "minilm": (4, 4, "fast_torch"),
    "vit-tiny": (4, 3, "fast_torch"),
    "toy": (256, 5, "fast_torch"),
}
"""(clients, local steps, fastest PyTorch program of all) of a workload of the peers."""
PROGRAMS = {
    **{
        f"against_peers {name}": [
            *("against_peers.py", "--workload", name, "--json", "--repeats", "2"),
            *(
                "--clients",
                str(clients),
                "--steps",
                str(steps),
                "--programs",
                "peft_opacus",
                fastest,
            ),
        ]
        for name, (clients, steps, fastest) in PEERS.items()
    },
    "prefix": ["prefix.py"],
    "rounds_per_second": ["rounds_per_second.py"],
    "scaling": ["scaling.py"],
    "roofline": ["roofline.py"],
    "roofline 4-5": ["roofline.py", "--method.layers", "4-5"],
    "plan_against_runs": ["plan_against_runs.py"],
    "many_clients": ["many_clients.py"],
}
QUICK = {
    "rounds_per_second": ["--models", "tiny", "--repeats", "2"],
    "scaling": ["--axes", "rank"],
}


def main() -> None:
    """Runs what is asked for, stores it, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    stored: dict[str, Any] = json.loads(STORE.read_text()) if STORE.is_file() else {}
    for name in [] if options.page else options.only or PROGRAMS:
        command = [sys.executable, str(HERE / PROGRAMS[name][0]), *PROGRAMS[name][1:]]
        if name.startswith("against_peers") and "PEERS_PYTHON" not in os.environ:
            print(f"{name}: left out, PEERS_PYTHON is not set", file=sys.stderr)
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = _lines([*command, *(QUICK.get(name, []) if options.quick else [])])
        if options.quick:
            print("\n".join(json.dumps(line) for line in found))
        elif found:
            stored[name] = {"machine": _machine(), "lines": found} | _elsewhere(stored.get(name))
            STORE.write_text(json.dumps(stored, indent=1) + "\n")
    if not options.quick:
        (DOCS / "benchmarks.md").write_text(page(stored))
        _draw(stored)


def _elsewhere(before: dict[str, Any] | None) -> dict[str, Any]:
    """What other processors gave stays: a ratio holds for the machine that it was measured on."""
    if before is None:
        return {}
    here = _machine()["cpu"]
    entries = [*before.get("elsewhere", []), {k: before[k] for k in ("machine", "lines")}]
    kept = {entry["machine"]["cpu"]: entry for entry in entries}
    kept.pop(here, None)
    return {"elsewhere": list(kept.values())} if kept else {}


def _draw(stored: dict[str, Any]) -> None:
    if "scaling" in stored:
        _plots.scaling(stored["scaling"]["lines"], DOCS / "scaling.svg")
    profiles = [
        stored[name]["lines"][0] for name in PROGRAMS if name in stored and "roofline" in name
    ]
    if profiles:
        found = {f"layers: {line['layers']}": line["shares"] for line in profiles}
        _plots.shares(found, DOCS / "roofline.svg")


def _lines(command: list[str]) -> list[dict[str, Any]]:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parents[1])
    if done.returncode:
        print(f"{Path(command[1]).name} failed with code {done.returncode}", file=sys.stderr)
        return []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


if __name__ == "__main__":
    main()
