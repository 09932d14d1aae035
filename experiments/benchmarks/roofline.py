"""Where the time of a round goes, from a profile of the compiled program.

Claim: most of a packed private round is dense matrix products; drawing, clipping and noise are little.

Run: python experiments/benchmarks/roofline.py [EXPERIMENT.toml] [--method.layers 4-5 ...]
     Time: 1 minute on two cores
Result: docs/benchmarks.md. One JSON line.

Every operation of the program leaves an event in the profile; what it does is read off the program's text.
Several threads work at once, so the parts are shares of all their busy time; ``host and waiting`` is what
none was busy with.
"""

import collections
import glob
import gzip
import json
import math
import re
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
from _timing import KEYS, client_steps

from ffalora_jax import flags, rng
from ffalora_jax.engine import Engine
from ffalora_jax.prepare import prepare
from ffalora_jax.round import Keys

NARROW = 64
"""A product with a side no longer is an adapter's or the clipping's, not a dense layer's."""
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)(.*)")


class Instruction(NamedTuple):
    """One line of a program's text."""

    name: str
    shape: str
    kind: str
    given: tuple[str, ...]
    rest: str


def main() -> None:
    """Profiles one round and prints its parts."""
    default = "experiments/quickstart.toml"
    arguments = (
        sys.argv[1:]
        if sys.argv[1:2] and sys.argv[1].endswith(".toml")
        else [default, *sys.argv[1:]]
    )
    experiment, _ = flags.read_run(arguments)
    run = prepare(experiment.replace(evaluate_every=1))
    engine = Engine(run)
    keys = Keys(rng.public_root(KEYS[0]), rng.secret_root(KEYS[1]))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready(engine(keys, run.state, 1))
        seconds.append(time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with jax.profiler.trace(folder):
            jax.block_until_ready(engine(keys, run.state, 1))
        (file,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(file) as opened:
            events = json.load(opened)["traceEvents"]
    found = parts(events, engine._call.as_text())
    line = {
        "benchmark": "roofline",
        "experiment": experiment.name,
        "layers": experiment.method.layers,
        "seconds_per_client_step": min(seconds[1:]) / client_steps(run),
        **found,
    }
    print(json.dumps(line))


def parts(events: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """Returns the share of every kind of work, and how fast the products ran.

    Args:
        events: of the profile.
        text: the compiled program.
    """
    programs = parsed(text)
    every = [one for lines in programs.values() for one in lines]
    shapes = {one.name: _sides(one.shape) for one in every}
    kinds = {one.name: kind_of(one, programs, shapes) for one in every}
    busy: dict[str, float] = collections.defaultdict(float)
    flops, spans = 0, []
    for event in events:
        name = event.get("args", {}).get("hlo_op") if event.get("ph") == "X" else None
        if name is None or name not in kinds:
            continue
        kind, operations = kinds[name]
        if kind == "loop":
            continue
        busy[kind] += event["dur"]
        flops += operations if kind == "dense products" else 0
        spans.append((event["ts"], event["ts"] + event["dur"]))
    total, covered = sum(busy.values()), union(spans)
    wall = max(end for _, end in spans) - min(begin for begin, _ in spans)
    shares = {kind: dur / total * covered / wall for kind, dur in sorted(busy.items())}
    return {
        "shares": shares | {"host and waiting": 1 - covered / wall},
        "gflop_per_second_of_dense_products": flops / busy["dense products"] / 1e3,
        "threads_busy": total / covered,
    }


def union(spans: list[tuple[float, float]]) -> float:
    """Returns how long at least one span lasts."""
    covered, latest = 0.0, -math.inf
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, latest))
        latest = max(latest, end)
    return covered


def parsed(text: str) -> dict[str, list[Instruction]]:
    """Returns the instructions of every computation of a program's text."""
    programs: dict[str, list[Instruction]] = {}
    here: list[Instruction] = []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            here = programs.setdefault(head[1], [])
        elif found := INSTRUCTION.match(line):
            name, shape, kind, given, rest = found.groups()
            names = tuple(part.strip().split(" ")[-1].lstrip("%") for part in given.split(","))
            here.append(Instruction(name, shape, kind, names, rest))
    return programs


def kind_of(
    one: Instruction, programs: dict[str, list[Instruction]], shapes: dict[str, list[int]]
) -> tuple[str, int]:
    """Returns what an instruction does, and the operations of its products."""
    if one.kind in ("while", "conditional", "call"):
        return "loop", 0
    called = re.search(r"calls=%?([\w.\-]+)", one.rest)
    inside = programs.get(called[1], []) if called else [one]
    for each in inside:
        if each.kind == "dot":
            return _product(each, shapes)
    found = {each.kind for each in inside}
    if found & {"sort", "xor", "shift-left", "shift-right-logical", "rng-bit-generator"}:
        return "drawing and noise", 0
    return ("softmax" if "exponential" in found else "elementwise and copies"), 0


def _product(one: Instruction, shapes: dict[str, list[int]]) -> tuple[str, int]:
    result, left = _sides(one.shape), shapes.get(one.given[0], [])
    axes = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", one.rest)
    contracted = math.prod(left[int(axis)] for axis in axes[1].split(",")) if axes and left else 1
    operations = 2 * math.prod(result) * contracted
    if len(result) >= 4:
        return "attention products", operations
    small = len(result) == 3 or min([*result[-2:], contracted]) <= NARROW
    return ("adapters and clipping" if small else "dense products"), operations


def _sides(shape: str) -> list[int]:
    found = re.match(r"\w+\[([\d,]*)\]", shape)
    return [int(x) for x in found[1].split(",")] if found and found[1] else []


if __name__ == "__main__":
    main()
