"""FedRot-LoRA (2026, arXiv:2602.23638): FedAvg on both factors, which the clients first turn into line.

A_k B_k = (A_k Q) (Q^T B_k) for every rotation Q, so factors of clients that agree may still differ. Before
sending, each takes the Q that brings its A nearest to the last global A (orthogonal Procrustes):

    U S V^T = svd(A_k^T A),   Q = U V^T

The mean of products is still not the product of means, but nearer. A and B go up and down. Under DP the
rotation is computed from noised factors: post-processing.
"""

import jax.numpy as jnp

from ffalora_jax.methods import Method
from ffalora_jax.methods._products import product
from ffalora_jax.types import Adapters, Leaves


def build() -> Method:
    """A from the initialiser, B from zero; both trained and, turned, sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        upload=_upload,
        linear=False,
        sentence="A and B trained, turned towards the last global A, then averaged apart",
    )


def _upload(start: Adapters, end: Adapters) -> Adapters:
    return {layer: _turned(start[layer], found) for layer, found in end.items()}


def _turned(start: Leaves, end: Leaves) -> Leaves:
    if "lora_a" not in end:
        return end
    u, _, vt = jnp.linalg.svd(product(end["lora_a"].T, start["lora_a"]), full_matrices=False)
    turn = product(u, vt)
    return {"lora_a": product(end["lora_a"], turn), "lora_b": product(turn.T, end["lora_b"])}
