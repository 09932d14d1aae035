"""VeRA (Kopiczko et al. 2024, arXiv:2310.11454) with d frozen: the vector b alone trained, its mean exact.

See ``vera``. A message holds one number for each output of a target.
"""

from ffalora_jax.methods import Method
from ffalora_jax.methods._vera import VERA, begin


def build() -> Method:
    """A, B and d frozen; b from zero, trained and sent."""
    return Method(
        drawn=(),
        trained=frozenset({"vera_b"}),
        detour=VERA,
        begin=begin,
        exact=True,
        sentence="one scaling vector behind a frozen random pair, trained and averaged: exact",
    )
