"""Adapters in PEFT's format, in both directions. The only place that knows PEFT's transposes.

Here y = x W + scaling * (x A) B with A (in, rank) and B (rank, out); PEFT keeps ``lora_A.weight`` (rank, in)
and ``lora_B.weight`` (out, rank). Transposing is exact, so A and B come back bit for bit in float32.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file

from ffalora_jax.cache import from_json
from ffalora_jax.config import MethodConfig
from ffalora_jax.errors import InputError
from ffalora_jax.lora import LoraModel
from ffalora_jax.peft_names import PREFIX, Names, names_of, ours_of, pattern_of, targets_of
from ffalora_jax.peft_refuse import refuse_config, refuse_tensor
from ffalora_jax.pretrained import Loaded
from ffalora_jax.targets import Adapted
from ffalora_jax.types import Adapters

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
AT_CLIENTS = "its factors stay at the clients"
FACTORS = {"lora_A": "lora_a", "lora_B": "lora_b"}


class PeftAdapter(NamedTuple):
    """The content of a PEFT folder."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    """By name in ``adapter_model.safetensors``."""
    head: dict[str, np.ndarray]
    """``weight`` (class, feature) and ``bias`` where transformers has no class for the model; else empty."""


class Start(NamedTuple):
    """An adapter in our terms."""

    adapters: Adapters
    """``lora_a`` and ``lora_b`` of every adapted layer, float32."""
    adapted: dict[str, Adapted]
    use_rslora: bool
    head: dict[str, dict[str, np.ndarray]]
    """Part of the head -> ``kernel`` (in, out) and ``bias``; empty if the adapter brings none."""


def why_not(loaded: Loaded, model: LoraModel, adapters: Adapters) -> str:
    """Returns why an adapter has no form in PEFT, or nothing if it has one."""
    names = names_of(loaded)
    if loaded.own or not loaded.family.hf_names:
        return "the model is none of Hugging Face's"
    strange = [n for n in model.adapted if n not in names.layers or n in names.head]
    if strange:
        return (
            f"PEFT has no adapter for the layers {', '.join(strange)} beside a head that is saved"
        )
    others = {x for n in model.adapted for x in adapters.get(n, {})} - {"lora_a", "lora_b"}
    if others:
        return f"PEFT's LoRA has no form for the method's leaves {', '.join(sorted(others))}"
    lacking = [n for n in model.adapted if {"lora_a", "lora_b"} - adapters.get(n, {}).keys()]
    return AT_CLIENTS if lacking else ""


def to_peft(
    settings: MethodConfig, loaded: Loaded, model: LoraModel, adapters: Adapters
) -> PeftAdapter:
    """Returns an adapter in PEFT's form, head included, whether it was trained or frozen and random.

    Args:
        settings: rank and alpha from which layers may differ.
        loaded: the base model.
        model: the same with adapters.
        adapters: all its leaves; a head that they lack and that the backbone lacks too is left out.

    Raises:
        InputError: there is no such form.
    """
    reason = why_not(loaded, model, adapters)
    if reason:
        raise InputError(f"This adapter cannot be written in PEFT's format: {reason}.")
    names = names_of(loaded)
    tensors = {}
    for ours in model.adapted:
        for factor, leaf in FACTORS.items():
            name = f"{PREFIX}{names.layers[ours]}.{factor}.weight"
            tensors[name] = _plain(adapters[ours][leaf]).T.copy()
    head = head_tensors(names, model, adapters)
    config = _config(settings, loaded, model, names, bool(head))
    if names.bare:
        return PeftAdapter(config, tensors, {k.removeprefix("head."): v for k, v in head.items()})
    return PeftAdapter(config, tensors | {PREFIX + k: v for k, v in head.items()}, {})


def head_tensors(names: Names, model: LoraModel, adapters: Adapters) -> dict[str, np.ndarray]:
    """Returns the head's tensors in PyTorch's order by their names there; none if it stays at clients."""
    found = {}
    for ours, theirs in names.head.items():
        leaves = adapters.get(ours, {})
        base = model.backbone.get(ours, {})
        kernel, bias = leaves.get("head_kernel"), leaves.get("head_bias")
        kernel = base.get("kernel") if kernel is None else kernel
        bias = base.get("bias") if bias is None else bias
        if kernel is None or bias is None:
            return {}
        found |= {f"{theirs}.weight": _plain(kernel).T.copy(), f"{theirs}.bias": _plain(bias)}
    return found


def _config(
    settings: MethodConfig, loaded: Loaded, model: LoraModel, names: Names, has_head: bool
) -> dict[str, Any]:
    adapted = {names.layers[ours]: found for ours, found in model.adapted.items()}
    others = [theirs for ours, theirs in names.layers.items() if ours not in model.adapted]
    others += [*names.head.values(), "pooler.dense"]  # a pooler that our model does without
    saved = sorted({theirs.partition(".")[0] for theirs in names.head.values()})
    alphas = pattern_of({n: a.lora_alpha for n, a in adapted.items()}, settings.lora_alpha)
    return {
        "peft_type": "LORA",
        "task_type": names.task,
        "base_model_name_or_path": loaded.source,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": _whole(settings.lora_alpha),
        "use_rslora": settings.use_rslora,
        "lora_dropout": settings.dropout,
        "target_modules": targets_of(adapted, others),
        "exclude_modules": None,
        "layers_to_transform": None,
        "rank_pattern": pattern_of({n: a.rank for n, a in adapted.items()}, settings.rank),
        "alpha_pattern": {name: _whole(alpha) for name, alpha in alphas.items()},
        "modules_to_save": saved if has_head and not names.bare else None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": False,
    }


def read_peft(folder: str | Path) -> PeftAdapter:
    """Reads a PEFT folder.

    Raises:
        InputError: files that are missing, broken or pickled; a kind of adapter that is not LoRA as here.
    """
    folder = Path(folder)
    try:
        config = from_json((folder / CONFIG).read_bytes())
    except OSError as error:
        hint = f"give a folder that PEFT saved, with {CONFIG} and {WEIGHTS}"
        if (folder / "adapter").is_dir():
            hint = f"this is a run, give {folder / 'adapter'}"
        raise InputError(f"Cannot read {folder / CONFIG} ({error.strerror}): {hint}.") from None
    except ValueError as error:
        raise InputError(f"{folder / CONFIG} is not JSON ({error}).") from None
    refuse_config(config, folder)
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        beside = "; adapter_model.bin could run code and is not read" if pickled else ""
        raise InputError(
            f"No {WEIGHTS} in {folder}{beside}: save the adapter with PEFT's save_pretrained."
        )
    head = _tensors(folder / HEAD) if (folder / HEAD).is_file() else {}
    return PeftAdapter(config, _tensors(folder / WEIGHTS), head)


def from_peft(found: PeftAdapter, loaded: Loaded) -> Start:
    """Returns an adapter for a model. Its tensors say which layers are adapted; the config says how strongly.

    Raises:
        InputError: a tensor without a place, a layer with half a pair, shapes that do not fit.
    """
    names = names_of(loaded)
    theirs_to_part = {theirs: ours for ours, theirs in names.head.items()}
    adapters: dict[str, dict[str, Any]] = {}
    alphas: dict[str, float] = {}
    head: dict[str, dict[str, np.ndarray]] = {}
    inner = {name.removeprefix(PREFIX): x for name, x in found.tensors.items()}
    for name, tensor in (inner | {f"head.{k}": x for k, x in found.head.items()}).items():
        owner, _, last = name.rpartition(".")
        layer, _, factor = owner.rpartition(".")
        ours = ours_of(layer, loaded) if factor in FACTORS else theirs_to_part.get(owner)
        if ours is None or last not in ("weight", "bias"):
            refuse_tensor(name, loaded.family.family, names.bare)
        elif factor in FACTORS:
            adapters.setdefault(ours, {})[FACTORS[factor]] = jnp.asarray(tensor.T)
            alphas[ours] = alpha_of(found.config, layer)
        else:
            leaf = {"weight": ("kernel", tensor.T), "bias": ("bias", tensor)}[last]
            head.setdefault(ours, {})[leaf[0]] = leaf[1]
    rslora = bool(found.config.get("use_rslora"))
    adapted = {
        ours: _adapted(ours, leaves, alphas[ours], rslora) for ours, leaves in adapters.items()
    }
    if not adapted:
        raise InputError(f"No lora_A and lora_B in {WEIGHTS}: expected an adapter.")
    return Start(adapters, adapted, rslora, head)


def count_classes(found: PeftAdapter) -> int | None:
    """Returns the number of classes of the head that an adapter brings; None if it brings none."""
    ends = ("classifier.bias", "classifier.out_proj.bias", "score.bias")
    sizes = [len(x) for name, x in found.tensors.items() if name.endswith(ends)]
    sizes += [len(x) for name, x in found.head.items() if name == "bias"]
    return sizes[0] if sizes else None


def alpha_of(config: Mapping[str, Any], layer: str) -> float:
    """Returns a layer's alpha: of the first pattern that matches the end of its path, else the default."""
    try:
        for key, alpha in (config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({key})$", layer):
                return float(alpha)
        return float(config.get("lora_alpha", 8))
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"Cannot read lora_alpha or alpha_pattern in {CONFIG}: {error}.") from None


