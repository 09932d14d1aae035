"""What PEFT and transformers call the layers of our models. Names of modules in memory, not of weight files.

``layers.0.attention.query`` here is ``roberta.encoder.layer.0.attention.self.query`` there, and without the
first part in a bare encoder (``AutoModel``). Adapters made with older releases of transformers carry the
names of weight files for ViT; those are understood as well.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from flax import nnx

from ffalora_jax.models import Model, transpose
from ffalora_jax.pretrained import Loaded

PREFIX = "base_model.model."
TASKS = {"text": "SEQ_CLS", "images": None, "instructions": "CAUSAL_LM"}
LOADERS = {
    "text": "AutoModelForSequenceClassification",
    "images": "AutoModelForImageClassification",
    "instructions": "AutoModelForCausalLM",
}


class Names(NamedTuple):
    """A model's dense layers in transformers."""

    layers: dict[str, str]
    """Our layer -> theirs; layers without a counterpart are not in it."""
    head: dict[str, str]
    """The parts of the head for classification; empty for a language model."""
    bare: bool
    """Whether transformers has no class that ends as ours does: the adapter is that of the encoder."""
    task: str | None
    """PEFT's ``task_type``."""
    loader: str
    """The class of transformers that loads the base model."""


def names_of(loaded: Loaded) -> Names:
    """Returns the names of a model's layers; none for a model of the user's own."""
    family = loaded.family
    bare = not loaded.own and family.pools_itself(loaded.model)
    layers = {}
    for ours in dense_layers(loaded.model):
        theirs = _theirs(ours, family)
        if theirs is not None:
            layers[ours] = theirs.removeprefix(stem(family)) if bare else theirs
    head = dict(family.hf_head)
    if bare:
        return Names(layers, {"head": "head"}, True, "FEATURE_EXTRACTION", "AutoModel")
    return Names(layers, head, False, TASKS.get(family.reads), LOADERS.get(family.reads, ""))


def dense_layers(model: nnx.Module) -> list[str]:
    """Returns the dotted paths of all ``nnx.Linear``s."""
    return [
        ".".join(map(str, path))
        for path, module in nnx.iter_modules(model)
        if type(module) is nnx.Linear
    ]


def ours_of(theirs: str, loaded: Loaded) -> str | None:
    """Returns our path of a layer named as in transformers: in memory, in a bare encoder, or in files."""
    family, known = loaded.family, dense_layers(loaded.model)
    table = {_theirs(ours, family): ours for ours in known}
    for name in (theirs, stem(family) + theirs):
        if name in table:
            return table[name]
    for rule in family.rules:
        match = re.fullmatch(rule.pattern, f"{theirs}.weight")
        if match and rule.transform is transpose:
            ours = match.expand(rule.path).removesuffix(".kernel")
            return ours if ours in known else None
    return None


def stem(family: Model) -> str:
    """Returns the first part of the names: ``roberta.``, for LLaMA ``model.``."""
    return family.hf_names[0][1].partition(".")[0] + "." if family.hf_names else ""


def targets_of(chosen: Iterable[str], others: Iterable[str]) -> list[str]:
    """Returns PEFT's ``target_modules``: last names where they say it all, else whole names.

    Args:
        chosen: the adapted layers, in PEFT's names.
        others: all other layers, that must not be hit.
    """
    whole = sorted(chosen)
    last = sorted({name.rpartition(".")[2] for name in whole})
    is_hit = any(name.rpartition(".")[2] in last for name in others)
    return whole if is_hit else last


def pattern_of(values: dict[str, float], default: float) -> dict[str, float]:
    """Returns PEFT's ``rank_pattern`` or ``alpha_pattern`` of the layers that differ from the default."""
    by_last: dict[str, set[float]] = {}
    for name, value in values.items():
        by_last.setdefault(name.rpartition(".")[2], set()).add(value)
    found = {}
    for name, value in values.items():
        last = name.rpartition(".")[2]
        if value != default:
            found[last if len(by_last[last]) == 1 else name] = value
    return found


def _theirs(ours: str, family: Model) -> str | None:
    for pattern, name in family.hf_names:
        match = re.fullmatch(pattern, ours)
        if match:
            return match.expand(name)
    return None
