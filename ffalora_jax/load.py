"""An experiment's data set and model: loaded, put into arrays, given adapters.

Part of ``prepare``, and of everything that takes a finished run up again.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ffalora_jax import encode as encoding
from ffalora_jax import ensemble, lora, peft_io, pretrained, registry, rng
from ffalora_jax.codec import TextCodec
from ffalora_jax.config import Experiment, MethodConfig, ModelConfig
from ffalora_jax.data import Dataset, as_dataset
from ffalora_jax.detours import LORA, LORA_FROM_START, Detour
from ffalora_jax.errors import InputError
from ffalora_jax.freezing import method_of
from ffalora_jax.lora import LoraModel
from ffalora_jax.lora_init import LoraInit
from ffalora_jax.methods import Method
from ffalora_jax.models import Model
from ffalora_jax.pretrained import Loaded
from ffalora_jax.text import Encoded
from ffalora_jax.warm_start import told


def load_dataset(experiment: Experiment, data: Any = None) -> Dataset:
    """Returns the experiment's data set, or what was given in its place, cut to ``max_examples``."""
    settings = experiment.data
    if data is None:
        dataset: Dataset = registry.lookup("datasets", settings.name)(settings, experiment.seed)
    else:
        dataset = as_dataset(
            data,
            text=settings.text,
            label=settings.label,
            text_pair=settings.text_pair,
            client=settings.client,
            prompt=settings.prompt,
            response=settings.response,
            messages=settings.messages,
        )
    if settings.max_examples is not None and len(dataset) > settings.max_examples:
        draw = rng.numpy_rng(experiment.seed, rng.Purpose.SUBSET)
        rows = draw.choice(len(dataset), settings.max_examples, replace=False)
        dataset = dataset.take(np.sort(rows))
    return dataset


def load_model(
    experiment: Experiment, model: nnx.Module | None, class_names: Sequence[str]
) -> Loaded:
    """Returns the experiment's model, or the user's own with a hash of its arrays; and where it starts.

    **Guarantee:** a head that comes with a checkpoint or a start names its classes as the data do: one with
    the same names in another order is put into theirs.
    """
    settings, start = experiment.model, experiment.method.start
    if model is None:
        loaded = pretrained.load(settings.name, len(class_names), experiment.seed, settings)
        if loaded.directory is not None and pretrained.brings_head(loaded, len(class_names)):
            _put_in_order(loaded, pretrained.label_names(loaded.directory), class_names)
        return loaded if start is None else _started(loaded, start, class_names)
    if start is not None:
        raise InputError(
            "method.start is a PEFT adapter: expected a model of Hugging Face's, not your own."
        )
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model))):
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key):
            digest.update(np.ascontiguousarray(leaf).tobytes())
    found = digest.hexdigest()
    name = f"{type(model).__name__}, given in Python"
    words = getattr(model, "tokenizer", None)
    return Loaded(model, words, Model("own", reads=""), found, found, name, own=True)


def class_order(there: Sequence[str], here: Sequence[str]) -> list[int] | None:
    """Returns where each of our classes stands in a head's; None if its names are others, or in our order."""
    theirs, ours = ([name.casefold() for name in names] for names in (there, here))
    if theirs == ours or not _same(there, here) or len(set(ours)) < len(ours):
        return None
    return [theirs.index(name) for name in ours]


def _put_in_order(loaded: Loaded, there: Sequence[str], here: Sequence[str]) -> None:
    order = class_order(there, here)
    if order is None:
        return
    head = cast(Any, loaded.model).head
    for leaf in (head.kernel, head.bias):
        if leaf is not None:
            leaf.set_value(leaf[...][..., np.asarray(order)])


def _started(loaded: Loaded, folder: str, class_names: Sequence[str]) -> Loaded:
    """Returns a model with the head of an adapter, and its factors beside; it belongs to both files."""
    start = peft_io.from_peft(peft_io.read_peft(folder), loaded)
    peft_io.set_head(loaded, start)
    if start.head:
        there = (told(Path(folder)) or {}).get("class_names") or ()
        _put_in_order(loaded, there, class_names)
        if _named(there) and _named(class_names) and not _same(there, class_names):
            raise InputError(
                f"method.start has a head for the classes {', '.join(there)}, the data have "
                f"{', '.join(class_names)}: name them alike in the data's label column."
            )
    both = f"{loaded.fingerprint} {peft_io.fingerprint(folder)}"
    digest = hashlib.sha256(both.encode()).hexdigest()
    return loaded._replace(start=start, fingerprint=digest)


def _same(one: Sequence[str], other: Sequence[str]) -> bool:
    return sorted(name.casefold() for name in one) == sorted(name.casefold() for name in other)


def _named(names: Sequence[str]) -> bool:
    """Whether classes have names that say something: not numbers alone."""
    return bool(names) and not all(name.isdigit() for name in names)


def one_if_same(mine, theirs):
    """Returns the second array in place of the first where they hold the same."""
    if mine is theirs or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return mine
    if jnp.issubdtype(mine.dtype, jax.dtypes.prng_key):
        return mine
    return theirs if np.array_equal(np.asarray(mine), np.asarray(theirs)) else mine


