"""Baseline: each site trains FFA-LoRA alone, and nothing is ever sent. What federating must beat."""

from ffalora_jax.methods import Method


def build() -> Method:
    """A random and frozen, B (and a trained head) personal."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_b"}),
        personal=frozenset({"lora_b"}),
        exact=True,
        shares_nothing=True,
        sentence="baseline: each site alone, nothing sent",
    )
