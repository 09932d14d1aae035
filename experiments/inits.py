"""Initialisers of a frozen A, and ensembles of them.

SST-2 cut to 8,000 texts, MiniLM with adapters on its last two blocks, three sites in the severe split, 30
local steps at epsilon 6. FFA-LoRA never trains A, so that what is drawn stays: random A's of several norms
and shapes, or singular vectors of the checkpoint's own weights (public: free under privacy). Each has the
same rates. An ensemble of three trains three A's side by side under the one bill, and answers with the mean
of their logits.

Claim (FedSVD's ablation, arXiv:2505.12805): for a fixed A the leading singular vectors of the weights
    (pissa) are better than a random A, and a random orthonormal A is no better than kaiming's.
Run: python -m experiments.inits        Time: 30 minutes on two cores; full: all initialisers, ensembles of
    3 and 5, RoBERTa-base, 20 seeds: planned as 10 hours on one accelerator, not run
Limits: the ablation is on MNLI with RoBERTa-large, where there is more to gain; with few steps every A is
    near its start. Initialisers of larger norm want smaller rates: a grid that ends too early decides.
"""

import sys

from experiments import _frame
from experiments._bases import RATES, setting
from experiments._verdicts import RATE, Judged, Row, above, cell, chosen, differences, within

INITS = ["kaiming", "orthonormal", "pissa"]
ALL = ["kaiming", "gaussian", "orthogonal", "orthonormal", "pissa", "olora", "minor"]
ALIKE = 3.0
"""Points that count as no better."""


def run(ask: _frame.Ask) -> list[Row]:
    """Searches the rates of every initialiser, and of ensembles of kaiming's."""
    base, data = setting(ask.small)
    rates = {RATE: RATES[:3] if ask.small else RATES}
    over = {"method.init": INITS if ask.small else ALL}
    rows = _frame.searched(ask, "initialisers", base, over | rates, data)
    members = {"ensemble.members": [3] if ask.small else [3, 5]}
    few = {RATE: [0.3, 1.0]} if ask.small else rates
    found = _frame.searched(ask, "ensembles", base, members | few, data)
    return rows + [row | {"method.init": f"ensemble of {row['ensemble.members']}"} for row in found]


def judge(rows: list[Row]) -> Judged:
    """Every initialiser against kaiming's, seed by seed."""
    found = chosen(rows, ["method.init"])
    apart = {name: differences(one, found[("kaiming",)]) for (name,), one in found.items()}
    parts = [
        above("pissa minus kaiming, points", apart["pissa"]),
        within("orthonormal minus kaiming, points", apart["orthonormal"], ALIKE),
    ]
    table = []
    for (name,), one in found.items():
        asked = above(name, apart[name])
        against = (
            "-" if asked.low is None else f"{asked.mean:.1f} ({asked.low:.1f} to {asked.high:.1f})"
        )
        every = [row for row in rows if row["search"] == one[0]["search"]]
        table.append([name, cell(one, every), "-" if name == "kaiming" else against])
    return Judged(parts, ["A", "accuracy", "minus kaiming, points"], table)


STUDY = _frame.Study("inits", __doc__ or "", (3, 20), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
