"""Between LoRA and FFA-LoRA: what of A is frozen, and when.

SST-2 cut to 8,000 texts, MiniLM with adapters on its last two blocks, three sites in the severe split, 30
local steps at epsilon 6. A is trained in all rounds (LoRA), in the first third of them (``ffa_from``), in
every second round (``alternate``), a quarter of its directions always (``thaw .25 rank``), or never
(FFA-LoRA). All have the same rates. Whether a schedule costs nothing is asked with a margin: FFA-LoRA may
be a point behind.

Claim (asked here, of a question that the paper leaves open): freezing all of A from the start is not more
    than a point behind any schedule between LoRA and FFA-LoRA.
Run: python -m experiments.freezing        Time: 35 minutes on two cores; full: RoBERTa-base, without
    privacy too, 20 seeds: planned as 12 hours on one accelerator, not run
Limits: 30 steps: schedules that pay late are not seen. Without privacy, or with many more steps, training A
    for a while may pay.
"""

import sys

from experiments import _frame
from experiments._bases import FEW_RATES, OPEN, RATES, setting
from experiments._verdicts import RATE, Judged, Row, above, cell, chosen, differences

LORA, FFA = "LoRA", "FFA-LoRA"
MARGIN = -1.0
"""Points that FFA-LoRA may be behind."""


def run(ask: _frame.Ask) -> list[Row]:
    """Searches the rates of every schedule."""
    base, data = setting(ask.small)
    rounds = ask.length(base).rounds
    early, turns = f"ffa_from {max(1, rounds // 3)}", "alternate 1"
    over = {RATE: FEW_RATES if ask.small else RATES}
    kinds = {"epsilon 6": {}} if ask.small else {"epsilon 6": {}, "no privacy": OPEN}
    rows = []
    for kind, changes in kinds.items():
        both = base.replace(**{"method.name": "fedavg_lora"}, **changes)
        freezes = {"method.freeze": ["none", early, turns]}
        found = _frame.searched(ask, f"A and B, {kind}", both, over | freezes, data)
        rows += [_of(row, kind, row["method.freeze"].replace("none", LORA)) for row in found]
        alone = base.replace(**{"method.name": "ffa_lora"}, **changes)
        thaws = ["none", "thaw 0.25 rank"] + ([] if ask.small else ["thaw 0.5 layers"])
        found = _frame.searched(ask, f"B, {kind}", alone, over | {"method.freeze": thaws}, data)
        rows += [_of(row, kind, row["method.freeze"].replace("none", FFA)) for row in found]
    return rows


def _of(row: Row, kind: str, schedule: str) -> Row:
    return row | {"kind": kind, "schedule": schedule}


def judge(rows: list[Row]) -> Judged:
    """FFA-LoRA against every schedule, seed by seed."""
    found = chosen(rows, ["kind", "schedule"])
    parts, table = [], []
    for (kind, schedule), one in found.items():
        if schedule != FFA:
            apart = differences(found[kind, FFA], one)
            parts.append(above(f"FFA-LoRA minus {schedule}, points, {kind}", apart, MARGIN))
        sent = one[0].get("trained_parameters")
        table.append([schedule, kind, cell(one, rows), "-" if sent is None else f"{sent:,}"])
    return Judged(parts, ["schedule", "privacy", "accuracy", "trained numbers"], table)


STUDY = _frame.Study("freezing", __doc__ or "", (3, 20), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