def encode(dataset: Dataset, loaded: Loaded, max_tokens: int) -> Encoded:
    """Returns the examples as arrays that the model takes.

    Raises:
        InputError: data of a kind that the model does not read, texts without a tokenizer, more tokens than
            the model has positions, a tokenizer of another checkpoint.
    """
    reads, model = loaded.family.reads, cast(Any, loaded.model)
    if reads and reads != dataset.kind:
        raise InputError(
            f"The model reads {reads}, the data set holds {dataset.kind}: choose a model or data of the "
            "other kind (`ffalora list models`, `ffalora list datasets`)."
        )
    if dataset.kind == "images":
        settings = getattr(model, "image_settings", None)
        if settings is None:
            raise InputError(
                "A model of your own that reads images needs to say how: set model.image_settings to a "
                "ffalora_jax.images.ImageSettings (size, mean, std)."
            )
        return encoding.encode_images(dataset, settings)
    most = getattr(model, "max_positions", None)
    if most is not None and max_tokens > most:
        raise InputError(
            f"Expected model.max_tokens <= {most}, the model's positions, got {max_tokens}: lower "
            "--model.max-tokens."
        )
    if loaded.tokenizer is None and loaded.own:
        raise InputError(
            "A model of your own needs a tokenizer: set model.tokenizer to a function like "
            "ffalora_jax.text.hash_tokenizer(vocab_size)."
        )
    if dataset.kind == "instructions":
        codec = cast(TextCodec, loaded.tokenizer)
        encoded = encoding.encode_instructions(dataset, codec, max_tokens, loaded.directory)
    else:
        encoded = encoding.encode_text(dataset, loaded.tokenizer, max_tokens, loaded.directory)
    # A model that looks at padding would let one long example change all others of its block.
    encoded = encoded._replace(may_be_cut=loaded.family.family in registry.members("models"))
    encoding.check_vocabulary(encoded, getattr(model, "vocab_size", None))
    return encoded


def prompt_room(loaded: Loaded, settings: ModelConfig) -> int:
    """Returns how many tokens a prompt may have, so that the answer has its positions after it.

    Raises:
        InputError: the answers alone take all positions that the model has.
    """
    positions = getattr(loaded.model, "max_positions", None)
    if positions is None:
        return settings.max_tokens
    room = positions - settings.max_new_tokens
    if room < 2:
        raise InputError(
            f"Expected model.max_new_tokens <= {positions - 2}, the model's positions less a short prompt, "
            f"got {settings.max_new_tokens}: lower --model.max-new-tokens."
        )
    return min(settings.max_tokens, room)


def inject(experiment: Experiment, loaded: Loaded) -> LoraModel:
    """Puts the experiment's adapters into its model; with ``scan_layers`` its blocks keep their shapes only.

    Raises:
        InputError: as ``lora.inject``; adapters that are not those of ``method.start``.
    """
    settings, family = experiment.method, loaded.family
    method = method_of(experiment)
    model = lora.inject(
        loaded.model,
        family.placements.get(settings.targets, settings.targets),
        settings.rank,
        settings.lora_alpha,
        settings.layers,
        head=_head(experiment, loaded),
        dropout=settings.dropout,
        scan_layers=experiment.model.scan_layers,
        detour=_detour(settings, method),
        exclude=settings.exclude,
        rank_pattern=settings.rank_pattern,
        alpha_pattern=settings.alpha_pattern,
        use_rslora=settings.use_rslora,
        other_names=family.hf_names,
    )
    if loaded.start is not None:
        peft_io.check_same(loaded.start.adapted, model.adapted)
    if experiment.model.scan_layers and not loaded.own:
        _let_go(cast(Any, loaded.model).layers)
    return ensemble.of_model(model, experiment.ensemble.members)


def _detour(settings: MethodConfig, method: Method) -> Detour:
    """Returns what stands beside a layer: LoRA from a part of W, where the initialiser gives one of both."""
    init: LoraInit = registry.lookup("inits", settings.init)()
    from_weights = init.of_weights is not None and settings.start is None and bool(method.drawn)
    both = {"lora_a", "lora_b"} <= method.trained and method.detour is LORA
    return LORA_FROM_START if from_weights and both else method.detour


def _let_go(blocks: nnx.Module) -> None:
    """Leaves only the shapes of blocks that were stacked: both would be the backbone twice."""
    for leaf in jax.tree.leaves(nnx.state(blocks), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        value = leaf.get_value()
        leaf.set_value(jax.ShapeDtypeStruct(value.shape, value.dtype))


def _head(experiment: Experiment, loaded: Loaded) -> str | None:
    """Returns the head that is trained; a language model's output layer never is."""
    if loaded.family.reads != "instructions":
        return None if experiment.model.head == "frozen" else "head"
    if experiment.model.head == "personal":
        raise InputError(
            "Expected model.head frozen or trained for a language model (its output layer stays as it is "
            "either way), got 'personal'."
        )
    return None
