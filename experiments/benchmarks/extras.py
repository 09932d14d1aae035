"""What comes on top of a round: the monitor, and an ensemble of initialisations, against the round alone.

Claim: the monitor, signal to noise of every layer included, takes less than 3 % of a round. An ensemble of
E members takes about E rounds; its blocks of examples are not packed (members have no packed rows).

Run: python experiments/benchmarks/extras.py [--members 3] [--repeats 7]    Time: 5 minutes on two cores
Result (28 November 2026, Intel Xeon, 2 cores, the quickstart's round of 2.74 s, medians of five in turn): the
monitor 0.99 of a round; three members 3.16 rounds, joint or separate; packing = false alone 3.5.
"""

import argparse
import json
import statistics
from pathlib import Path

from _timing import seconds_per_round

import ffalora_jax as ffa
from ffalora_jax.prepare import prepare

QUICKSTART = Path(__file__).parents[1] / "quickstart.toml"


def main() -> None:
    """Times the rounds in turn and prints a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    members = {"ensemble.members": options.members}
    ways = {
        "alone": {},
        "monitor": {"monitor.on": True},
        "alone, not packed": {"packing": False},
        "ensemble, joint": members,
        "ensemble, separate": members | {"ensemble.clip": "separate"},
    }
    base = ffa.load_experiment(QUICKSTART)
    runs = {name: prepare(base.replace(**changes)) for name, changes in ways.items()}
    seconds = seconds_per_round(runs, options.repeats)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    for name, median in medians.items():
        # In pairs of one turn: what else the machine did meanwhile is then in both.
        ratios = [a / b for a, b in zip(seconds[name], seconds["alone"], strict=True)]
        line = {"benchmark": "extras", "what": name, "seconds": median, "repeats": options.repeats}
        print(json.dumps(line | {"against_alone": statistics.median(ratios)}), flush=True)


if __name__ == "__main__":
    main()
