"""Baseline: all data in one place, trained with FFA-LoRA's leaves. The ceiling; not federated.

One client holds everything and draws as many examples a step as all clients together would
(batch_size * num_clients), so that the steps are comparable.
"""

from ffalora_jax.methods import Method


def build() -> Method:
    """A random and frozen, B trained on the pooled data."""
    return Method(
        drawn=("lora_a",),
        trained=frozenset({"lora_b"}),
        exact=True,
        pooled=True,
        sentence="baseline: all data in one place (the ceiling; breaks the sites' promise)",
    )
