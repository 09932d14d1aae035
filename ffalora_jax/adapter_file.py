"""The trained adapter on disk: safetensors with our leaf names, and a config that says what they are."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ffalora_jax import adapters as leaves
from ffalora_jax.cache import write_atomically
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import Prepared
from ffalora_jax.round import RoundState
from ffalora_jax.types import Adapters, Tree

ADAPTER = "adapter_model.safetensors"
PERSONAL = "personal.safetensors"
CONFIG = "adapter_config.json"


def save_adapter(folder: Path, run: Prepared, state: RoundState) -> None:
    """Writes what the server knows (the frozen factor included) and, apart, what stays at each client."""
    settings = run.experiment.method
    config = {
        "method": settings.name,
        "rank": settings.rank,
        "lora_alpha": settings.lora_alpha,
        "adapted": {name: found._asdict() for name, found in run.model.adapted.items()},
        "layers": sorted(run.model.shapes),
        "class_names": list(run.dataset.class_names),
        "client_names": list(run.train_names),
        "kind": run.dataset.kind,
        "backbone": run.loaded.fingerprint,
    }
    folder.mkdir(exist_ok=True)
    shared = leaves.merge(run.frozen.adapters, state.adapters)
    write_atomically(folder / ADAPTER, save(_flat(shared)))
    if jax.tree.leaves(state.personal):
        write_atomically(folder / PERSONAL, save(_flat(state.personal)), mode=0o600)
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_adapter(folder: Path) -> tuple[Adapters, Tree]:
    """Reads ``(shared, personal)`` leaves.

    Raises:
        InputError: no adapter there, or a file that is not safetensors.
    """
    if not (folder / ADAPTER).is_file():
        raise InputError(f"No {ADAPTER} in {folder}: the run has not come far enough to leave one.")
    personal = folder / PERSONAL
    return _read(folder / ADAPTER), _read(personal) if personal.is_file() else {}


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
