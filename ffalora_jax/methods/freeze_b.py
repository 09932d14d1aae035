"""The mirror image of FFA-LoRA: B random and frozen, A from zero and trained. A control.

The average is exact for the same reason. A meets the layer's inputs, B its outputs, so the two differ
where the one space is easier to guess than the other.
"""

from ffalora_jax.methods import Method


def build() -> Method:
    """B random and frozen, A from zero, A sent."""
    return Method(
        drawn=("lora_b",),
        trained=frozenset({"lora_a"}),
        exact=True,
        sentence="B random and frozen, A trained and averaged (control)",
    )
