"""Adapters merged into their base model: a plain Hugging Face folder, W + scaling (A B)^T in W's own type.

The weight files are rewritten one at a time, with their names and their split into shards, so a large model
needs the memory of one shard.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.flax import save_file

from ffalora_jax.errors import InputError
from ffalora_jax.lora import LoraModel
from ffalora_jax.models import Model, transpose
from ffalora_jax.peft_io import head_tensors, why_not
from ffalora_jax.peft_names import Names, names_of, stem
from ffalora_jax.pretrained import Loaded
from ffalora_jax.types import Adapters
from ffalora_jax.weights import INDEX, files_of

BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "generation_config.json",
)
"""Files of a checkpoint that go along."""


def write_merged(
    folder: Path,
    loaded: Loaded,
    model: LoraModel,
    adapters: Adapters,
    class_names: tuple[str, ...],
) -> None:
    """Writes config.json, the weights and the tokenizer's files into a folder that exists.

    Raises:
        InputError: the base is no checkpoint in Hugging Face's form, or an adapted layer is not in it.
    """
    reason = why_not(loaded, model, adapters)
    if loaded.directory is None or reason:
        raise InputError(
            f"Cannot merge: {reason or 'the base model is no checkpoint in the form of Hugging Face'}. "
            "Export without --merge."
        )
    names = names_of(loaded)
    new = {} if names.bare else head_tensors(names, model, adapters)
    _write_config(folder, loaded, names, class_names if new else ())
    files = files_of(loaded.directory)
    missing, where, size = set(model.adapted), {}, 0
    for file in files:
        tensors = dict(_merged(file, loaded, names, model, adapters, missing))
        tensors = {name: x for name, x in tensors.items() if name not in new}
        if file == files[-1]:
            kind = next(iter(tensors.values())).dtype if tensors else np.float32
            tensors |= {name: x.astype(kind) for name, x in new.items()}
        save_file(tensors, str(folder / file.name), metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file.name)
        size += sum(x.nbytes for x in tensors.values())
    if missing:
        raise InputError(
            f"No weights of the layers {', '.join(sorted(missing))} in the checkpoint."
        )
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name in BESIDE:
        if (loaded.directory / name).is_file():
            shutil.copyfile(loaded.directory / name, folder / name)


def _merged(
    file: Path,
    loaded: Loaded,
    names: Names,
    model: LoraModel,
    adapters: Adapters,
    missing: set[str],
) -> Iterator[tuple[str, Any]]:
    """Yields the tensors that the merged model has; takes the layers it finds out of ``missing``."""
    with safe_open(str(file), framework="flax") as opened:
        for name in opened.keys():
            path, is_dense = _place(name, loaded.family)
            if not path:
                continue  # what only another head needs
            layer, tensor = path.removesuffix(".kernel"), opened.get_tensor(name)
            if is_dense and layer in model.adapted:
                missing.discard(layer)
                a, b = (np.asarray(adapters[layer][x], np.float64) for x in ("lora_a", "lora_b"))
                change = model.adapted[layer].scaling * (a @ b).T
                tensor = _narrowed(name, np.asarray(tensor, np.float64) + change, tensor.dtype)
            yield _name(name, loaded.family, names), tensor


def _narrowed(name: str, weights: np.ndarray, kind: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = weights.astype(kind)
    if not np.isfinite(narrow).all():
        raise InputError(
            f"Cannot merge: {name} reaches {np.abs(weights).max():.3g}, which the checkpoint's {kind} cannot "
            "hold. Export without --merge."
        )
    return narrow


def _place(name: str, family: Model) -> tuple[str, bool]:
    """Returns where a tensor goes in our module, and whether it is a dense layer's kernel."""
    for rule in family.rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return match.expand(rule.path), rule.transform is transpose
    return "", False


def _name(name: str, family: Model, names: Names) -> str:
    """Names of a bare encoder get the first part that the class for classification wants."""
    is_head = any(name.startswith(f"{theirs}.") for theirs in names.head.values())
    first = stem(family)
    plain = family.reads == "instructions" or names.bare or is_head or name.startswith(first)
    return name if plain else first + name


def _write_config(folder: Path, loaded: Loaded, names: Names, class_names: tuple[str, ...]) -> None:
    assert loaded.directory is not None
    config = json.loads((loaded.directory / "config.json").read_text(encoding="utf-8"))
    if class_names:
        config.pop("num_labels", None)
        config["architectures"] = [loaded.family.classifier]
        config["id2label"] = {str(index): name for index, name in enumerate(class_names)}
        config["label2id"] = {name: index for index, name in enumerate(class_names)}
    elif names.bare:
        config["architectures"] = [loaded.family.architectures[1]]  # the encoder alone
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
