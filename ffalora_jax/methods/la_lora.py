"""LA-LoRA (Liu et al. 2026, arXiv:2602.19926): B and A in turn by local step, gradients smoothed.

    step 0, 2, ..: B <- B - eta S(g_B),   step 1, 3, ..: A <- A - eta S(g_A),   g private

S runs the binomial low-pass [1, 4, 6, 4, 1] / 16 over the noised gradient, which takes white noise down to
0.52 of its stddev and leaves what is smooth. Each step clips and noises one factor alone, so no noise
times noise arises within a step; both factors are sent and averaged apart, so the average is biased like
FedAvg's. S is post-processing and free. At least two local steps, else A never moves.

The matrix is read as one circle of numbers in the order of the usual weights, B as (out, r) and A as
(r, in), as in the authors' published program (its window is another one).
"""

import jax
import jax.numpy as jnp

from ffalora_jax.methods import Method
from ffalora_jax.types import Adapters

WINDOW = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def build() -> Method:
    """A from the initialiser, B from zero; a local step trains one of them, both are sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        local_parts=(frozenset({"lora_b"}), frozenset({"lora_a"})),
        filtered=_smooth_factors,
        sentence="B and A trained in turn by local step, noised gradients smoothed; both averaged",
    )


def _smooth_factors(gradient: Adapters) -> Adapters:
    return {
        layer: {
            name: smoothed(leaf) if name in ("lora_a", "lora_b") else leaf
            for name, leaf in found.items()
        }
        for layer, found in gradient.items()
    }


def smoothed(leaf: jax.Array) -> jax.Array:
    """Returns S(leaf); the window may be longer than the circle, and then wraps more than once."""
    circle = leaf.T.reshape(-1)
    total = sum(
        weight * jnp.roll(circle, shift - len(WINDOW) // 2) for shift, weight in enumerate(WINDOW)
    )
    return jnp.reshape(jnp.asarray(total), leaf.T.shape).T
