"""FLoRA (Wang et al. 2024, arXiv:2409.05976): the clients' factors stacked into the base, then a fresh pair.

    residual += sum_k p_k A_k B_k,   A drawn anew from the public seed,  B = 0          (equation 6 there)

The aggregate is exact, and every round searches in another space. A and B go up, the stacked factors (or the
dense residual, whichever is smaller) come down. Under DP all the noise of a round stays in the base for
good: no later round can average it away, since none starts from the pair that carried it.
"""

import jax.numpy as jnp

from ffalora_jax.detours import LORA_AND_RESIDUAL
from ffalora_jax.methods import Method
from ffalora_jax.methods._products import by_layer, product, stacked
from ffalora_jax.types import Leaves


def build() -> Method:
    """A fresh A in every round, B from zero; both trained and sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        kept=frozenset({"residual"}),
        detour=LORA_AND_RESIDUAL,
        read=by_layer(_read),
        reads_uploads=True,
        redrawn=("lora_a",),
        exact=True,
        mixed_ranks=True,
        sentence="A and B trained, stacked into the base; a fresh pair each round: exact",
    )


def _read(state: Leaves, mean: Leaves, uploads: Leaves, shares) -> Leaves:
    added = product(*stacked(uploads, shares))
    return {
        "lora_a": mean["lora_a"],  # drawn anew before the next round
        "lora_b": jnp.zeros_like(mean["lora_b"]),
        "residual": state["residual"] + added,
    }
