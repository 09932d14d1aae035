"""Rounds on 1, 2 and 8 devices of a CPU, in a process of its own; test_mesh.py reads the JSON it prints.

How many devices a CPU counts as is set before JAX is used, so the tests' own process has one.
"""

import json
import os
import re
import sys
import tempfile

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
os.environ.setdefault("FFALORA_CACHE", tempfile.mkdtemp(prefix="ffalora-devices-"))

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ffalora_jax.engine import Engine
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.mesh import CLIENTS, make_mesh, over_devices
from ffalora_jax.prepare import prepare
from tests.helpers import keys, prepared

ROUNDS = 2
CASES = {
    "one client at a time": {},
    "three clients": {"clients": 3},
    "Poisson cohorts": {"cohort_size": 2, "sampling": "poisson", "weighted": True},
    "personal head": {"head": "personal", "cohort_size": 3},
    "all at once": {"chunk": "4"},
    "plain LoRA": {"method": "fedavg_lora"},
    "local only": {"method": "local_only"},
    "prefix kept": {"layers": "1"},
    "secure aggregation": {"mechanism": "dp_sgd_secagg"},
}
WAYS = {
    "on 2": {"mesh": "clients=2"},
    "on 8": {"mesh": "clients=8"},
    "padded, on 2": {"mesh": "clients=2", "packing": False},
    "dealt": {"client_data": "host"},
    "dealt over 2": {"mesh": "clients=2", "client_data": "host"},
    "2 x 2": {"mesh": "clients=2,model=2"},
}
FAST = {
    "one client at a time": ("on 8", "2 x 2"),
    "three clients": ("on 2",),
    "Poisson cohorts": ("dealt", "on 2"),
    "personal head": ("dealt over 2",),
    "secure aggregation": ("on 2",),
}


def rounds_of(experiment):
    """Runs some rounds; returns leaves, infos, the compiled text and the run."""
    run = prepare(experiment)
    engine, state = Engine(run), run.state
    clipped = 0
    for _ in range(ROUNDS):
        state, infos = engine(keys(run), state, 1)
        clipped += np.asarray(infos.facts.clip.num_clipped)[np.asarray(infos.took_part)].sum()
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.adapters, state.personal))
    }
    return leaves, float(clipped), engine._call.as_text(), run, state


def compare(changes: dict, ways) -> dict:
    """Runs one case on one device and in other ways; returns the largest differences."""
    found = {}
    experiment = prepared(**changes).experiment.replace(mesh="clients=1", evaluate_every=1)
    alone, clipped, *_ = rounds_of(experiment)
    for name in ways:
        leaves, _, text, *_ = rounds_of(experiment.replace(**WAYS[name]))
        found[name] = {
            "difference": max(float(np.abs(leaves[k] - alone[k]).max()) for k in alone),
            "reductions": len(re.findall(r" all-reduce(?:-start)?\(", text)),
            "others": len(re.findall(r" (?:all-gather|all-to-all|collective-permute)", text)),
        }
    return {"clipped": clipped, "ways": found}


def evaluation() -> float:
    """Returns the largest difference of the logits on one device and on four, packed and padded."""
    worst = 0.0
    for packing in (True, False):
        logits = []
        for mesh in ("clients=1", "clients=4"):
            run = prepare(prepared().experiment.replace(mesh=mesh))
            model = run.model if packing else run.model._replace(apply_probed=None)
            predict = make_predictor(model, run.task, run.mesh)
            rows = np.arange(37)
            logits.append(predict(run.frozen, run.state.adapters, run.encoded, rows))
        worst = max(worst, float(np.abs(logits[0] - logits[1]).max()))
    return worst


def clipped_gradients() -> dict[str, float]:
    """Sums one clipped gradient a device, of something that all of them share; returns what is off.

    ``over_devices`` clips each device's own gradient; ``shard_map`` by default adds those of something
    replicated before it hands them out, so that their sum would be clipped, eight times.
    """
    mesh = make_mesh("clients=8", 8)
    shared, apart = jnp.ones(3), jnp.arange(24.0).reshape(8, 3) + 1

    def body(shared, apart):
        gradient = jax.grad(lambda w: jnp.sum(apart @ w))(shared)
        return (), (), gradient * jnp.minimum(1.0, 1.0 / jnp.linalg.norm(gradient))

    def added(shared, apart):
        return jax.lax.psum(body(shared, apart)[2], CLIENTS)

    expected = (apart / jnp.linalg.norm(apart, axis=1, keepdims=True)).sum(0)
    ours = jax.jit(lambda *given: over_devices(body, mesh, *given)[2])(shared, apart)
    specs = {"in_specs": (P(), P(CLIENTS)), "out_specs": P(), "axis_names": {CLIENTS}}
    default = jax.jit(jax.shard_map(added, mesh=mesh, **specs))(shared, apart)
    return {
        "ours": float(jnp.abs(ours - expected).max()),
        "default": float(jnp.abs(default - expected).max()),
    }


def main() -> None:
    """Runs the cases and prints what was found."""
    assert len(jax.devices()) == 8
    chosen = dict.fromkeys(CASES, WAYS) if "all" in sys.argv else FAST
    found = {name: compare(CASES[name], ways) for name, ways in chosen.items()}
    facts = {"cases": found, "evaluation": evaluation(), "clipped": clipped_gradients()}
    json.dump(facts, sys.stdout)


if __name__ == "__main__":
    main()
