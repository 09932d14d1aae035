"""A language model's answers to prompts: greedy decoding in length-sorted batches, and how many are right."""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from ffalora_jax import adapters as leaves
from ffalora_jax.answers import final_number, same_number
from ffalora_jax.client import Frozen
from ffalora_jax.codec import Prompt, TextCodec, encode_prompts
from ffalora_jax.config import ModelConfig
from ffalora_jax.generate import greedy
from ffalora_jax.load import prompt_room
from ffalora_jax.lora import LoraModel
from ffalora_jax.metrics import proportion_interval
from ffalora_jax.pretrained import Loaded
from ffalora_jax.types import Adapters

BATCH = 32

Respond = Callable[[Frozen, Adapters, Sequence[Prompt]], list[str]]
"""(frozen, adapters, prompts) -> responses."""


def make_responder(model: LoraModel, loaded: Loaded, settings: ModelConfig) -> Respond:
    """Returns the function that continues prompts by the most probable tokens, until the end token.

    A prompt that leaves no room for the answer among the model's positions loses its left.
    """
    codec, room = cast(TextCodec, loaded.tokenizer), prompt_room(loaded, settings)

    def respond(frozen, adapters, prompts):
        params = frozen.backbone, leaves.merge(frozen.adapters, adapters)
        encoded = encode_prompts(codec, prompts, room)
        order = np.argsort(encoded.lengths, kind="stable")
        found = [""] * len(prompts)
        for start in range(0, len(order), BATCH):
            here = order[start : start + BATCH]
            width = next(w for w in encoded.widths if w >= encoded.lengths[here].max())
            padded = np.pad(here, (0, BATCH - len(here)), mode="edge")
            ids, mask = (encoded.inputs[n][padded, :width] for n in ("input_ids", "attention_mask"))
            new, lengths = greedy(
                model.apply, params, ids, mask, settings.max_new_tokens, [codec.end_id]
            )
            for row, index in enumerate(here):
                found[index] = codec.decode(np.asarray(new[row])[: int(lengths[row])])
        return found

    return respond


def exact_match(responses: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Returns the share of responses whose final number is the right one, with its 95 % interval.

    A response without a marked number is wrong. Reference: Cobbe et al. 2021 (GSM8K, arXiv:2110.14168).
    """
    pairs = [(final_number(a), final_number(b)) for a, b in zip(responses, truths, strict=True)]
    right = sum(same_number(found, true) for found, true in pairs)
    low, high = proportion_interval(right, len(pairs))
    return {
        "exact_match": right / len(pairs),
        "exact_match_low": low,
        "exact_match_high": high,
        "answered": sum(found is not None for found, _ in pairs) / len(pairs),
    }
