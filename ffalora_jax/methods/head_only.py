"""The head alone, on the frozen backbone: a control. What LoRA must beat.

Averages of heads are exact (the logits are linear in them). Only (features + 1) x classes numbers cross the
wire. Under DP the clip norm is spent on the head alone, and nothing below it is trained.
"""

from ffalora_jax.methods import Method


def build() -> Method:
    """A and B at zero and frozen; the head trained and sent."""
    return Method(
        drawn=(),
        trained=frozenset(),
        exact=True,
        sentence="the head trained and averaged, no adapters (control)",
    )
