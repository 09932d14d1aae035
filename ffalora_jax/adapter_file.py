"""The trained adapter on disk: safetensors with our leaf names, and a config that says what they are."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ffalora_jax import adapters as leaves
from ffalora_jax.cache import write_atomically
from ffalora_jax.errors import InputError
from ffalora_jax.types import Adapters, Tree

ADAPTER = "adapter_model.safetensors"
PERSONAL = "personal.safetensors"
CONFIG = "adapter_config.json"


def save_adapter(folder: Path, shared: Adapters, personal: Tree, config: dict[str, Any]) -> None:
    """Writes what the server knows (the frozen factor included) and, apart, what stays at each client."""
    folder.mkdir(exist_ok=True)
    write_atomically(folder / ADAPTER, save(_flat(shared)))
    if jax.tree.leaves(personal):
        write_atomically(folder / PERSONAL, save(_flat(personal)), mode=0o600)
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
