"""LLaMA 1 to 3 and models of its form, such as SmolLM2: a decoder for causal language modelling.

Touvron et al. 2023 (arXiv:2302.13971): pre-norm blocks with RMSNorm, rotary positions and SwiGLU; grouped
queries (Ainslie et al. 2023, arXiv:2305.13245). Weights: names as in ``model.safetensors`` files.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax.blocks import StackedBlocks, run_blocks
from ffalora_jax.errors import InputError
from ffalora_jax.layers import Lookup, linear, masked_softmax
from ffalora_jax.models import Model, WeightRule, dense_rules
from ffalora_jax.models._kv_cache import (
    Cache,
    empty_cache,
    last_token,
    mark,
    positions,
    seen_by,
    write,
)
from ffalora_jax.models._rotary import Turn, frequencies, most_positions, rotate, turn_of

Memory = tuple[Array, Array, Array]
"""A layer's keys and values in their slots, and the first slot to write."""


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale, in float32 (Zhang & Sennrich 2019, equation 4)."""

    def __init__(self, features: int, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(features))

    def __call__(self, x: Float[Array, "*batch feature"]) -> Float[Array, "*batch feature"]:
        wide = x.astype(jnp.float32)
        size = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...].astype(jnp.float32)
        return (wide * size * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


class Attention(nnx.Module):
    """Causal attention whose query heads share keys and values in groups, with rotary positions."""

    FIRST_LAYERS = ("q_proj", "k_proj", "v_proj")

    def __init__(self, config: dict[str, Any], *, rngs: nnx.Rngs):
        features, use_bias = config["hidden_size"], config.get("attention_bias", False)
        self.heads, self.kv_heads, self.channels = head_sizes(config)
        inner, shared = self.heads * self.channels, self.kv_heads * self.channels
        self.q_proj = linear(features, inner, rngs=rngs, use_bias=use_bias)
        self.k_proj = linear(features, shared, rngs=rngs, use_bias=use_bias)
        self.v_proj = linear(features, shared, rngs=rngs, use_bias=use_bias)
        self.o_proj = linear(inner, features, rngs=rngs, use_bias=use_bias)

    def __call__(
        self,
        x: Float[Array, "*batch token feature"],
        turn: Turn,
        seen: Bool[Array, "*batch token slot"],
        memory: Memory | None = None,
    ) -> tuple[Float[Array, "*batch token feature"], Memory | None]:
        def split(y, heads):
            return y.reshape(*y.shape[:-1], heads, self.channels)

        query = rotate(split(self.q_proj(x), self.heads), turn)
        key = rotate(split(self.k_proj(x), self.kv_heads), turn)
        value = split(self.v_proj(x), self.kv_heads)
        if memory is not None:
            keys, values, first = memory
            key, value = write(keys, key, first), write(values, value, first)
            memory = (key, value, first)
        mixed = attend_in_groups(query, key, value, seen)
        return self.o_proj(mixed.reshape(*x.shape[:-1], -1)), memory


def attend_in_groups(
    query: Float[Array, "*batch token head channel"],
    key: Float[Array, "*batch slot group channel"],
    value: Float[Array, "*batch slot group channel"],
    seen: Bool[Array, "*batch token slot"],
) -> Float[Array, "*batch token head channel"]:
    """Scaled dot-product attention over the slots seen; softmax in float32.

    Head h looks at keys and values of group h // (heads / groups); they are not repeated in memory.
    """
    *free, heads, channels = query.shape
    groups = key.shape[-2]
    query = query.reshape(*free, groups, heads // groups, channels) * channels**-0.5
    scores = jnp.einsum("...qghc,...kgc->...ghqk", query, key.astype(query.dtype))
    weights = masked_softmax(scores.astype(jnp.float32), seen[..., None, None, :, :]).astype(
        query.dtype
    )
    mixed = jnp.einsum("...ghqk,...kgc->...qghc", weights, value.astype(query.dtype))
    return mixed.reshape(*free, heads, channels)


class Mlp(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202, equation 6)."""

    def __init__(self, config: dict[str, Any], *, rngs: nnx.Rngs):
        features, inner = config["hidden_size"], config["intermediate_size"]
        use_bias = config.get("mlp_bias", False)
        self.gate_proj = linear(features, inner, rngs=rngs, use_bias=use_bias)
        self.up_proj = linear(features, inner, rngs=rngs, use_bias=use_bias)
        self.down_proj = linear(inner, features, rngs=rngs, use_bias=use_bias)

    def __call__(self, x: Float[Array, "*batch feature"]) -> Float[Array, "*batch feature"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """Attention and feed-forward, each on normalised input and added to it."""

    def __init__(self, config: dict[str, Any], *, rngs: nnx.Rngs):
        features, epsilon = config["hidden_size"], config.get("rms_norm_eps", 1e-6)
        self.attention_norm = RMSNorm(features, epsilon)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(features, epsilon)
        self.mlp = Mlp(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*batch token feature"],
        turn: Turn,
        seen: Bool[Array, "*batch token slot"],
    ) -> Float[Array, "*batch token feature"]:
        return self.with_memory(x, turn, seen, None)[0]

    def with_memory(self, x: Array, turn: Turn, seen: Array, memory: Any) -> tuple[Array, Any]:
        """Returns ``(x, memory)``: the new tokens look at the earlier ones too."""
        mixed, memory = self.attention(self.attention_norm(x), turn, seen, memory)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), memory


