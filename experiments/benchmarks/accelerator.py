"""Rounds on one accelerator: against PEFT + Opacus on the same card, a large model, growth with clients.

Claims: MiniLM with 64 clients at least 10 times as fast as PEFT + Opacus; RoBERTa-large, 3 clients x 200
examples x 64 tokens in bfloat16, at a quarter of the card's dense peak or more.

Run: python experiments/benchmarks/accelerator.py [--parts NAME ...] [--peers FOLDER]
     Time: about 6 minutes on an H100. The peers need torch, peft and opacus in the same interpreter.
Result: docs/accelerator.md. One JSON line a measurement; every part in a process of its own, so that one that
fails takes no other with it.

Weights are random (they do not matter to speed); texts are SST-2's where a part says so. All of a round's
work is timed, the Poisson draws, noise and averaging included. FLOPs are those of real tokens: 2 a weight
and token forwards, as many backwards (no weight but the adapters' has a gradient).
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("FFALORA_SHARED", HERE.parents[2] / "shared"))
CLIENTS = 64
DENSE_BF16 = {"H100": 989.4, "H200": 989.4}
"""TFLOP/s that the maker gives, without sparsity."""


def main() -> None:
    """Runs parts as child processes; prints what they measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", default=str(SHARED / "peers"))
    parser.add_argument("--small", action="store_true", help="small sizes, to try the program")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        for line in PARTS[options.parts[0]](options):
            print(json.dumps({"part": options.parts[0]} | line), flush=True)
        return
    for part in options.parts:
        begin = time.perf_counter()
        small = ["--small"] if options.small else []
        command = [sys.executable, __file__, "--here", "--peers", options.peers, *small]
        done = subprocess.run([*command, "--parts", part], check=False)
        taken = f"{time.perf_counter() - begin:.0f} s"
        print(f"{part}: {taken}, exit code {done.returncode}", file=sys.stderr, flush=True)


def seconds_of(call: Callable[[], Any], repeats: int = 5) -> list[float]:
    """Times calls one by one after one that warms up."""
    import jax

    found = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - begin)
    return found[1:]


def memory_gib() -> float | None:
    """Returns the most that the device has held so far."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return round(stats["peak_bytes_in_use"] / 2**30, 2) if "peak_bytes_in_use" in stats else None


def card() -> dict[str, Any]:
    """Returns what this process computes on."""
    import jax

    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def peak(options) -> Iterator[dict[str, Any]]:
    """Large matrix products: what the card gives."""
    import jax
    import jax.numpy as jnp

    size = 512 if options.small else 8192
    for name, dtype, precision in (
        ("bfloat16", "bfloat16", None),
        ("float32, as jax does by default", "float32", None),
        ("float32, exact", "float32", "highest"),
    ):
        x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        product = jax.jit(lambda x, p=precision: jnp.matmul(x, x, precision=p))
        seconds = min(seconds_of(lambda x=x, product=product: product(x)))
        yield {"product": name, "tflops": round(2 * size**3 / seconds / 1e12, 1), **card()}


def workload_of(options, name: str, clients: int, steps: int) -> tuple[Any, Any, Any]:
    """Returns (this folder's builder, the peers' inputs, one of their workloads)."""
    import _peer_work

    common, inputs = _peer_work.peers_modules(options.peers)
    workload = common.WORKLOADS[name]
    return _peer_work, inputs, dataclasses.replace(workload, clients=clients, local_steps=steps)


def ours(options, name: str, clients: int, steps: int, **form) -> dict[str, Any]:
    """Times rounds of a workload."""
    import jax

    builder, inputs, workload = workload_of(options, name, clients, steps)
    workload = dataclasses.replace(workload, **form.pop("changes", {}))
    work = builder.build(workload, inputs, "random", 0, True, **form)
    arguments = (*work.arguments, None if workload.text else work.batches)
    begin = time.perf_counter()
    call = jax.jit(work.round_step).lower(*arguments).compile()
    compiled = time.perf_counter() - begin
    seconds = [s / (clients * steps) for s in seconds_of(lambda: call(*arguments))]
    return {
        "workload": name,
        "clients": clients,
        "local_steps": steps,
        "seconds_per_client_step": {"median": median(seconds), "min": min(seconds)},
        "chunk": work.chunk,
        "blocks": work.blocks,
        "compile_seconds": round(compiled, 1),
        "peak_gib": memory_gib(),
        **card(),
    }


def peft_opacus(options, name: str, clients: int, steps: int, rounds: int = 3, **more) -> dict:
    """Runs the peer on the same card, in a process of its own."""
    command = [sys.executable, str(HERE / "_peer_cuda.py"), "--peers", options.peers]
    sizes = {"workload": name, "clients": clients, "steps": steps, "rounds": rounds, **more}
    for key, value in sizes.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def against_peer(name: str, steps: int, peer_clients: int | None = None):
    """Returns the part that times a workload in our form and the peer's."""

    def part(options) -> Iterator[dict[str, Any]]:
        clients = 4 if options.small else CLIENTS
        line = ours(options, name, clients, steps)
        yield line
        yield ours(options, name, clients, steps, packing=False) | {"form": "padded, fixed work"}
        peer = peft_opacus(options, name, min(clients, peer_clients or clients), steps)
        mine = line["seconds_per_client_step"]["median"]
        ratio = peer["seconds_per_client_step"]["median"] / mine
        yield {"workload": name, "peft_opacus": peer, "ratio": round(ratio, 2)}

    return part


