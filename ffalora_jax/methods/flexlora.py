"""FlexLoRA (Bai et al. 2024, arXiv:2402.11505): the best rank-r form of the clients' mean product.

    U S V^T = svd(sum_k p_k A_k B_k),   A = U_r S_r^(1/2),  B = S_r^(1/2) V_r^T          (section 3.2 there)

The mean of the products is computed exactly and then cut to rank r: what is lost are its singular values
beyond r, the least that any rank-r pair can lose. Both square roots stay with a factor, so A B is the
cut-off mean itself, and the scaling s stays outside. A and B go up and down. Under DP the cut also drops
noise that lies outside the r leading directions.
"""

import jax.numpy as jnp

from ffalora_jax.methods import Method
from ffalora_jax.methods._products import by_layer, stacked, thin_svd
from ffalora_jax.types import Leaves


def build() -> Method:
    """A from the initialiser, B from zero; both trained and sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        read=by_layer(_read),
        reads_uploads=True,
        mixed_ranks=True,
        sentence="A and B trained, their products averaged and cut to rank r by an SVD",
    )


def _read(state: Leaves, mean: Leaves, uploads: Leaves, shares) -> Leaves:
    u, s, vt = thin_svd(*stacked(uploads, shares))
    rank = state["lora_a"].shape[1]
    root = jnp.sqrt(s[:rank])
    return {"lora_a": u[:, :rank] * root[None], "lora_b": root[:, None] * vt[:rank]}
