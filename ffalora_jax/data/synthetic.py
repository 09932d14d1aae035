"""Text of a small vocabulary with a learnable rule, any size, made from the public seed.

Each sentence is filler with three to five opinion words; the label is the majority's sign, and one label
in twenty is flipped. Four sites use the same opinion words with different fillers and class shares.
"""

from collections.abc import Sequence

import numpy as np

from ffalora_jax import rng
from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset

GOOD = "good great lovely fine superb bright warm clear".split()
BAD = "bad poor awful dull broken cold dark rude".split()
FILLERS = (
    "the film scene actor plot camera music ending".split(),
    "the phone screen battery button price box cable".split(),
    "the council vote report market budget city street".split(),
    "the day game friend team night train coffee".split(),
)
POSITIVE_SHARE = (0.5, 0.6, 0.4, 0.65)
DEFAULT_SIZE = 1600
FLIPPED = 0.05


def build(config: DataConfig, seed: int) -> Dataset:
    """Makes ``config.max_examples`` (default 1,600) sentences for four sites in turn."""
    draw = rng.numpy_rng(seed, rng.Purpose.SYNTHETIC)
    size = config.max_examples or DEFAULT_SIZE
    clients = np.arange(size) % len(FILLERS)
    labels = (draw.random(size) < np.array(POSITIVE_SHARE)[clients]).astype(np.int64)
    texts = [
        _sentence(draw, FILLERS[client], bool(label))
        for client, label in zip(clients, labels, strict=True)
    ]
    labels = np.where(draw.random(size) < FLIPPED, 1 - labels, labels)
    return Dataset(
        {"text": texts},
        labels,
        ("negative", "positive"),
        clients,
        tuple(f"site_{index}" for index in range(len(FILLERS))),
        source="synthetic sentences made from the seed",
    )


def _sentence(draw: np.random.Generator, fillers: Sequence[str], positive: bool) -> str:
    opinions = int(draw.integers(1, 3))
    words = [
        *draw.choice(GOOD if positive else BAD, opinions + 1),
        *draw.choice(BAD if positive else GOOD, opinions - 1),
        *draw.choice(fillers, int(draw.integers(2, 7))),
    ]
    return " ".join(draw.permutation(words))
