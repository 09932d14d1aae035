"""Local steps against rounds, at equal epsilon.

30 local steps at every site, dealt out as 30 rounds of one step to one round of 30: the same number of
noised sums, so the same epsilon, and 30 times fewer messages. A toy (a BERT of 32 features on sentences
made from the seed), three sites in the severe split, both methods with the same rates, with privacy and
without.

Claim (Sun et al., abstract: several local steps and the mean of the factors make LoRA's average inexact):
    going from 30 rounds of one step to one of 30 costs LoRA more than FFA-LoRA.
Run: python -m experiments.local_steps        Time: 20 minutes on two cores; full: 20 seeds, five ways of
    dealing them out and all rates: 60 minutes on two cores
Limits: a toy that is learnt in 30 steps. Sites drift further apart with more steps and larger rates than
    are tried here, and the difference could come with them.
"""

import sys

from experiments import _frame
from experiments._bases import OPEN, toy
from experiments._verdicts import RATE, Judged, Row, above, beyond, cell, chosen

LORA, FFA, STEPS = "fedavg_lora", "ffa_lora", 30
RATES = [0.3, 1.0, 3.0]


def run(ask: _frame.Ask) -> list[Row]:
    """Searches both methods' rates for every way to deal out the steps."""
    steps = STEPS if ask.rounds is None else 2
    ways = [1, 5, 30] if ask.small else [1, 2, 5, 15, 30]
    rows = []
    for kind, changes in {"epsilon 6": {"privacy.epsilon": 6.0}, "no privacy": OPEN}.items():
        for local in dict.fromkeys(min(way, steps) for way in ways):
            base = toy(**changes).replace(rounds=steps // local, local_steps=local)
            over = {"method.name": [LORA, FFA], RATE: RATES}
            asked = ask._replace(rounds=None)
            found = _frame.searched(asked, f"{steps // local} x {local}, {kind}", base, over)
            more = {"kind": kind, "rounds": steps // local, "local_steps": local}
            rows += [row | more for row in found]
    return rows


def judge(rows: list[Row]) -> Judged:
    """What the fewest rounds cost each method against the most."""
    found = chosen(rows, ["kind", "local_steps", "method.name"])
    ways = sorted({row["local_steps"] for row in rows})
    parts, table = [], []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        few, many = ((found[kind, way, FFA], found[kind, way, LORA]) for way in (ways[-1], ways[0]))
        more = beyond(few, many)
        parts.append(above(f"what one round costs LoRA, more than FFA-LoRA, points, {kind}", more))
        for local in ways:
            cells = [cell(found[kind, local, method], rows) for method in (LORA, FFA)]
            table.append([f"{ways[-1] // local} x {local}", kind, *cells])
    return Judged(parts, ["rounds x steps", "privacy", "LoRA", "FFA-LoRA"], table)


STUDY = _frame.Study("local_steps", __doc__ or "", (5, 20), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
