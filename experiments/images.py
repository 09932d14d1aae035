"""Images: a ViT carried over to classes that it has not seen.

A ViT of 4 blocks learns half of Fashion-MNIST's classes in the open (``small/fashion_mnist.py``, whose
model and data these are); three clients tune it on the other half with adapters and head only: 15 rounds of
10 steps of 64. Scored on the official test images of those classes; both methods with the same rates.

Claim (Sun et al., Food-101 with a ViT: similar): on images FFA-LoRA and LoRA are less than two points
    apart.
Run: python -m experiments.images        Time: 25 minutes on two cores; full: 20 seeds, 30 rounds, all
    rates: 3 hours on two cores
Limits: 28 x 28 pixels and a ViT from scratch, one for all seeds; the paper's is pretrained, its figures are
    not known here. Needs FFALORA_SHARED.
"""

import sys

import numpy as np

import ffalora_jax as ffa
from experiments import _frame
from experiments._bases import OPEN
from experiments._verdicts import RATE, Judged, Row, cell, chosen, differences, within
from experiments.small import fashion_mnist
from ffalora_jax.cache import shared_folder
from ffalora_jax.errors import InputError

LORA, FFA, ALIKE = "fedavg_lora", "ffa_lora", 2.0
RATES = [0.1, 0.3, 1.0]


def run(ask: _frame.Ask) -> list[Row]:
    """Searches both methods' rates, at epsilon 6 and without privacy."""
    folder = shared_folder("data", "fashion_mnist")
    if folder is None:
        raise InputError("No Fashion-MNIST: set FFALORA_SHARED, a folder with data/fashion_mnist.")
    with np.load(folder / "subset_12k.npz") as file:
        arrays = {name: file[name] for name in file.files}
    base = ffa.load_experiment(_frame.HERE / "small" / "fashion_mnist.toml")
    base = base.replace(**{"data.name": "images"}, rounds=15 if ask.small else base.rounds)
    base = base.replace(evaluate_every=base.rounds)
    data = fashion_mnist.of_sites(arrays)
    backbone = fashion_mnist.learn_open_classes(arrays, 0, 20 if ask.rounds else None)
    rows = []
    for kind, changes in {"epsilon 6": {}, "no privacy": OPEN}.items():
        rates = RATES[1:] if ask.small and not changes else RATES[:2] if ask.small else RATES
        over = {"method.name": [LORA, FFA], RATE: rates}
        begin = base.replace(**changes)
        rows += _frame.searched(ask, kind, begin, over, data, backbone)
    return rows


def judge(rows: list[Row]) -> Judged:
    """How far apart the two are, seed by seed."""
    found = chosen(rows, ["search", "method.name"])
    parts, table = [], []
    for kind in dict.fromkeys(row["search"] for row in rows):
        apart = differences(found[kind, FFA], found[kind, LORA])
        parts.append(within(f"FFA-LoRA minus LoRA, points, {kind}", apart, ALIKE))
        table.append([kind, *(cell(found[kind, method], rows) for method in (LORA, FFA))])
    return Judged(parts, ["privacy", "LoRA", "FFA-LoRA"], table)


STUDY = _frame.Study("images", __doc__ or "", (3, 20), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
