"""Tiny checkpoints of all families with tokenizers, adapters that matter, and PEFT's view of them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ffalora_jax import lora, pretrained
from ffalora_jax.config import MethodConfig
from tests import checkpoint_files, family_files
from tests.llama_files import write_llama
from tests.test_codec import write_tokenizer

LENGTHS = np.array([10, 6, 3])
MASK = np.arange(10)[None] < LENGTHS[:, None]
IDS = np.where(MASK, np.arange(30).reshape(3, 10) * 7 % 40 + 3, 1)
IMAGES = np.sin(np.arange(3 * 12 * 12 * 3.0) ** 2).reshape(3, 12, 12, 3).astype(np.float32)
TARGETS = {"bert": "query,value", "roberta": "query,value", "vit": "query,value"}
FAMILIES = ("bert", "roberta", "vit", "llama")


class Case(NamedTuple):
    """A checkpoint with adapters."""

    family: str
    directory: Path
    loaded: pretrained.Loaded
    settings: MethodConfig
    model: lora.LoraModel
    adapters: Any

    def logits(self) -> np.ndarray:
        """What our model says."""
        return logits_of(self.family, self.model, self.adapters)


def write(directory: Path, family: str, **config) -> Path:
    """A checkpoint folder of the family, for three classes, with a tokenizer."""
    if family == "llama":
        write_llama(directory, kind=config.pop("kind", "modern"), **config)
    elif family == "bert":
        checkpoint_files.write_checkpoint(directory, **config)
    else:
        architecture = {"roberta": family_files.ROBERTA, "vit": family_files.VIT}[family]
        family_files.write_family(directory, architecture, **config)
    return directory if family == "vit" else write_tokenizer(directory)


def inputs(family: str) -> tuple:
    if family == "vit":
        return (jnp.asarray(IMAGES),)
    return jnp.asarray(IDS), jnp.asarray(MASK)


def logits_of(family: str, model: lora.LoraModel, adapters) -> np.ndarray:
    """Logits of real tokens, compiled: the same program for the same model."""
    call = jax.jit(lambda leaves: model.apply(model.backbone, leaves, *inputs(family)))
    return real_tokens(family, call(adapters))


def real_tokens(family: str, logits) -> np.ndarray:
    """Logits of padding mean nothing."""
    found = np.asarray(logits)
    return found[MASK] if family == "llama" else found


def case(
    directory: Path, family: str, head="trained", classes=3, dtype="float32", **settings
) -> Case:
    """A checkpoint in the folder with random adapters, and a random head if it is trained."""
    method = MethodConfig(**({"rank": 4, "lora_alpha": 6.0} | settings))
    loaded = pretrained.load(str(directory), classes, 5, pretrained.ModelConfig(dtype=dtype))
    model = lora.inject(
        loaded.model,
        loaded.family.placements.get(method.targets, method.targets),
        method.rank,
        method.lora_alpha,
        method.layers,
        head="head" if head == "trained" and family != "llama" else None,
        exclude=method.exclude,
        rank_pattern=method.rank_pattern,
        alpha_pattern=method.alpha_pattern,
        use_rslora=method.use_rslora,
        other_names=loaded.family.hf_names,
    )
    rng = np.random.default_rng(7)
    adapters = {
        layer: {
            leaf: jnp.asarray(0.3 * rng.standard_normal(shape), "float32")
            for leaf, shape in leaves.items()
        }
        for layer, leaves in sorted(model.shapes.items())
    }
    return Case(family, directory, loaded, method, model, adapters)


def hf_base(family: str, directory: Path, loader: str = "", classes: int | None = 3):
    """The base model as transformers loads it."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name = loader or {
        "vit": "AutoModelForImageClassification",
        "llama": "AutoModelForCausalLM",
    }.get(family, "AutoModelForSequenceClassification")
    more = {}
    if "Classification" in name:
        more = {"num_labels": classes, "ignore_mismatched_sizes": True}
    return getattr(transformers, name).from_pretrained(directory, **more).eval()


def hf_logits(family: str, model) -> np.ndarray:
    """What a model of transformers or PEFT says."""
    import torch

    with torch.no_grad():
        return real_tokens(family, model(**hf_inputs(family)).logits.float().numpy())


def hf_inputs(family: str) -> dict:
    import torch

    if family == "vit":
        return {"pixel_values": torch.from_numpy(IMAGES).permute(0, 3, 1, 2)}
    mask = torch.from_numpy(MASK.astype(np.int64))
    return {"input_ids": torch.from_numpy(IDS.astype(np.int64)), "attention_mask": mask}


def randomise(peft_model) -> None:
    """Gives every factor and every saved head of a PEFT model random values."""
    import torch

    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if re.search(r"lora_[AB]|modules_to_save", name):
                parameter.copy_(0.3 * torch.randn(parameter.shape))
