"""What BERT and RoBERTa share: embeddings, post-norm blocks, and the names of both in weight files."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax.blocks import run_blocks
from ffalora_jax.errors import InputError
from ffalora_jax.layers import Lookup, PostNormBlock, layer_norm
from ffalora_jax.models import WeightRule, dense_rules, norm_rules

HF_NAMES = (
    (r"layers\.(\d+)\.attention\.(query|key|value)", r"encoder.layer.\1.attention.self.\2"),
    (r"layers\.(\d+)\.attention\.output", r"encoder.layer.\1.attention.output.dense"),
    (r"layers\.(\d+)\.up", r"encoder.layer.\1.intermediate.dense"),
    (r"layers\.(\d+)\.down", r"encoder.layer.\1.output.dense"),
)


def add_encoder(model: Any, config: dict[str, Any], rngs: nnx.Rngs) -> None:
    """Gives a model its embeddings and blocks."""
    refuse_other_kinds(config)
    features = config["hidden_size"]
    model.words = Lookup(config["vocab_size"], features, rngs=rngs)
    # Only matters for random models: small positions leave the words in charge.
    beside = config.get("position_stddev", 0.02)
    places = config["max_position_embeddings"]
    model.positions = Lookup(places, features, rngs=rngs, stddev=beside)
    model.segments = Lookup(config.get("type_vocab_size", 2), features, rngs=rngs, stddev=beside)
    model.norm = layer_norm(features, config.get("layer_norm_eps", 1e-12), rngs=rngs)
    model.layers = nnx.List(
        [PostNormBlock(config, rngs=rngs) for _ in range(config["num_hidden_layers"])]
    )
    model.vocab_size, model.remat = config["vocab_size"], False


def check_positions(model: Any, input_ids: Int[Array, "*batch token"]) -> None:
    """Refuses more tokens than the model has positions: a lookup would give the last one again."""
    if input_ids.shape[-1] > model.max_positions:
        raise InputError(
            f"Expected at most {model.max_positions} tokens (the model's positions), got "
            f"{input_ids.shape[-1]}: lower --model.max-tokens."
        )


def encode(
    model: Any,
    input_ids: Int[Array, "*batch token"],
    places: Int[Array, "*batch token"],
    segments: Int[Array, "*batch token"],
    seen: Bool[Array, "*batch query token"],
    first: int | None = None,
) -> Float[Array, "*batch looking feature"]:
    """Returns the last hidden states; ``seen`` as in ``layers.attend``, ``first`` as in ``run_blocks``."""
    if model.segments.embedding.shape[0] == 1:  # RoBERTa's; tokenizers may call a second text 1
        segments = jnp.zeros_like(segments)
    x = model.words(input_ids) + model.positions(places) + model.segments(segments)
    return run_blocks(model.layers, model.norm(x), seen, remat=model.remat, first=first)


def refuse_other_kinds(config: dict[str, Any]) -> None:
    """A setting that changes the forward pass, but no tensor, would otherwise give wrong logits."""
    ours = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for name, value in ours.items():
        if config.get(name, value) != value:
            raise InputError(f"Expected {name} {value!r} in config.json, got {config[name]!r}.")


def encoder_rules(prefix: str) -> tuple[WeightRule, ...]:
    """Returns the rules of embeddings and blocks; names begin with the prefix or do without it."""
    stem, block = rf"(?:{prefix}\.)?embeddings\.", rf"(?:{prefix}\.)?encoder\.layer\.(\d+)\."
    return (
        WeightRule(stem + r"word_embeddings\.weight", "words.embedding"),
        WeightRule(stem + r"position_embeddings\.weight", "positions.embedding"),
        WeightRule(stem + r"token_type_embeddings\.weight", "segments.embedding"),
        WeightRule(stem + r"position_ids", ""),
        *norm_rules(stem + "LayerNorm", "norm"),
        *dense_rules(block + r"attention\.self\.(query|key|value)", r"layers.\1.attention.\2"),
        *dense_rules(block + r"attention\.output\.dense", r"layers.\1.attention.output"),
        *norm_rules(block + r"attention\.output\.LayerNorm", r"layers.\1.attention_norm"),
        *dense_rules(block + r"intermediate\.dense", r"layers.\1.up"),
        *dense_rules(block + r"output\.dense", r"layers.\1.down"),
        *norm_rules(block + r"output\.LayerNorm", r"layers.\1.output_norm"),
    )
