"""BERT (Devlin et al. 2019, arXiv:1810.04805): encoder with learned positions and post-norm blocks.

Two ends: a checkpoint for sequence classification brings its pooler and classifier; a bare encoder gets
mean pooling over the real tokens and a new head. Weights: names as in ``model.safetensors`` files.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax.errors import InputError
from ffalora_jax.layers import Lookup, attend, exact_gelu, layer_norm, linear, mean_pool
from ffalora_jax.models import Model, WeightRule, transpose

CLASSIFIER = "BertForSequenceClassification"


class Attention(nnx.Module):
    """Multi-head self-attention with its output projection."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query = linear(features, features, rngs=rngs)
        self.key = linear(features, features, rngs=rngs)
        self.value = linear(features, features, rngs=rngs)
        self.output = linear(features, features, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*batch token feature"], is_token: Bool[Array, "*batch token"]
    ) -> Float[Array, "*batch token feature"]:
        def split(y):
            return y.reshape(*y.shape[:-1], self.heads, -1)

        mixed = attend(split(self.query(x)), split(self.key(x)), split(self.value(x)), is_token)
        return self.output(mixed.reshape(x.shape))


class Block(nnx.Module):
    """Attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, config: dict[str, Any], *, rngs: nnx.Rngs):
        features, epsilon = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        self.attention = Attention(features, config["num_attention_heads"], rngs=rngs)
        self.attention_norm = layer_norm(features, epsilon, rngs=rngs)
        self.up = linear(features, config["intermediate_size"], rngs=rngs)
        self.down = linear(config["intermediate_size"], features, rngs=rngs)
        self.output_norm = layer_norm(features, epsilon, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*batch token feature"], is_token: Bool[Array, "*batch token"]
    ) -> Float[Array, "*batch token feature"]:
        x = self.attention_norm(x + self.attention(x, is_token))
        return self.output_norm(x + self.down(exact_gelu(self.up(x))))


class Bert(nnx.Module):
    """The encoder with a classification head; ``(..., token)`` ids and mask -> ``(..., class)``."""

    def __init__(self, config: dict[str, Any], num_classes: int, rngs: nnx.Rngs):
        _refuse_other_kinds(config)
        features = config["hidden_size"]
        self.max_positions = config["max_position_embeddings"]
        self.words = Lookup(config["vocab_size"], features, rngs=rngs)
        # Only matters for random models: small positions leave the words in charge.
        beside = config.get("position_stddev", 0.02)
        self.positions = Lookup(self.max_positions, features, rngs=rngs, stddev=beside)
        self.segments = Lookup(config.get("type_vocab_size", 2), features, rngs=rngs, stddev=beside)
        self.norm = layer_norm(features, config.get("layer_norm_eps", 1e-12), rngs=rngs)
        self.layers = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config["num_hidden_layers"])]
        )
        brings_head = CLASSIFIER in config.get("architectures", ())
        self.pooler = linear(features, features, rngs=rngs) if brings_head else None
        self.head = linear(features, num_classes, rngs=rngs)

    def __call__(
        self,
        input_ids: Int[Array, "*batch token"],
        attention_mask: Array,
        token_type_ids: Int[Array, "*batch token"] | None = None,
    ) -> Float[Array, "*batch classes"]:
        if input_ids.shape[-1] > self.max_positions:
            raise InputError(
                f"Expected at most {self.max_positions} tokens (the model's positions), got "
                f"{input_ids.shape[-1]}: lower --model.max-tokens."
            )
        is_token = attention_mask.astype(bool)
        segments = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        places = jnp.broadcast_to(jnp.arange(input_ids.shape[-1]), input_ids.shape)
        x = self.words(input_ids) + self.positions(places) + self.segments(segments)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, is_token)
        if self.pooler is None:
            return self.head(mean_pool(x, is_token))
        return self.head(jnp.tanh(self.pooler(x[..., 0, :])))


def _refuse_other_kinds(config: dict[str, Any]) -> None:
    """A setting that changes the forward pass, but no tensor, would otherwise give wrong logits."""
    ours = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for name, value in ours.items():
        if config.get(name, value) != value:
            raise InputError(f"Expected {name} {value!r} in config.json, got {config[name]!r}.")


def _dense(name: str, path: str) -> tuple[WeightRule, WeightRule]:
    return (
        WeightRule(name + r"\.weight", path + ".kernel", transpose),
        WeightRule(name + r"\.bias", path + ".bias"),
    )


def _norm(name: str, path: str) -> tuple[WeightRule, WeightRule]:
    return (
        WeightRule(name + r"\.(?:weight|gamma)", path + ".scale"),
        WeightRule(name + r"\.(?:bias|beta)", path + ".bias"),
    )


_BLOCK = r"(?:bert\.)?encoder\.layer\.(\d+)\."
_STEM = r"(?:bert\.)?embeddings\."
RULES = (
    WeightRule(_STEM + r"word_embeddings\.weight", "words.embedding"),
    WeightRule(_STEM + r"position_embeddings\.weight", "positions.embedding"),
    WeightRule(_STEM + r"token_type_embeddings\.weight", "segments.embedding"),
    WeightRule(_STEM + r"position_ids", ""),
    *_norm(_STEM + "LayerNorm", "norm"),
    *_dense(_BLOCK + r"attention\.self\.(query|key|value)", r"layers.\1.attention.\2"),
    *_dense(_BLOCK + r"attention\.output\.dense", r"layers.\1.attention.output"),
    *_norm(_BLOCK + r"attention\.output\.LayerNorm", r"layers.\1.attention_norm"),
    *_dense(_BLOCK + r"intermediate\.dense", r"layers.\1.up"),
    *_dense(_BLOCK + r"output\.dense", r"layers.\1.down"),
    *_norm(_BLOCK + r"output\.LayerNorm", r"layers.\1.output_norm"),
    *_dense(r"(?:bert\.)?pooler\.dense", "pooler"),
    *_dense("classifier", "head"),
    WeightRule(r"cls\..*", ""),
)


def build() -> Model:
    """The family."""
    return Model(
        family="bert",
        build=Bert,
        rules=RULES,
        architectures=(CLASSIFIER, "BertModel", "BertForMaskedLM", "BertForPreTraining"),
    )
