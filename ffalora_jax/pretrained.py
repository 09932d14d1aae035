"""Model names, hub names and directories to loaded NNX models.

Where a named model is looked for, in this order: the verified copy kept here, the Hugging Face cache or hub
(three seconds), a package of the Python index. ``weights`` reads the files.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ffalora_jax import registry, rng
from ffalora_jax.cache import from_json
from ffalora_jax.codec import load_codec
from ffalora_jax.config import ModelConfig
from ffalora_jax.errors import InputError
from ffalora_jax.locate import directory_of, locate
from ffalora_jax.models import Model
from ffalora_jax.text import Tokenizer, hash_tokenizer, load_tokenizer
from ffalora_jax.weights import (
    check_complete,
    files_of,
    flatten,
    read_weights,
    unflatten,
    weights_hash,
)

PURPOSES = {"head": rng.Purpose.HEAD, "pooler": rng.Purpose.POOLER}


class Loaded(NamedTuple):
    """A model with what goes with it."""

    model: nnx.Module
    tokenizer: Tokenizer | None
    """None where the checkpoint has none."""
    family: Model
    """What is known of its kind; for a model of the user's own, the defaults."""
    weights_sha256: str
    """Hash of the weight files, or how a random model was made."""
    fingerprint: str
    """The same with config.json: what a checkpoint of a run belongs to."""
    source: str
    directory: Path | None = None
    """The checkpoint's folder."""
    own: bool = False
    """Whether the user gave the module itself."""
    start: Any = None
    """A ``peft_io.Start`` where training starts from an adapter."""


def load(
    name: str,
    num_classes: int | None,
    seed: int,
    settings: ModelConfig | None = None,
    as_classifier: bool = False,
) -> Loaded:
    """Loads a model by shelf name, directory or hub name, with a head for ``num_classes``.

    Args:
        name: where it is.
        num_classes: classes of the head; None: those of config.json.
        seed: public seed of what the checkpoint lacks.
        settings: type of the weights and so on.
        as_classifier: end as transformers' class for classification, even on a bare encoder.

    Raises:
        InputError: nothing of that name, no source answers, files that do not fit.
    """
    settings = settings or ModelConfig()
    if own := _from_own_files(name, settings):
        return own
    if name not in registry.available("models") and (Path(name).is_dir() or "/" in name):
        found = directory_of(name)
        return _from_directory(found, num_classes, seed, name, settings, as_classifier)
    member: Model = registry.lookup("models", name)()
    if member.source is not None:
        directory = locate(name, member.source)
        source = member.source.hub_name
        return _from_directory(directory, num_classes, seed, source, settings, as_classifier)
    if member.config is None:
        raise InputError(
            f"Model {name!r} is a family: give the directory or hub name of a checkpoint (a folder of that "
            f"very name as ./{name})."
        )
    family: Model = registry.lookup("models", member.family)()
    model: Any = family.build(member.config, num_classes or 2, _rngs(seed, rng.Purpose.BACKBONE))
    cast(model, settings.dtype)
    model.remat = settings.remat
    made_from = f"random from public seed {seed}"
    vocabulary = member.config.get("vocab_size")
    words = None if vocabulary is None else hash_tokenizer(vocabulary)
    return Loaded(model, words, family, made_from, _fingerprint(made_from, member.config), name)


def load_pretrained(
    directory: str | Path,
    num_classes: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
    remat: bool = False,
    as_classifier: bool = False,
) -> nnx.Module:
    """Loads a checkpoint folder (config.json, safetensors) into a model that returns logits.

    ``model(input_ids, attention_mask)`` or ``model(images) -> (..., num_classes)``. A checkpoint for
    classification brings its own head; a bare encoder gets a new one from ``seed``. A causal language model
    returns ``(..., token, vocabulary)`` and takes no ``num_classes``.

    Args:
        directory: a folder in Hugging Face's form: one weight file, or several with an index.
        num_classes: classes of the head; left out, those of config.json.
        seed: public seed of what the checkpoint lacks.
        dtype: float32 or bfloat16, the type of all weights; norms and softmax are computed in float32.
        remat: compute a block's activations again in the backward pass instead of keeping them.
        as_classifier: end as transformers' class for classification does, even on a bare encoder (BERT: on
            the checkpoint's pooler, in place of mean pooling).

    Raises:
        InputError: missing files, unknown architecture, tensors missing, extra or misshapen.
    """
    directory = Path(directory)
    config = _read_config(directory)
    family = _family_of(config, directory)
    classes = num_classes or _num_labels(config)
    form = {"architectures": [family.classifier]} if as_classifier and family.classifier else {}
    try:
        model = nnx.eval_shape(lambda: family.build(config | form, classes, nnx.Rngs(0)))
    except KeyError as error:
        raise InputError(
            f"No {error} in {directory / 'config.json'}: the model needs it."
        ) from None
    except (TypeError, ValueError, ArithmeticError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"No {family.family} can be built from {directory / 'config.json'} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): fetch it again."
        ) from None
    graph, abstract = nnx.split(model)
    wanted = flatten(nnx.to_pure_dict(abstract))
    files = files_of(directory)
    found, problems = read_weights(files, family, wanted, dtype)
    found |= new_parts(_lacking(config, family, classes), wanted, seed, dtype)
    check_complete(found, wanted, problems, files[0] if len(files) == 1 else directory)
    loaded: Any = nnx.merge(graph, unflatten(found))
    loaded.remat = remat
    return loaded


