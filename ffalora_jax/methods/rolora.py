"""RoLoRA (Chen et al. 2025, arXiv:2502.01755): B in even rounds, A in odd ones, the other frozen meanwhile.

In each round one factor is the same at all clients, so mean(A B_k) = A mean(B_k) and mean(A_k B) =
mean(A_k) B: every average is exact, and unlike with A frozen for good both factors are learned. Half of
LoRA's numbers cross the wire a round. Under DP the noise of a round enters the product once, as A n_B or
n_A B, with no term quadratic in it; the clip norm of a round is spent on one factor.
"""

from ffalora_jax.methods import Method


def build() -> Method:
    """A from the initialiser, B from zero; a round trains and sends one of them."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_a", "lora_b"}),
        phases=(frozenset({"lora_b"}), frozenset({"lora_a"})),
        exact=True,
        sentence="B and A trained in turn, round by round: half the traffic, exact average",
    )
