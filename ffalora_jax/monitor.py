"""What a round's uploads say about training: how far clients drift apart, what averaging factors loses.

Looks at uploads and the server's leaves alone. Under example-level DP both are private already, so it is
free; where the server sees sums alone only what follows from its own leaves is told.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ffalora_jax.types import Adapters, Tree

EXACT = jax.lax.Precision.HIGHEST


def of_server(before: Adapters, after: Adapters) -> dict[str, Array]:
    """Returns how A turned and how many directions B uses, means over the layers.

    angle_of_a: largest principal angle of the spaces that A spans before and after, radians
    rank_of_b: exp(entropy of B's squared singular values over their sum), between 1 and r
    """
    found = {}
    turned = [
        _angle(before[layer][name], leaves[name])
        for layer, leaves in after.items()
        for name in ("lora_a", "thawed_a")
        if name in leaves
    ]
    used = [_effective_rank(leaves["lora_b"]) for leaves in after.values() if "lora_b" in leaves]
    if turned:
        found["angle_of_a"] = jnp.mean(jnp.stack(turned))
    if used:
        found["rank_of_b"] = jnp.mean(jnp.stack(used))
    return found


def of_clients(nothing: Tree, uploads: Tree, weights: Float[Array, " client"]) -> dict[str, Array]:
    """Returns how far the clients lie apart, and what the product of means lacks.

        drift: sqrt(sum_k p_k ||u_k - mean||^2) / ||mean - before||
        product_gap: ||mean(A_k B_k) - mean(A) mean(B)|| / ||mean(A_k B_k)||, mean over layers that send both

    Args:
        nothing: what a client that moved nothing sends.
        uploads: leaves (client, ...).
        weights: zero for slots without a client.
    """
    total = jnp.sum(weights)
    shares = weights / jnp.where(total > 0, total, 1.0)
    mean = jax.tree.map(lambda leaf: jnp.tensordot(shares, leaf, axes=1, precision=EXACT), uploads)
    apart = jax.tree.map(
        lambda leaf, middle: jnp.tensordot(shares, (leaf - middle[None]) ** 2, axes=1),
        uploads,
        mean,
    )
    spread = jnp.sqrt(sum(jnp.sum(leaf) for leaf in jax.tree.leaves(apart)))
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, mean, nothing))
    found = {"drift": spread / jnp.where(moved > 0, moved, 1.0)}
    gaps = []
    for leaves in uploads.values():
        a, b = leaves.get("lora_a", leaves.get("thawed_a")), leaves.get("lora_b")
        if a is not None and b is not None:  # a frozen part of A is linear in B, and adds nothing
            gaps.append(_gap(a, b[:, -a.shape[-1] :], shares))
    if gaps:
        found["product_gap"] = jnp.mean(jnp.stack(gaps))
    return found


def _angle(one: Float[Array, "in rank"], other: Float[Array, "in rank"]) -> Float[Array, ""]:
    left, right = jnp.linalg.qr(one)[0], jnp.linalg.qr(other)[0]
    inside = jnp.matmul(left, jnp.matmul(left.T, right, precision=EXACT), precision=EXACT)
    # The sine: near zero a cosine in float32 tells no angle below 3e-4.
    sine = jnp.linalg.svd(right - inside, compute_uv=False)[0]
    return jnp.arcsin(jnp.clip(sine, 0.0, 1.0))


def _effective_rank(b: Float[Array, "rank out"]) -> Float[Array, ""]:
    squares = jnp.clip(jnp.linalg.eigvalsh(jnp.matmul(b, b.T, precision=EXACT)), 0.0)
    total = jnp.sum(squares)
    shares = squares / jnp.where(total > 0, total, 1.0)
    logs = jnp.log(jnp.where(shares > 0, shares, 1.0))
    return jnp.where(total > 0, jnp.exp(-jnp.sum(shares * logs)), 0.0)


def _gap(
    a: Float[Array, "client in rank"], b: Float[Array, "client rank out"], shares: Array
) -> Float[Array, ""]:
    """By r x r cores: norms of sums of products need the products' inner products alone."""
    mean_a, mean_b = (jnp.tensordot(shares, leaf, axes=1, precision=EXACT) for leaf in (a, b))
    every_a = jnp.concatenate([a, mean_a[None]])
    every_b = jnp.concatenate([b, mean_b[None]])
    left = jnp.einsum("kir,lis->klrs", every_a, every_a, precision=EXACT)
    right = jnp.einsum("kro,lso->klrs", every_b, every_b, precision=EXACT)
    inner = jnp.sum(left * right, axis=(2, 3))  # <A_k B_k, A_l B_l>
    plain = jnp.append(shares, 0.0)
    lacks = jnp.append(shares, -1.0)

    def squared(weights):
        return jnp.einsum("k,kl,l->", weights, inner, weights, precision=EXACT)

    whole = squared(plain)
    return jnp.sqrt(jnp.clip(squared(lacks), 0.0) / jnp.where(whole > 0, whole, 1.0))