class Llama(nnx.Module):
    """The decoder with its head: ``(..., token)`` ids and mask -> logits ``(..., token, vocabulary)``.

    Called with a cache it also returns one: ``(logits, cache)``. A whole number in its place makes an
    empty cache of so many slots. With ``last_only`` only each row's last real token gets logits,
    ``(..., vocabulary)``: a prompt's others would fill the memory for nothing.
    """

    def __init__(self, config: dict[str, Any], num_classes: int, rngs: nnx.Rngs):
        _refuse_other_kinds(config)
        features = config["hidden_size"]
        self.max_positions = most_positions(config)
        self.radians = frequencies(config, head_sizes(config)[2])
        self.embed = Lookup(config["vocab_size"], features, rngs=rngs)
        self.layers = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config["num_hidden_layers"])]
        )
        self.vocab_size, self.remat = config["vocab_size"], False
        self.norm = RMSNorm(features, config.get("rms_norm_eps", 1e-6))
        if not config.get("tie_word_embeddings", False):
            self.head = linear(features, config["vocab_size"], rngs=rngs, use_bias=False)

    def __call__(
        self,
        input_ids: Int[Array, "*batch token"],
        attention_mask: Array,
        cache: Cache | int | None = None,
        last_only: bool = False,
    ) -> Float[Array, "*place vocab"] | tuple[Float[Array, "*place vocab"], Cache]:
        is_token, x = attention_mask.astype(bool), self.embed(input_ids)
        if isinstance(cache, int):
            blocks = self._blocks()
            attention = blocks[0].attention
            sizes = (cache, attention.kv_heads, attention.channels)
            cache = empty_cache(len(blocks), input_ids.shape[:-1], *sizes, x.dtype)
        slots, first = (is_token, 0) if cache is None else (mark(cache, is_token), cache.next_slot)
        _check_length(slots.shape[-1], self.max_positions)
        count = input_ids.shape[-1]
        turn, seen = (
            turn_of(positions(slots, first, count), self.radians),
            seen_by(slots, first, count),
        )
        if cache is None:
            x = run_blocks(self.layers, x, turn, seen, remat=self.remat)
        else:
            x, cache = self._with_cache(x, turn, seen, cache._replace(is_token=slots))
        logits = self._logits(last_token(x, is_token) if last_only else x)
        return logits if cache is None else (logits, cache)

    def _blocks(self) -> list[Any]:
        layers: Any = self.layers
        return layers.one_by_one() if isinstance(layers, StackedBlocks) else list(layers)

    def _with_cache(self, x: Array, turn: Turn, seen: Array, cache: Cache) -> tuple[Array, Cache]:
        keys, values = [], []
        for block, key, value in zip(self._blocks(), cache.keys, cache.values, strict=True):
            x, memory = block.with_memory(x, turn, seen, (key, value, cache.next_slot))
            keys.append(memory[0])
            values.append(memory[1])
        next_slot = cache.next_slot + seen.shape[-2]
        return x, Cache(tuple(keys), tuple(values), cache.is_token, next_slot)

    def _logits(self, x: Float[Array, "*place feature"]) -> Float[Array, "*place vocab"]:
        x = self.norm(x)
        if hasattr(self, "head"):
            return self.head(x)
        return jnp.einsum("...f,vf->...v", x, self.embed.embedding[...].astype(x.dtype))


def head_sizes(config: dict[str, Any]) -> tuple[int, int, int]:
    """Returns ``(query heads, heads of keys and values, channels of a head)`` of a config.json."""
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads") or heads
    if heads % groups:
        raise InputError(
            f"Expected num_attention_heads a multiple of num_key_value_heads in config.json, got {heads} "
            f"and {groups}."
        )
    return heads, groups, config.get("head_dim") or config["hidden_size"] // heads


def _check_length(slots: int, most: int) -> None:
    if slots > most:
        raise InputError(
            f"Expected at most {most} tokens (the model's positions), got {slots}: lower "
            "--model.max-tokens, or the number of new tokens."
        )


def _refuse_other_kinds(config: dict[str, Any]) -> None:
    """A setting that changes the forward pass, but no tensor, would otherwise give wrong logits."""
    ours = {"hidden_act": "silu", "rope_interleaved": False}
    for name, value in ours.items():
        if config.get(name, value) != value:
            raise InputError(f"Expected {name} {value!r} in config.json, got {config[name]!r}.")


_BLOCK = r"model\.layers\.(\d+)\."
RULES = (
    WeightRule(r"model\.embed_tokens\.weight", "embed.embedding"),
    *dense_rules(_BLOCK + r"self_attn\.([qkvo]_proj)", r"layers.\1.attention.\2"),
    WeightRule(_BLOCK + r"self_attn\.rotary_emb\.inv_freq", ""),
    *dense_rules(_BLOCK + r"mlp\.((?:gate|up|down)_proj)", r"layers.\1.mlp.\2"),
    WeightRule(_BLOCK + r"input_layernorm\.weight", r"layers.\1.attention_norm.scale"),
    WeightRule(_BLOCK + r"post_attention_layernorm\.weight", r"layers.\1.mlp_norm.scale"),
    WeightRule(r"model\.norm\.weight", "norm.scale"),
    *dense_rules("lm_head", "head"),
)


def build() -> Model:
    """The family."""
    return Model(
        family="llama",
        build=Llama,
        rules=RULES,
        architectures=("LlamaForCausalLM",),
        new_parts=(),
        reads="instructions",
        placements={"qv": "q_proj,v_proj", "qkvo": "q_proj,k_proj,v_proj,o_proj"},
        hf_names=(
            (r"layers\.(\d+)\.attention\.([qkvo]_proj)", r"model.layers.\1.self_attn.\2"),
            (r"layers\.(\d+)\.mlp\.((?:gate|up|down)_proj)", r"model.layers.\1.mlp.\2"),
            ("head", "lm_head"),
        ),
    )