def same_update(options) -> Iterator[dict[str, Any]]:
    """The update against the peer's on this card: noise off, clipping on, exact products."""
    import jax

    for name in ("minilm", "sst2"):
        for clip in (1.0, 0.05):
            builder, inputs, workload = workload_of(options, name, 2, 2)
            workload = dataclasses.replace(workload, clip_norm=clip)
            with jax.default_matmul_precision("highest"):
                work = builder.build(workload, inputs, "random", 0, False)
                state, _ = jax.jit(work.round_step)(*work.arguments, work.batches)
            with tempfile.TemporaryDirectory() as folder:
                file = str(Path(folder, "update.npy"))
                peft_opacus(options, name, 2, 2, 1, update=file, clip=clip)
                found = np.abs(np.load(file) - work.flat(state.adapters)).max()
            moved = float(np.abs(work.flat(state.adapters)).max())
            yield {"workload": name, "clip_norm": clip, "difference": float(found), "moved": moved}


def scaling(options) -> Iterator[dict[str, Any]]:
    """MiniLM, one step of 16 examples: from 16 to 1024 clients."""
    for clients in (2, 4) if options.small else (16, 64, 256, 1024):
        yield ours(options, "minilm", clients, 1)


def block_share(options) -> Iterator[dict[str, Any]]:
    """How much of the free memory the examples at once should take."""
    from ffalora_jax import chunking

    for share in (1 / 64, 1 / 16, 1 / 4):
        chunking.BLOCK_SHARE = share
        for name in ("minilm", "sst2"):
            clients = 4 if options.small else CLIENTS
            yield ours(options, name, clients, 2) | {"share": share}


def overheads(options) -> Iterator[dict[str, Any]]:
    """Privacy against none, FFA-LoRA against plain LoRA, one rank against another."""
    clients = 4 if options.small else CLIENTS
    forms: dict[str, dict[str, Any]] = {
        "private": {},
        "not private": {"private": False},
        "A and B": {"trained": ("A", "B")},
        "rank 64": {"rank": 64, "alpha": 64.0},
    }
    for form, changes in forms.items():
        yield ours(options, "minilm", clients, 2, changes=changes) | {"form": form}


def roberta_large(options) -> Iterator[dict[str, Any]]:
    """3 clients x 200 expected examples x 64 tokens in bfloat16."""
    import big_models

    config = big_models.ROBERTA_LARGE
    if options.small:
        config.update(num_hidden_layers=2, hidden_size=64, intermediate_size=128, vocab_size=200)
    batch = 8 if options.small else 200
    with tempfile.TemporaryDirectory() as folder:
        big_models.write(folder)
        yield _large_round(folder, config, batch)


def _large_round(folder: str, config: dict[str, Any], batch: int) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    import ffalora_jax as ffa
    from ffalora_jax import rng
    from ffalora_jax.prepare import prepare
    from ffalora_jax.round import Keys

    experiment = ffa.Experiment(rounds=1, local_steps=2, batch_size=batch, evaluate_every=1)
    experiment = experiment.replace(
        **{
            "model.name": folder,
            "model.max_tokens": 64,
            "model.dtype": "bfloat16",
            "partition.name": "iid",
            "partition.num_clients": 3,
            "privacy.noise_multiplier": 1.0,
            "privacy.delta": 1e-3,
        }
    )
    texts = [" ".join(f"w{(7 * i + j) % 100}" for j in range(64)) for i in range(12 * batch)]
    run = prepare(experiment, {"text": texts, "label": [i % 2 for i in range(len(texts))]})
    keys = Keys(rng.public_root(0), rng.secret_root(0))
    arguments = (keys, run.state, run.frozen, run.data, run.numbers, jnp.int32(1))
    begin = time.perf_counter()
    call = run.rounds().lower(*arguments).compile()
    compiled = time.perf_counter() - begin
    seconds = seconds_of(lambda: call(*arguments), 3)
    real = float(call(*arguments)[1].facts.clip.num_real.sum())
    d, layers, inner = (
        config[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size")
    )
    tokens = real * 64
    flop = tokens * layers * (4 * (4 * d * d + 2 * d * inner) + 8 * 64 * d)
    rate = flop / median(seconds) / 1e12
    name = jax.devices()[0].device_kind
    most = next((v for key, v in DENSE_BF16.items() if key in name), None)
    return {
        "seconds_per_round": {"median": median(seconds), "min": min(seconds)},
        "examples": real,
        "tflops": round(rate, 1),
        "share_of_dense_peak": most and round(rate / most, 3),
        "chunk": run.settings.chunk,
        "blocks": (run.blocks, run.packing),
        "compile_seconds": round(compiled, 1),
        "peak_gib": memory_gib(),
        **card(),
    }


PARTS: dict[str, Callable[[Any], Iterator[dict[str, Any]]]] = {
    "peak": peak,
    "same_update": same_update,
    "minilm": against_peer("minilm", 5),
    "sst2": against_peer("sst2", 3),
    "roberta_large": roberta_large,
    "scaling": scaling,
    "toy": against_peer("toy", 5),
    "vit-tiny": against_peer("vit-tiny", 2),
    "overheads": overheads,
    "block_share": block_share,
}

if __name__ == "__main__":
    main()
