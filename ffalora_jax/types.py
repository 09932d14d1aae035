"""Aliases and axis names used across the rooms.

Axes in annotations: ``client step example token feature rank``.
"""

from typing import Any

from jaxtyping import Array, Float

Leaves = dict[str, Float[Array, "..."]]
"""The arrays of one layer: ``lora_a`` (in, rank), ``lora_b`` (rank, out), ``head_kernel``, ..."""

Adapters = dict[str, Leaves]
"""Layer path -> leaves. What can be trained; everything else is the backbone."""

Tree = Any
"""A pytree of arrays whose structure the caller knows."""

LORA_LEAVES = ("lora_a", "lora_b")
HEAD_LEAVES = ("head_kernel", "head_bias")