def set_head(loaded: Loaded, start: Start) -> None:
    """Puts an adapter's head into the model, in the model's type.

    Raises:
        InputError: another number of classes or features.
    """
    for part, leaves in start.head.items():
        module: Any = getattr(loaded.model, part)
        for name, value in leaves.items():
            here = getattr(module, name)
            if here[...].shape != value.shape:
                raise InputError(
                    f"The adapter's {part} {name} has shape {value.shape}, the model's "
                    f"{here[...].shape}: expected the same classes and the same base model."
                )
            here.set_value(jnp.asarray(value, here[...].dtype))


def check_same(there: Mapping[str, Adapted], wanted: Mapping[str, Adapted]) -> None:
    """Raises InputError unless an adapter to start from has the settings' layers, ranks and scalings."""
    layers = sorted(there.keys() ^ wanted.keys())
    if layers:
        raise InputError(
            f"method.start adapts {len(there)} layers, the settings {len(wanted)}; they differ in "
            f"{', '.join(layers[:4])}: set method.targets and method.layers to its own."
        )
    for name, mine in wanted.items():
        found = there[name]
        if found.rank != mine.rank or not math.isclose(found.scaling, mine.scaling, rel_tol=1e-6):
            raise InputError(
                f"method.start has rank {found.rank} and scaling {found.scaling:g} at {name}, the settings "
                f"rank {mine.rank} and {mine.scaling:g}: set method.rank, method.lora_alpha and "
                "method.use_rslora to its own."
            )


def fingerprint(folder: str | Path) -> str:
    """Hash of an adapter's files."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS, HEAD):
        file = Path(folder) / name
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()


def _adapted(ours: str, leaves: dict[str, Any], alpha: float, rslora: bool) -> Adapted:
    if leaves.keys() != set(FACTORS.values()):
        raise InputError(
            f"Only {', '.join(leaves)} of layer {ours} is there: expected both factors."
        )
    rank = leaves["lora_a"].shape[1]
    if leaves["lora_b"].shape[0] != rank:
        raise InputError(
            f"Layer {ours} has lora_A of rank {rank} and lora_B of rank {leaves['lora_b'].shape[0]}."
        )
    return Adapted(rank, alpha / (math.sqrt(rank) if rslora else rank), alpha)


def _tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors in float32, which holds what narrower types hold."""
    try:
        return {name: _plain(x) for name, x in load_file(str(file)).items()}
    except SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file ({error}).") from None


def _plain(array: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(array, np.float32))


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number
