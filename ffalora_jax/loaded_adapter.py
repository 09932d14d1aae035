"""A PEFT adapter on its base model, loaded to predict: one of ours, or one that PEFT made."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from ffalora_jax import lora, peft_io, pretrained
from ffalora_jax.adapter_file import FACTS, read_facts
from ffalora_jax.client import Frozen
from ffalora_jax.config import ModelConfig
from ffalora_jax.errors import InputError
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.loaded_run import Prediction, Ready, classify
from ffalora_jax.lora import LoraModel
from ffalora_jax.pretrained import Loaded
from ffalora_jax.respond import make_responder
from ffalora_jax.round import RoundState
from ffalora_jax.tasks import classification
from ffalora_jax.types import Adapters


class LoadedAdapter(NamedTuple):
    """What ``load_adapter`` returns."""

    model: LoraModel
    adapters: Adapters
    loaded: Loaded
    class_names: tuple[str, ...]
    settings: ModelConfig

    def __call__(self, *inputs: Any, **named: Any) -> Float[Array, "*batch classes"]:
        """Returns logits of arrays: ``(input_ids, attention_mask)`` or ``(images,)``."""
        return self.model.apply(self.model.backbone, self.adapters, *inputs, **named)

    def predict(self, inputs: Sequence, pairs: Sequence[str] | None = None) -> list[Prediction]:
        """Classifies texts or images.

        Raises:
            InputError: nothing to classify, or a language model (``generate``).
        """
        if isinstance(inputs, str) or len(inputs) == 0:
            raise InputError("Expected a list of at least one text or image.")
        kind = self.loaded.family.reads
        if kind == "instructions":
            raise InputError("This model answers prompts: use generate in place of predict.")
        state = RoundState(self.adapters, {}, jnp.int32(0))
        ready = Ready(
            self.model,
            make_predictor(self.model, classification()),
            Frozen(self.model.backbone, {}),
            state,
            self.loaded,
            self.class_names,
            (),
        )
        return classify(ready, self.adapters, kind, inputs, pairs, self.settings.max_tokens)

    def generate(self, prompts: Sequence[Any]) -> list[str]:
        """Answers prompts by greedy decoding.

        Raises:
            InputError: no prompt, or a model that classifies (``predict``).
        """
        if isinstance(prompts, str) or len(prompts) == 0:
            raise InputError("Expected a list of at least one prompt.")
        if self.loaded.family.reads != "instructions":
            raise InputError("This model classifies: use predict in place of generate.")
        respond = make_responder(self.model, self.loaded, self.settings)
        return respond(Frozen(self.model.backbone, {}), self.adapters, list(prompts))


def load_adapter(
    model: str | Path,
    adapter: str | Path,
    *,
    max_tokens: int = 48,
    max_new_tokens: int = 128,
    dtype: str = "float32",
    seed: int = 0,
) -> LoadedAdapter:
    """Loads a PEFT adapter (``adapter_config.json``, ``adapter_model.safetensors``) on its base model.

    Ranks come from the tensors; alpha, rsLoRA and patterns from the config, read as PEFT reads them.

    Args:
        model: the base model's directory, hub name or name from ``ffalora list models``.
        adapter: the adapter's folder.
        max_tokens: longer texts are cut, in tokens.
        max_new_tokens: most tokens of an answer.
        dtype: type of the base model's weights.
        seed: public seed of a head that neither of the two brings.

    Raises:
        InputError: files that are missing or do not fit one another, and what is not supported: DoRA,
            biases, embeddings, other saved modules than heads, other kinds of adapter.
    """
    found = peft_io.read_peft(adapter)
    settings = ModelConfig(
        name=str(model), max_tokens=max_tokens, max_new_tokens=max_new_tokens, dtype=dtype
    )
    classes = peft_io.count_classes(found)
    as_classifier = not found.head and found.config.get("task_type") == "SEQ_CLS"
    loaded = pretrained.load(settings.name, classes, seed, settings, as_classifier)
    start = peft_io.from_peft(found, loaded)
    peft_io.set_head(loaded, start)
    names = _class_names(Path(adapter), loaded)
    return LoadedAdapter(_inject(loaded, start), start.adapters, loaded, names, settings)


def _class_names(adapter: Path, loaded: Loaded) -> tuple[str, ...]:
    """Names beside the adapter, else the base model's, if they are as many as the classes; else numbers."""
    if loaded.family.reads == "instructions":
        return ()
    count = cast(Any, loaded.model).head.out_features
    candidates = [read_facts(adapter)["class_names"]] if (adapter / FACTS).is_file() else []
    if loaded.directory is not None:
        candidates.append(pretrained.label_names(loaded.directory))
    numbers = [str(index) for index in range(count)]
    return tuple(next((names for names in candidates if len(names) == count), numbers))


def _inject(loaded: Loaded, start: peft_io.Start) -> LoraModel:
    """Puts in exactly the adapters that there are, each with its own rank and alpha."""
    exact = {re.escape(name): found for name, found in start.adapted.items()}
    first = next(iter(start.adapted.values()))
    return lora.inject(
        loaded.model,
        "|".join(exact),
        first.rank,
        first.lora_alpha,
        head=None,
        rank_pattern={name: found.rank for name, found in exact.items()},
        alpha_pattern={name: found.lora_alpha for name, found in exact.items()},
        use_rslora=start.use_rslora,
    )
