"""SIGKILL at random moments of a run, resume, compare with the run that nobody touched.

Claim: same adapter, same metrics (seconds aside), same ledger, bit for bit, wherever it was killed.
Run: python -m tests.faults.kills [--kills 20] [--each 4] [--seed 0]     Time: 25 minutes on two cores
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.child import STAGES
from tests.faults.runs import KINDS, child, differences

LONGEST = {"startup": 8.0, "round": 0.3, "save": 0.25, "evaluation": 0.5, "report": 1.0}
"""Seconds from a stage's begin within which the kill comes; of the others .05."""


def main() -> int:
    """Kills and resumes all kinds of runs; the exit code says whether all came out the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of the plain run")
    parser.add_argument("--each", type=int, default=4, help="of every other kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind of run")
    asked = parser.parse_args()
    draw, wrong, moments = random.Random(asked.seed), 0, Counter()
    begin = time.perf_counter()
    for index, (name, changes) in enumerate(KINDS.items()):
        if asked.only not in (None, name):
            continue
        found = torture(changes, asked.kills if index == 0 else asked.each, draw, moments)
        wrong += bool(found)
        print(f"{name}: {'; '.join(found) or 'the same bits'}", flush=True)
    minutes = (time.perf_counter() - begin) / 60
    print(
        f"{sum(moments.values())} kills ({dict(moments)}), {len(KINDS)} kinds, {minutes:.0f} minutes"
    )
    print("all came out the same" if not wrong else f"{wrong} kinds did not")
    return 1 if wrong else 0


def torture(changes: dict, kills: int, draw: random.Random, moments: Counter) -> list[str]:
    """Kills a run so often, resumes it to its end; returns what is not as in the untouched run."""
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        whole, cut = Path(place, "whole"), Path(place, "cut")
        first = child(whole, changes)
        if first.code:
            return [f"the untouched run failed: {first.said[-300:]}"]
        found, died = [], 0
        while died < kills:
            stage = STAGES[draw.randrange(len(STAGES))]
            outcome = child(cut, changes, stage, draw.uniform(0, LONGEST.get(stage, 0.05)))
            died += outcome.killed
            moments[stage] += outcome.killed
            if not outcome.killed and outcome.code:
                if "No checkpoint in" not in outcome.said:
                    return [f"killed in {stage}, then: {outcome.said[-300:]}"]
                shutil.rmtree(cut)
            elif not outcome.killed:  # it came to its end: compared, and begun anew
                found += differences(whole, cut)
                shutil.rmtree(cut)
        last = child(cut, changes)
        if last.code and "No checkpoint in" in last.said:
            shutil.rmtree(cut)
            last = child(cut, changes)
        return found + (differences(whole, cut) if not last.code else [last.said[-300:]])


if __name__ == "__main__":
    sys.exit(main())
