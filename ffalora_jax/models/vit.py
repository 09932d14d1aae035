"""ViT (Dosovitskiy et al. 2021, arXiv:2010.11929): patches, a class token, pre-norm blocks.

Takes images as uint8, which it rescales and normalises itself (so they stay small on the device), or as
floats that are normalised already. Names are those of weight files, not of PyTorch's modules in memory.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Num

from ffalora_jax.blocks import run_blocks
from ffalora_jax.errors import InputError
from ffalora_jax.images import ImageSettings, normalise
from ffalora_jax.layers import SelfAttention, exact_gelu, layer_norm, linear
from ffalora_jax.models import Model, WeightRule, dense_rules, norm_rules

CLASSIFIER = "ViTForImageClassification"


class Block(nnx.Module):
    """Attention and feed-forward, each on the normalised input and added to it."""

    def __init__(self, config: dict[str, Any], *, rngs: nnx.Rngs):
        features, epsilon = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        self.attention_norm = layer_norm(features, epsilon, rngs=rngs)
        self.attention = SelfAttention(
            features,
            config["num_attention_heads"],
            use_bias=config.get("qkv_bias", True),
            rngs=rngs,
        )
        self.output_norm = layer_norm(features, epsilon, rngs=rngs)
        self.up = linear(features, config["intermediate_size"], rngs=rngs)
        self.down = linear(config["intermediate_size"], features, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*batch token feature"],
        seen: Bool[Array, "*batch query token"],
        first: int | None = None,
    ) -> Float[Array, "*batch looking feature"]:
        x = x[..., :first, :] + self.attention(self.attention_norm(x), seen, first)
        return x + self.down(exact_gelu(self.up(self.output_norm(x))))


class ViT(nnx.Module):
    """The encoder with a head on the class token; ``(..., height, width, 3)`` -> ``(..., class)``."""

    def __init__(self, config: dict[str, Any], num_classes: int, rngs: nnx.Rngs):
        _refuse_other_kinds(config)
        features, self.patch = config["hidden_size"], config["patch_size"]
        self.image_size = config["image_size"]
        processor = {"size": self.image_size} | config.get("preprocessor", {})
        self.image_settings = ImageSettings.from_config(processor)
        count = (self.image_size // self.patch) ** 2
        self.patches = linear(self.patch**2 * 3, features, rngs=rngs)
        self.first = nnx.Param(jnp.zeros(features))
        self.positions = nnx.Param(jnp.zeros((count + 1, features)))
        self.layers = nnx.List(
            [Block(config, rngs=rngs) for _ in range(config["num_hidden_layers"])]
        )
        self.norm = layer_norm(features, config.get("layer_norm_eps", 1e-12), rngs=rngs)
        self.head = linear(features, num_classes, rngs=rngs)
        self.remat = False

    def __call__(
        self, images: Num[Array, "*batch height width channel"]
    ) -> Float[Array, "*batch classes"]:
        if images.shape[-3:] != (self.image_size, self.image_size, 3):
            raise InputError(
                f"Expected images of {self.image_size} x {self.image_size} x 3, got "
                f"{' x '.join(map(str, images.shape[-3:]))}: resize them, or use a checkpoint for that size."
            )
        if images.dtype == jnp.uint8:
            images = normalise(images, self.image_settings)
        kernel = self.patches.kernel[...]
        x = self.patches(_cut(images.astype(kernel.dtype), self.patch))
        first = jnp.broadcast_to(self.first[...], (*x.shape[:-2], 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=-2)
        places = self.positions[...]
        x = x + places.reshape((1,) * (x.ndim - 2) + places.shape)
        seen = jnp.ones((*x.shape[:-2], 1, x.shape[-2]), bool)
        x = run_blocks(self.layers, x, seen, remat=self.remat, first=1)
        return self.head(self.norm(x)[..., 0, :])


def _cut(
    images: Float[Array, "*batch height width channel"], patch: int
) -> Float[Array, "*batch token pixel"]:
    """Cuts images into patches, row by row; a patch's pixels in the order (row, column, channel)."""
    *lead, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    x = images.reshape(*lead, rows, patch, columns, patch, channels)
    return jnp.moveaxis(x, -3, -4).reshape(*lead, rows * columns, patch * patch * channels)


def _refuse_other_kinds(config: dict[str, Any]) -> None:
    ours = {"hidden_act": "gelu", "num_channels": 3}
    for name, value in ours.items():
        if config.get(name, value) != value:
            raise InputError(f"Expected {name} {value!r} in config.json, got {config[name]!r}.")
    size, patch = config["image_size"], config["patch_size"]
    if size % patch:
        raise InputError(
            f"Expected image_size to be a multiple of patch_size {patch} in config.json, got {size}."
        )


def _patch_kernel(array: Array) -> Array:
    """A convolution's (out, channel, row, column) as a dense kernel on flattened patches."""
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])


_STEM = r"(?:vit\.)?"
_BLOCK = _STEM + r"encoder\.layer\.(\d+)\."
RULES = (
    WeightRule(_STEM + r"embeddings\.cls_token", "first", lambda array: array[0, 0]),
    WeightRule(_STEM + r"embeddings\.position_embeddings", "positions", lambda array: array[0]),
    WeightRule(
        _STEM + r"embeddings\.patch_embeddings\.projection\.weight",
        "patches.kernel",
        _patch_kernel,
    ),
    WeightRule(_STEM + r"embeddings\.patch_embeddings\.projection\.bias", "patches.bias"),
    *norm_rules(_BLOCK + "layernorm_before", r"layers.\1.attention_norm"),
    *dense_rules(_BLOCK + r"attention\.attention\.(query|key|value)", r"layers.\1.attention.\2"),
    *dense_rules(_BLOCK + r"attention\.output\.dense", r"layers.\1.attention.output"),
    *norm_rules(_BLOCK + "layernorm_after", r"layers.\1.output_norm"),
    *dense_rules(_BLOCK + r"intermediate\.dense", r"layers.\1.up"),
    *dense_rules(_BLOCK + r"output\.dense", r"layers.\1.down"),
    *norm_rules(_STEM + "layernorm", "norm"),
    *dense_rules("classifier", "head"),
    WeightRule(_STEM + r"pooler\..*", ""),
)


def build() -> Model:
    """The family."""
    return Model(
        family="vit",
        build=ViT,
        rules=RULES,
        architectures=(CLASSIFIER, "ViTModel"),
        classifier=CLASSIFIER,
        reads="images",
        hf_names=(
            (r"layers\.(\d+)\.attention\.query", r"vit.layers.\1.attention.q_proj"),
            (r"layers\.(\d+)\.attention\.key", r"vit.layers.\1.attention.k_proj"),
            (r"layers\.(\d+)\.attention\.value", r"vit.layers.\1.attention.v_proj"),
            (r"layers\.(\d+)\.attention\.output", r"vit.layers.\1.attention.o_proj"),
            (r"layers\.(\d+)\.up", r"vit.layers.\1.mlp.fc1"),
            (r"layers\.(\d+)\.down", r"vit.layers.\1.mlp.fc2"),
        ),
        hf_head=(("head", "classifier"),),
    )
