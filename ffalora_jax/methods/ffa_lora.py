"""Federated Freeze-A LoRA (Sun, Li, Li, Ding, ICLR 2024, arXiv:2403.12313): only B is trained and averaged.

With A the same at all clients, mean(A B_k) = A mean(B_k): the average is exact. Half of LoRA's numbers
cross the wire, and noise on B enters the product once, as A n_B, with no term quadratic in the noise
(section 4: (A + n_A)(B + n_B) = AB + A n_B + n_A B + n_A n_B for plain LoRA).
"""

from ffalora_jax.methods import Method


def build() -> Method:
    """A random and frozen, B from zero, B sent."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_b"}),
        exact=True,
        sentence="A random and frozen, B trained and averaged: half the traffic, exact average",
    )
