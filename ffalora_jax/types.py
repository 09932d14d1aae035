"""Aliases used across the rooms.

Axes in annotations: ``client step example token feature rank``.
"""

from typing import Any

Leaf = Any
"""An array, or only its shape and dtype while JAX describes a tree (``jax.eval_shape``)."""

Leaves = dict[str, Leaf]
"""The arrays of one layer: ``lora_a`` (in, rank), ``lora_b`` (rank, out), ``head_kernel``, ..."""

Adapters = dict[str, Leaves]
"""Layer path -> leaves. What can be trained; everything else is the backbone."""

Tree = Any
"""A pytree of arrays whose structure the caller knows."""

HEAD_LEAVES = ("head_kernel", "head_bias")
