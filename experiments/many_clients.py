"""More clients: from 3 to 300.

SST-2 cut to 24,000 texts dealt at random to 3, 30 or 300 clients, MiniLM with adapters on its last block;
10 clients a round (or all 3), 6 rounds of 5 steps of 16 expected texts, without privacy and in the full size
at epsilon 6 too. A client of 80 texts draws each of them often, so that its noise is large: what privacy
costs grows with the number of clients.

Claim (RoLoRA, arXiv:2502.01755, without privacy): FFA-LoRA's lead over LoRA grows with the number of
    clients.
Run: python -m experiments.many_clients        Time: 25 minutes on two cores; full: RoBERTa-base, all of
    SST-2, 20 seeds: planned as 10 hours on one accelerator, not run
Limits: classes are mixed alike at all clients (heterogeneity is asked in its own experiment). Every client
    counts the rounds that it might have been asked in; no amplification is claimed for those it was not.
    With all of SST-2 each client has nearly three times the texts, which helps most where there are 300.
"""

import sys

from experiments import _frame
from experiments._bases import OPEN, RATES, setting
from experiments._verdicts import RATE, Judged, Row, above, beyond, cell, chosen

LORA, FFA = "fedavg_lora", "ffa_lora"
COUNTS = (3, 30, 300)


def run(ask: _frame.Ask) -> list[Row]:
    """Searches both methods' rates for every number of clients."""
    base, data = setting(ask.small)
    if ask.small:
        base = base.replace(**{"data.max_examples": 24_000, "method.layers": "5"})
    base = base.replace(batch_size=16 if ask.small else 64, max_validation=20)
    base = base.replace(**{"partition.name": "iid"})
    kinds = {"no privacy": OPEN} | ({} if ask.small else {"epsilon 6": {}})
    rows = []
    for kind, changes in kinds.items():
        for count in COUNTS:
            over = {"method.name": [LORA, FFA], RATE: RATES[:2] if ask.small else RATES}
            here = base.replace(cohort_size=min(10, count), **changes)
            here = here.replace(**{"partition.num_clients": count})
            found = _frame.searched(ask, f"{count} clients, {kind}", here, over, data)
            rows += [row | {"kind": kind, "clients": count} for row in found]
    return rows


def judge(rows: list[Row]) -> Judged:
    """FFA-LoRA's lead with the most clients, beyond that with the fewest."""
    found = chosen(rows, ["kind", "clients", "method.name"])
    parts, table = [], []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        few, many = (
            (found[kind, count, FFA], found[kind, count, LORA]) for count in (COUNTS[0], COUNTS[-1])
        )
        grown = beyond(many, few)
        asked = f"lead with {COUNTS[-1]} clients beyond that with {COUNTS[0]}, points, {kind}"
        parts.append(above(asked, grown))
        for count in COUNTS:
            cells = [cell(found[kind, count, method], rows) for method in (LORA, FFA)]
            table.append([count, kind, *cells])
    return Judged(parts, ["clients", "privacy", "LoRA", "FFA-LoRA"], table)


STUDY = _frame.Study("many_clients", __doc__ or "", (3, 20), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
