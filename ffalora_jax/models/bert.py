"""BERT (Devlin et al. 2019, arXiv:1810.04805): encoder with learned positions and post-norm blocks.

Two ends: a checkpoint for sequence classification brings its pooler and classifier; a bare encoder gets
mean pooling over the real tokens and a new head. Weights: names as in ``model.safetensors`` files.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ffalora_jax.layers import linear, mean_pool
from ffalora_jax.models import Model, WeightRule, dense_rules
from ffalora_jax.models._encoder import (
    HF_NAMES,
    add_encoder,
    check_positions,
    encode,
    encoder_rules,
)
from ffalora_jax.packing import Packed

CLASSIFIER = "BertForSequenceClassification"


class Bert(nnx.Module):
    """The encoder with a classification head; ``(..., token)`` ids and mask -> ``(..., class)``."""

    def __init__(self, config: dict[str, Any], num_classes: int, rngs: nnx.Rngs):
        add_encoder(self, config, rngs)
        features = config["hidden_size"]
        self.max_positions = config["max_position_embeddings"]
        brings_head = CLASSIFIER in config.get("architectures", ())
        self.pooler = linear(features, features, rngs=rngs) if brings_head else None
        self.head = linear(features, num_classes, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "*batch token"],
        attention_mask: Array,
        token_type_ids: Int[Array, "*batch token"] | None = None,
    ) -> Float[Array, "*batch classes"]:
        check_positions(self, input_ids)
        is_token = attention_mask.astype(bool)
        segments = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        places = jnp.broadcast_to(jnp.arange(input_ids.shape[-1]), input_ids.shape)
        first = None if self.pooler is None else 1
        x = encode(self, input_ids, places, segments, is_token[..., None, :], first)
        if self.pooler is None:
            return self.head(mean_pool(x, is_token))
        return self.head(jnp.tanh(self.pooler(x[..., 0, :])))

    def packed(self, rows: Packed) -> Float[Array, "slot classes"]:
        """The same for examples that share rows."""
        x = encode(self, rows.input_ids, rows.places, rows.token_type_ids, rows.seen)
        if self.pooler is None:
            return self.head(rows.means(x))
        return self.head(jnp.tanh(self.pooler(rows.first_tokens(x))))


RULES = (
    *encoder_rules("bert"),
    *dense_rules(r"(?:bert\.)?pooler\.dense", "pooler"),
    *dense_rules("classifier", "head"),
    WeightRule(r"cls\..*", ""),
)


def build() -> Model:
    """The family."""
    return Model(
        family="bert",
        build=Bert,
        rules=RULES,
        architectures=(CLASSIFIER, "BertModel", "BertForMaskedLM", "BertForPreTraining"),
        classifier=CLASSIFIER,
        hf_names=(
            *((ours, f"bert.{theirs}") for ours, theirs in HF_NAMES),
            ("pooler", "bert.pooler.dense"),
        ),
        hf_head=(("head", "classifier"),),
        pools_itself=lambda model: model.pooler is None,
    )