def label_names(directory: Path) -> list[str]:
    """Returns the classes that config.json names (``id2label``), in order; none if it names none."""
    labels = _read_config(directory).get("id2label") or {}
    try:
        return [str(labels[key]) for key in sorted(labels, key=int)]
    except (TypeError, ValueError):
        raise InputError(
            f"Expected id2label in {directory / 'config.json'} as an object of number and name, got "
            f"{labels!r:.80}."
        ) from None


def brings_head(loaded: "Loaded", classes: int) -> bool:
    """Whether the head is a checkpoint's own, over classes."""
    if loaded.directory is None or loaded.family.reads == "instructions":
        return False
    return "head" not in _lacking(_read_config(loaded.directory), loaded.family, classes)


def new_parts(parts: tuple[str, ...], wanted: dict, seed: int, dtype: str = "float32") -> dict:
    """Draws dense layers from the public seed: kernel N(0, 0.02^2), bias zero."""
    drawn = {}
    for path, leaf in wanted.items():
        if path[0] in parts:
            key = rng.stream(rng.public_root(seed), PURPOSES[path[0]])
            is_kernel = path[-1] == "kernel"
            value = (
                0.02 * jax.random.normal(key, leaf.shape) if is_kernel else jnp.zeros(leaf.shape)
            )
            drawn[path] = value.astype(dtype)
    return drawn


def cast(model: nnx.Module, dtype: str) -> None:
    """Turns all weights of a model into one type, in place."""
    for leaf in jax.tree.leaves(nnx.state(model), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        if jnp.issubdtype(leaf[...].dtype, jnp.floating):
            leaf.set_value(leaf[...].astype(dtype))


def _lacking(config: dict[str, Any], family: Model, classes: int) -> tuple[str, ...]:
    """Returns the parts that the checkpoint does not bring, or brings for other classes."""
    if family.reads == "instructions":
        return ()
    if family.classifier not in config["architectures"]:
        return family.new_parts
    return () if classes == _num_labels(config) else ("head",)


def _from_directory(
    directory: Path,
    num_classes: int | None,
    seed: int,
    source: str,
    settings: ModelConfig,
    as_classifier: bool,
) -> Loaded:
    config = _read_config(directory)
    family = _family_of(config, directory)
    options = settings.dtype, settings.remat, as_classifier
    model = load_pretrained(directory, num_classes, seed, *options)
    digest = weights_hash(files_of(directory))
    fingerprint = _fingerprint(digest, config)
    words = _words(family, directory)
    return Loaded(model, words, family, digest, fingerprint, source, directory)


def _words(family: Model, directory: Path) -> Tokenizer | None:
    if family.reads == "images":
        return None
    return load_codec(directory) if family.reads == "instructions" else load_tokenizer(directory)


def _fingerprint(weights: str, config: dict[str, Any]) -> str:
    """Hash of weights and settings: the number of heads changes the function, but no tensor."""
    text = json.dumps([weights, config], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _from_own_files(name: str, settings: ModelConfig) -> Loaded | None:
    """Loads a preset that reads a format of its own, asked for by its name or by a folder of its files."""
    for member in registry.members("models"):
        preset: Model = registry.lookup("models", member)()
        is_folder = preset.files and all((Path(name) / file).is_file() for file in preset.files)
        if preset.read is not None and (is_folder or name == member):
            files = preset.read(Path(name) if is_folder else None)
            family: Model = registry.lookup("models", preset.family)()
            shapes = nnx.eval_shape(lambda f=family, c=files.config: f.build(c, 2, nnx.Rngs(0)))
            model: Any = nnx.merge(nnx.graphdef(shapes), unflatten(files.tensors))
            cast(model, settings.dtype)
            model.remat = settings.remat
            fingerprint = _fingerprint(files.sha256, files.config)
            return Loaded(model, files.tokenizer, family, files.sha256, fingerprint, name)
    return None


def _rngs(seed: int, purpose: rng.Purpose) -> nnx.Rngs:
    return nnx.Rngs(rng.stream(rng.public_root(seed), purpose))


def _read_config(directory: Path) -> dict[str, Any]:
    """Reads config.json, with preprocessor_config.json under ``preprocessor`` where there is one."""
    file = directory / "config.json"
    config = _read_json(file, "Expected a checkpoint folder.")
    if not isinstance(config.get("architectures"), list):
        raise InputError(f"Expected 'architectures' in {file}: it names what the weights are for.")
    beside = directory / "preprocessor_config.json"
    return config | ({"preprocessor": _read_json(beside, "")} if beside.is_file() else {})


def _read_json(file: Path, hint: str) -> dict[str, Any]:
    try:
        content = from_json(file.read_bytes())
    except OSError as error:
        raise InputError(f"Cannot read {file}: {error.strerror}. {hint}") from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(f"Expected a JSON object in {file}, got a {type(content).__name__}.")
    return content


def _num_labels(config: dict[str, Any]) -> int:
    return int(config.get("num_labels") or len(config.get("id2label") or {}) or 2)


def _family_of(config: dict[str, Any], directory: Path) -> Model:
    members = [registry.lookup("models", name)() for name in registry.members("models")]
    known = {arch: member for member in members for arch in member.architectures}
    for name in config["architectures"]:
        if name in known:
            return known[name]
    raise InputError(
        f"Cannot load {config['architectures']} from {directory}: known architectures are "
        f"{', '.join(sorted(known))}. Any other NNX model can be given in Python: "
        "ffalora_jax.simulate(experiment, data, model=mine)."
    )
