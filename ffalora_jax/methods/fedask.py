"""FedASK (Wen et al. 2025, arXiv:2507.09990): two rounds of sketches give the server a new A and B.

    Y = mean_k (A B_k)^T Omega,   Q = qr(Y),   P = mean_k (A B_k) Q        Omega (in, r) public, Gaussian
    U S V^T = svd(P),   A = U S^(1/2),   B = S^(1/2) (Q V)^T

Clients train B alone, as under DP there. The product is exactly FFA-LoRA's average, since A mean(B_k) has
rank r and its range is in Q almost surely; A then moves into what was learned, and unlike FedSVD's keeps
a root of each singular value. For the same reason Omega cancels: what the two exchanges give is the SVD of
A mean(B_k), which is computed here directly, and the exchanges are counted as they would be sent. Sketches
are linear in B_k: of private B_k, or of their noised sum, all of this is post-processing and free. A
direction whose singular value is zero is lost for good, A and B being zero there.

Up: (out, r) and (in, r) sketches a layer; down: Q (out, r), then A and B.
"""

import jax.numpy as jnp

from ffalora_jax.adapters import select
from ffalora_jax.methods import Method
from ffalora_jax.methods._products import by_layer, thin_svd
from ffalora_jax.types import Adapters, Leaves


def build() -> Method:
    """A from the initialiser, frozen in a round; B from zero; both taken anew from the sketches."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_b"}),
        kept=frozenset({"lora_a"}),
        read=by_layer(_read),
        wire=_wire,
        exact=True,
        sentence="B trained, A and B taken anew from two rounds of sketches of A B: exact",
    )


def _read(state: Leaves, mean: Leaves, uploads: Leaves, shares) -> Leaves:
    u, s, vt = thin_svd(state["lora_a"], mean["lora_b"])
    root = jnp.sqrt(s)
    return {"lora_a": u * root[None], "lora_b": root[:, None] * vt}


def _wire(state: Adapters) -> tuple[Adapters, Adapters]:
    """Y and P have the shapes of B^T and A, and Q that of Y."""
    others = {layer: found for layer, found in state.items() if "lora_a" not in found}
    factors = select(state, {"lora_a", "lora_b"})
    down = {layer: found | {"q": found["lora_b"].T} for layer, found in factors.items()}
    return factors | others, down | others
