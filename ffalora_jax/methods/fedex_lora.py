"""FedEx-LoRA (Singhal et al. 2025, arXiv:2410.09432): FedAvg on both factors, its error put into the base.

    A = mean(A_k),  B = mean(B_k),  residual += mean(A_k B_k) - A B          (equation 11 there)

so that W + s (residual + A B) is the exact mean of the clients' models after every round. A and B go up;
down go both and the residual, as the clients' stacked factors or dense, whichever is smaller. Under DP the
uploads are noised as in plain LoRA: the average is exact, the term n_A n_B stays.
"""

from ffalora_jax.detours import LORA_AND_RESIDUAL
from ffalora_jax.methods import Method
from ffalora_jax.methods._products import by_layer, product, stacked
from ffalora_jax.types import Leaves


def build() -> Method:
    """A from the initialiser, B and the residual from zero; A and B trained and sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        kept=frozenset({"residual"}),
        detour=LORA_AND_RESIDUAL,
        read=by_layer(_read),
        reads_uploads=True,
        exact=True,
        sentence="A and B trained and averaged, the average's error put into the base: exact",
    )


def _read(state: Leaves, mean: Leaves, uploads: Leaves, shares) -> Leaves:
    error = product(*stacked(uploads, shares)) - product(mean["lora_a"], mean["lora_b"])
    return {**mean, "residual": state["residual"] + error}
