"""FedSVD (Lee et al. 2025, arXiv:2505.12805): FFA-LoRA whose A is turned after every round by an SVD of A B.

    B = mean(B_k),   U S V^T = svd(A B),   A = U,  B = S V^T          (section 3 there)

The product does not change, so the average is as exact as FFA-LoRA's; A stays orthonormal and its columns
are ordered by what was learned. Under DP it is post-processing of noised uploads and free. B goes up, A and
B come down. While B has full rank A never leaves the space of the first A, so under plain SGD this is
FFA-LoRA with an orthonormal A in other coordinates.
"""

from ffalora_jax.methods import Method
from ffalora_jax.methods._products import by_layer, thin_svd
from ffalora_jax.types import Leaves


def build() -> Method:
    """A from the initialiser, frozen in a round and turned between rounds; B from zero, sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_b"}),
        kept=frozenset({"lora_a"}),
        read=by_layer(_read),
        exact=True,
        sentence="B trained and averaged, A turned by an SVD of A B after each round: exact",
    )


def _read(state: Leaves, mean: Leaves, uploads: Leaves, shares) -> Leaves:
    u, s, vt = thin_svd(state["lora_a"], mean["lora_b"])
    return {"lora_a": u, "lora_b": s[:, None] * vt}
