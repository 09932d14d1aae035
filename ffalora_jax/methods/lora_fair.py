"""LoRA-FAIR (Bian et al. 2025, arXiv:2411.14961): FedAvg on both factors, and B corrected for its error.

    A = mean(A_k),   B = mean(B_k) + dB,
    dB = argmin |A (mean(B_k) + dB) - mean(A_k B_k)|^2 + RIDGE |A|^2 / r |dB|^2
       = (A^T A + RIDGE |A|^2 / r I)^(-1) A^T (mean(A_k B_k) - A mean(B_k))

that is the correction of section 4 there in the least-squares sense, where the paper maximises a cosine; the
ridge, in units of A's mean squared singular value, keeps B near the mean. Exact as far as the error lies in
the space of A. A and B go up and down. Under DP all of it is post-processing.
"""

import jax.numpy as jnp

from ffalora_jax.methods import Method
from ffalora_jax.methods._products import by_layer, product, stacked
from ffalora_jax.types import Leaves

RIDGE = 0.01


def build() -> Method:
    """A from the initialiser, B from zero; both trained and sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        read=by_layer(_read),
        reads_uploads=True,
        sentence="A and B trained and averaged, B corrected towards the mean of the products",
    )


def _read(state: Leaves, mean: Leaves, uploads: Leaves, shares) -> Leaves:
    a, b = mean["lora_a"], mean["lora_b"]
    left, right = stacked(uploads, shares)
    gram = product(a.T, a)
    missing = product(product(a.T, left), right) - product(gram, b)
    ridge = RIDGE * jnp.trace(gram) / gram.shape[0]
    solved = jnp.linalg.solve(gram + ridge * jnp.eye(gram.shape[0]), missing)
    return {"lora_a": a, "lora_b": b + solved}
