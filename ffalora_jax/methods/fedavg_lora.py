"""FedAvg on both LoRA factors (FedIT: Zhang et al. 2023, arXiv:2305.05644): the plain baseline.

The server averages A and B apart, and mean(A_k) mean(B_k) is not mean(A_k B_k): the average is biased as
soon as the clients differ. Under DP both factors are noised, and their product holds n_A n_B.
"""

from ffalora_jax.methods import Method


def build() -> Method:
    """A from the initialiser, B from zero, both trained and sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        sentence="A and B trained and averaged apart (plain LoRA with FedAvg)",
    )
