"""The trained adapter of a run on disk: PEFT's format where there is one, else leaves by our names.

``run.json`` beside it says what the run knows: method, classes, the hash of the backbone, and the form the
leaves have. It is written last, so where it stands the rest is whole. Nothing there names a client: what
stays at the clients, and whose it is, lies in a folder of its own, which is not handed on.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ffalora_jax import adapters as leaves
from ffalora_jax import peft_io
from ffalora_jax.cache import from_json, write_atomically
from ffalora_jax.errors import InputError
from ffalora_jax.peft_names import PREFIX, names_of
from ffalora_jax.prepare import Prepared
from ffalora_jax.round import RoundState
from ffalora_jax.types import Adapters, Tree
from ffalora_jax.warm_start import FACTS, facts_for_later

ADAPTER, LEAVES = peft_io.WEIGHTS, "leaves.safetensors"
PERSONAL, CLIENTS = "personal", "clients.json"
"""Folder beside the adapter's with the leaves that stay at their client, and the clients' names there."""


def save_adapter(folder: Path, run: Prepared, state: RoundState, privacy: dict[str, Any]) -> None:
    """Writes what the server knows (the frozen factor included) and, apart, what stays at each client.

    Args:
        folder: the adapter's; what stays at clients goes beside it.
        run: of which it is the result.
        state: the last one.
        privacy: content of privacy.json, so that a run that starts from here knows what it has cost.
    """
    shared = leaves.merge(run.frozen.adapters, state.adapters)
    # PEFT has no form for several adapters at once.
    in_peft = run.model.members == 1 and not peft_io.why_not(run.loaded, run.model, shared)
    folder.mkdir(exist_ok=True)
    if in_peft:
        write_peft(folder, peft_io.to_peft(run.experiment.method, run.loaded, run.model, shared))
    else:
        write_atomically(folder / LEAVES, save(_flat(shared)))
    if jax.tree.leaves(state.personal):
        own = folder.with_name(PERSONAL)
        own.mkdir(exist_ok=True)
        write_atomically(own / LEAVES, save(_flat(state.personal)), mode=0o600)
        names = json.dumps(list(run.train_names), indent=2) + "\n"
        write_atomically(own / CLIENTS, names, mode=0o600)
    facts = _facts(run, "peft" if in_peft else "leaves", "head" in shared)
    facts |= facts_for_later(run.experiment, privacy)
    write_atomically(folder / FACTS, json.dumps(facts, indent=2) + "\n")


def write_peft(folder: Path, adapter: peft_io.PeftAdapter) -> None:
    """Writes the files of a PEFT adapter into a folder that exists."""
    write_atomically(folder / ADAPTER, save(adapter.tensors, metadata={"format": "pt"}))
    write_head(folder, adapter)
    write_atomically(folder / peft_io.CONFIG, json.dumps(adapter.config, indent=2) + "\n")


def write_head(folder: Path, adapter: peft_io.PeftAdapter) -> None:
    """Writes ``head.safetensors``, for models that have their head there."""
    if adapter.head:
        write_atomically(folder / peft_io.HEAD, save(adapter.head, metadata={"format": "pt"}))


def read_facts(folder: Path) -> dict[str, Any]:
    """Reads ``run.json``.

    Raises:
        InputError: there is none.
    """
    try:
        return dict(from_json((folder / FACTS).read_bytes()))
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"No {FACTS} in {folder}: the run has not come far enough to leave an adapter."
        ) from None


def read_adapter(folder: Path) -> tuple[Adapters, Tree, tuple[str, ...]]:
    """Reads ``(shared leaves, those that stay at clients, whose they are)``.

    Raises:
        InputError: no adapter there, or a file that is not safetensors.
    """
    facts, personal = read_facts(folder), folder.with_name(PERSONAL) / LEAVES
    file = folder / (ADAPTER if facts["format"] == "peft" else LEAVES)
    if not file.is_file():
        raise InputError(f"No {file.name} in {folder}: copy the run's whole folder.")
    shared = _from_peft(folder, facts) if facts["format"] == "peft" else _read(file)
    if not personal.is_file():
        return shared, {}, ()
    names = personal.with_name(CLIENTS)
    try:
        return shared, _read(personal), tuple(map(str, from_json(names.read_bytes())))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"Cannot read {names} ({error}): copy the run's whole folder.") from None


def _facts(run: Prepared, form: str, has_head: bool) -> dict[str, Any]:
    settings, names = run.experiment.method, names_of(run.loaded)
    return {
        "format": form,
        "method": settings.name,
        "rank": settings.rank,
        "lora_alpha": settings.lora_alpha,
        "adapted": {name: found._asdict() for name, found in run.model.adapted.items()},
        "names": {name: names.layers.get(name) for name in run.model.adapted},
        "head": names.head.get("head") if has_head else None,
        "layers": sorted(run.model.shapes),
        "class_names": list(run.dataset.class_names),
        "kind": run.dataset.kind,
        "backbone": run.loaded.fingerprint,
    }


def _from_peft(folder: Path, facts: dict[str, Any]) -> Adapters:
    found = peft_io.read_peft(folder)
    shared: Adapters = {
        ours: {
            leaf: jnp.asarray(found.tensors[f"{PREFIX}{theirs}.{factor}.weight"].T)
            for factor, leaf in peft_io.FACTORS.items()
        }
        for ours, theirs in facts["names"].items()
    }
    if facts["head"]:
        named = {f"{PREFIX}head.{name}": x for name, x in found.head.items()} | found.tensors
        at = f"{PREFIX}{facts['head']}"
        shared["head"] = {
            "head_kernel": jnp.asarray(named[f"{at}.weight"].T),
            "head_bias": jnp.asarray(named[f"{at}.bias"]),
        }
    return shared


def _read(file: Path) -> Adapters:
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file ({error}).") from None
    parts = (
        {name.rpartition(".")[0]: {name.rpartition(".")[2]: jnp.asarray(x)}}
        for name, x in tensors.items()
    )
    return leaves.merge(*parts)


def _flat(adapters: Adapters) -> dict[str, np.ndarray]:
    return {
        f"{layer}.{name}": np.ascontiguousarray(leaf)
        for layer, found in adapters.items()
        for name, leaf in found.items()
    }
