"""FedSA-LoRA (Guo et al. 2025, arXiv:2410.01463): A and B trained, A alone shared; B and the head stay.

A is said to learn what sites have in common and B what is their own (section 3.2 there), so each site ends
with a model of its own: s mean(A_k) B_k. Nothing of B is averaged, hence no product of means. Half of
LoRA's numbers cross the wire. Under DP B and the head are inside the clipped and noised vector although
they never leave: the next round's A depends on them.
"""

from ffalora_jax.methods import Method
from ffalora_jax.types import HEAD_LEAVES


def build() -> Method:
    """A from the initialiser, B from zero; A sent, B and a trained head personal."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        personal=frozenset({"lora_b", *HEAD_LEAVES}),
        sentence="A and B trained, A averaged; B and the head stay with each site",
    )
