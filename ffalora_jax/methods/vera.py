"""VeRA (Kopiczko et al. 2024, arXiv:2310.11454): one random pair for all layers, and a vector on each side.

y = x W + s (x A * d) B * b, with A and B cut from one frozen random pair of the largest sizes. Trained are
d (r), from 0.1, and b (out), from zero. d and b multiply one another, so their mean apart is not exact;
``vera_b`` trains b alone, which is. A message holds r + out numbers a layer.
"""

from ffalora_jax.methods import Method
from ffalora_jax.methods._vera import VERA, begin


def build() -> Method:
    """A, B random and shared, frozen; d and b trained and sent."""
    return Method(
        drawn=(),
        trained=frozenset({"vera_d", "vera_b"}),
        detour=VERA,
        begin=begin,
        sentence="two scaling vectors around one frozen random pair, trained and averaged apart",
    )
