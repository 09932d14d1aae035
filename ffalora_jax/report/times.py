"""What a run's messages take on given lines, and what it took on the sites' own machines and links."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ffalora_jax.loaded_run import Run
from ffalora_jax.report.words import duration, label, num_clients, percent

RATES = (("1 Mbit/s", 1e6), ("10 Mbit/s", 1e7), ("100 Mbit/s", 1e8), ("10 Gbit/s", 1e10))
"""From a weak mobile link to a data centre."""
STEPS = (0.5, 0.9, 1.0)
"""Shares of the way from guessing to the run's best accuracy whose time is told."""


class OnLines(NamedTuple):
    """How long one site's messages take over the whole run, line by line."""

    label: str
    seconds: tuple[float, ...]


def on_lines(runs: Sequence[Run]) -> list[OnLines]:
    """Returns each run's time on the wire for a site that takes part in every round, at each of ``RATES``."""
    found = []
    for run in runs:
        sent = run.communication
        each = sent["bytes_up_per_participation"] + sent["bytes_down_per_participation"]
        bits = 8 * each * len(run.metrics)
        found.append(OnLines(label(run), tuple(bits / rate for _, rate in RATES)))
    return found


def clock(run: Run) -> list[str]:
    """Returns sentences on the simulated clock; none where nothing was said about machines and links."""
    lines = [line for line in run.metrics if "simulated_seconds" in line]
    if not lines:
        return []
    total = sum(line["simulated_seconds"] for line in lines)
    said = [
        f"On the machines and links that were given, {len(lines)} rounds take {duration(total)}, "
        f"{duration(total / len(lines))} each."
    ]
    last = Counter(line["slowest"] for line in lines if line["slowest"] is not None)
    if last:
        slowest, count = last.most_common(1)[0]
        name = _name(run, slowest)
        said.append(f"{name} comes last in {count} of {len(lines)} rounds: the others wait for it.")
    empty = sum(not line["participants"] for line in lines)
    if empty:
        said.append(f"In {empty} rounds no site was there.")
    return said + _time_to(lines)


def _time_to(lines: Sequence[dict]) -> list[str]:
    """Says when accuracy was reached, first in words and then by the simulated clock."""
    at, seconds = [], 0.0
    for line in lines:
        seconds += line["simulated_seconds"]
        if line["accuracy"] is not None:
            at.append((seconds, line["accuracy"]))
    if len(at) < 2:
        return []
    low, best = at[0][1], max(accuracy for _, accuracy in at)
    if best <= low:
        return []
    said = []
    for share in STEPS:
        goal = low + share * (best - low)
        when = next(seconds for seconds, accuracy in at if accuracy >= goal)
        said.append(f"{percent(goal)} after {duration(when)}")
    return ["Accuracy while training: " + ", ".join(said) + "."]


def _name(run: Run, client: int) -> str:
    clients = run.privacy["clients"]  # of many that are alike there is one line for all
    return clients[client]["name"] if len(clients) == num_clients(run) else f"site {client}"
