"""HetLoRA (Cho et al. 2024, arXiv:2401.06432): sites of different ranks, weighted by what they learned.

    A = sum_k w_k [A_k, 0],   B = sum_k w_k [B_k; 0],   w_k ~ p_k ||A_k B_k||_F, summing to one

A site of rank r_k trains the first r_k columns of A and rows of B; the server pads with zeros, and cuts to
r_k what it sends back (section 3.2 there; its pruning of ranks is left out, since a kept rank would show
what a site's examples did to it). The norm is over all layers; a head is averaged by p_k. The mean of
factors is biased as FedAvg's. Weights come from uploads, so under example-level DP they are
post-processing and free; a mechanism that hides single uploads refuses it.

Up and down: r_k columns of A and rows of B.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ffalora_jax.adapters import merge, select
from ffalora_jax.methods import Method
from ffalora_jax.methods._products import product
from ffalora_jax.types import HEAD_LEAVES, Adapters, Leaves


def build() -> Method:
    """A from the initialiser, B from zero; both trained within a site's rank, and sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        read=_read,
        reads_uploads=True,
        mixed_ranks=True,
        sentence="A and B trained at each site's own rank, padded, weighted by the norm of A B",
    )


def _read(state: Adapters, mean: Adapters, uploads: Adapters, weights: Array) -> Adapters:
    factors = select(uploads, {"lora_a", "lora_b"})
    squares = sum(_squared_norms(found) for found in factors.values())
    norms = jnp.where(weights > 0, weights * jnp.sqrt(jnp.asarray(squares)), 0.0)
    total, people = jnp.sum(norms), jnp.sum(weights)
    plain = weights / jnp.where(people > 0, people, 1.0)
    shares = jnp.where(total > 0, norms / jnp.where(total > 0, total, 1.0), plain)
    after = jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, axes=1), factors)
    after = merge(select(mean, HEAD_LEAVES), after)
    before = select(state, {"lora_a", "lora_b", *HEAD_LEAVES})
    anyone = jnp.any(weights > 0)
    return merge(state, jax.tree.map(lambda new, old: jnp.where(anyone, new, old), after, before))


def _squared_norms(uploads: Leaves) -> Array:
    """||A_k B_k||^2 of each client, from the r x r products A^T A and B B^T."""
    a, b = uploads["lora_a"], uploads["lora_b"]
    left, right = product(a.swapaxes(1, 2), a), product(b, b.swapaxes(1, 2))
    return jnp.sum(left * right.swapaxes(1, 2), axis=(1, 2))
