"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT's blocks, positions from the padding id on, its own head.

The head is the family's: dense, tanh, out, on the first token. A checkpoint for sequence classification
brings it; a bare encoder or language model gets a new one from the public seed. ``head`` (what
``model.head`` trains or freezes) is its last layer; the dense layer before it stays frozen.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ffalora_jax.layers import linear
from ffalora_jax.models import Model, WeightRule, dense_rules
from ffalora_jax.models._encoder import (
    HF_NAMES,
    add_encoder,
    check_positions,
    encode,
    encoder_rules,
)
from ffalora_jax.packing import Packed

CLASSIFIER = "RobertaForSequenceClassification"


class Roberta(nnx.Module):
    """The encoder with a classification head; ``(..., token)`` ids and mask -> ``(..., class)``."""

    def __init__(self, config: dict[str, Any], num_classes: int, rngs: nnx.Rngs):
        add_encoder(self, config, rngs)
        features = config["hidden_size"]
        self.padding_id = config.get("pad_token_id", 1)
        # Places start behind the padding id; that many rows of the table are never a token's.
        self.max_positions = config["max_position_embeddings"] - self.padding_id - 1
        self.pooler = linear(features, features, rngs=rngs)
        self.head = linear(features, num_classes, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "*batch token"],
        attention_mask: Array,
        token_type_ids: Int[Array, "*batch token"] | None = None,
    ) -> Float[Array, "*batch classes"]:
        check_positions(self, input_ids)
        is_token = attention_mask.astype(bool)
        counted = is_token & (input_ids != self.padding_id)
        places = jnp.where(counted, jnp.cumsum(counted, axis=-1), 0) + self.padding_id
        segments = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = encode(self, input_ids, places, segments, is_token[..., None, :], first=1)
        return self.head(jnp.tanh(self.pooler(x[..., 0, :])))

    def packed(self, rows: Packed) -> Float[Array, "slot classes"]:
        """The same for examples that share rows."""
        counted = (rows.owner >= 0) & (rows.input_ids != self.padding_id)
        before = jnp.cumsum(counted, axis=-1) - counted
        began = jnp.take_along_axis(
            before, jnp.arange(counted.shape[-1])[None] - rows.places, axis=-1
        )
        places = jnp.where(counted, before - began + 1, 0) + self.padding_id
        x = encode(self, rows.input_ids, places, rows.token_type_ids, rows.seen)
        return self.head(jnp.tanh(self.pooler(rows.first_tokens(x))))


RULES = (
    *encoder_rules("roberta"),
    *dense_rules(r"classifier\.dense", "pooler"),
    *dense_rules(r"classifier\.out_proj", "head"),
    # The pooler of a bare encoder is another one, after BERT's fashion, and unused.
    WeightRule(r"(?:roberta\.)?pooler\.dense\.(?:weight|bias)", ""),
    WeightRule(r"lm_head\..*", ""),
)


def build() -> Model:
    """The family."""
    return Model(
        family="roberta",
        build=Roberta,
        rules=RULES,
        architectures=(CLASSIFIER, "RobertaModel", "RobertaForMaskedLM"),
        classifier=CLASSIFIER,
        new_parts=("pooler", "head"),
        hf_names=tuple((ours, f"roberta.{theirs}") for ours, theirs in HF_NAMES),
        hf_head=(("pooler", "classifier.dense"), ("head", "classifier.out_proj")),
    )
