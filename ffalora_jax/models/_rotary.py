"""Rotary positions (Su et al. 2021, arXiv:2104.09864) in Hugging Face's layout, and their stretchings.

Channel i of a head turns together with channel i + half, by position * frequency_i. Files that pair
neighbours (2i, 2i + 1) instead, as LLaMA's own did, are permuted when they are read.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ffalora_jax.errors import InputError, positive


class Turn(NamedTuple):
    """Angles of every token, as cosine and sine in float32."""

    cosine: Float[Array, "*batch token half"]
    sine: Float[Array, "*batch token half"]


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the rotary settings of a config.json, old spelling or new, as the new one has them.

    Old: ``rope_theta`` and ``rope_scaling`` with ``type`` at the top level. New: all in
    ``rope_parameters``. Where both are given, ``rope_scaling`` counts, as in transformers.

    Raises:
        InputError: a stretching that is not known here.
    """
    given = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = given.setdefault("rope_type", given.get("type", "default"))
    given.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    if kind not in _STRETCHED:
        raise InputError(
            f"Expected rope_type {', '.join(_STRETCHED)} in config.json, got {kind!r}: this library does "
            "not compute it. Choose a checkpoint without it."
        )
    share = given.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    if share != 1:
        raise InputError(f"Expected partial_rotary_factor 1 in config.json, got {share}.")
    positive(rope_theta=given["rope_theta"])
    if kind != "default":
        positive(factor=given["factor"])
    if kind == "llama3":
        places = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
        given.setdefault("original_max_position_embeddings", places)
    return given


def frequencies(config: dict[str, Any], channels: int) -> tuple[float, ...]:
    """Returns the radians per position of each pair of channels: theta^(-2 i / channels), stretched.

    Args:
        config: a config.json.
        channels: width of a head, even.

    Raises:
        InputError: an odd width, a stretching that is not known here.
    """
    if channels < 2 or channels % 2:
        raise InputError(f"Expected an even head_dim in config.json, got {channels}.")
    settings = settings_of(config)
    # Float32 as in PyTorch: at position 4,096 its rounding alone turns the angles by 1e-4.
    periods = settings["rope_theta"] ** (np.arange(0, channels, 2) / channels)
    plain = np.float32(1) / periods.astype(np.float32)
    stretched = _STRETCHED[settings["rope_type"]](plain.astype(np.float64), settings)
    return tuple(stretched.astype(np.float32).tolist())


def most_positions(config: dict[str, Any]) -> int:
    """Returns how many positions a model was made for; linear stretching multiplies them."""
    settings, places = settings_of(config), config.get("max_position_embeddings", 2048)
    return int(places * settings["factor"]) if settings["rope_type"] == "linear" else places


def turn_of(positions: Int[Array, "*batch token"], radians: Sequence[float]) -> Turn:
    """Returns the angles at some positions."""
    steps = jnp.asarray(radians, jnp.float32)
    angles = jnp.einsum("...t,h->...th", positions.astype(jnp.float32), steps, precision="highest")
    return Turn(jnp.cos(angles), jnp.sin(angles))


def rotate(
    x: Float[Array, "*batch token head channel"], turn: Turn
) -> Float[Array, "*batch token head channel"]:
    """Turns the channel pairs (i, i + half) of every head; in float32, returned in the dtype of ``x``.

    Reference: Su et al. 2021, equation 34, with the pairs' order changed.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = turn.cosine[..., None, :], turn.sine[..., None, :]
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _llama3(plain: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """LLaMA 3.1's: slow turns are divided by the factor, fast ones kept, and a ramp lies between."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    if not high > low > 0:
        raise InputError(
            f"Expected high_freq_factor > low_freq_factor > 0 in config.json, got {high} and {low}."
        )
    turns = settings["original_max_position_embeddings"] * plain / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return kept * plain + (1 - kept) * plain / settings["factor"]


_STRETCHED = {
    "default": lambda plain, settings: plain,
    "linear": lambda plain, settings: plain / settings["factor"],
    "llama3": _llama3,
}
