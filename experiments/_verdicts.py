"""Rules that turn figures into verdicts: what the experiments share, and nothing that is decided by hand.

A part of a claim is a difference with its 95 % interval (Student's t over the seeds) and a bound. It held if
the whole interval is on the claimed side, did not hold if the whole interval is on the other side, and is
not shown otherwise. A claim held if all its parts did, and did not hold if one of them did not.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from ffalora_jax.sweep_results import interval_of

Row = dict[str, Any]
Pair = tuple[Sequence[Row], Sequence[Row]]
"""Rows of two combinations."""
HELD, NOT_HELD, NOT_SHOWN = "held", "not held", "not shown"
RATE = "optimizer.learning_rate"


class Part(NamedTuple):
    """One part of a claim."""

    asked: str
    rule: str
    count: int
    """Values that the interval is over."""
    mean: float | None
    low: float | None
    high: float | None
    verdict: str


class Judged(NamedTuple):
    """What follows from an experiment's rows."""

    parts: list[Part]
    head: list[str]
    table: list[list[Any]]

    @property
    def verdict(self) -> str:
        """That of the whole claim."""
        return overall([part.verdict for part in self.parts])


def overall(verdicts: Sequence[str]) -> str:
    """Joins the verdicts of a claim's parts."""
    if NOT_HELD in verdicts:
        return NOT_HELD
    return HELD if verdicts and set(verdicts) == {HELD} else NOT_SHOWN


def above(asked: str, values: Sequence[float], bound: float = 0.0) -> Part:
    """Claimed: the mean lies above the bound."""
    return _part(asked, f"above {bound:g}", values, lambda low, high: (low > bound, high < bound))


def below(asked: str, values: Sequence[float], bound: float = 0.0) -> Part:
    """Claimed: the mean lies below the bound."""
    return _part(asked, f"below {bound:g}", values, lambda low, high: (high < bound, low > bound))


def within(asked: str, values: Sequence[float], bound: float) -> Part:
    """Claimed: the mean is nearer to 0 than the bound."""

    def sides(low: float, high: float) -> tuple[bool, bool]:
        return -bound < low and high < bound, low > bound or high < -bound

    return _part(asked, f"within {bound:g} of 0", values, sides)


def _part(asked, rule, values, sides) -> Part:
    found = interval_of(values)
    verdict = NOT_SHOWN
    if found.low is not None and found.high is not None and math.isfinite(found.low + found.high):
        claimed, other = sides(found.low, found.high)
        verdict = HELD if claimed else NOT_HELD if other else NOT_SHOWN
    return Part(asked, rule, len(values), *found, verdict)


def steadier(asked: str, ours: Sequence[float], theirs: Sequence[float]) -> Part:
    """Claimed: the first spread less. Ratio of standard deviations over the same seeds.

    Its interval is Pitman and Morgan's for normal pairs: with F the ratio of variances and r the correlation,
    K = 1 + 2 (1 - r^2) t^2 / (n - 2) and F (K -+ sqrt(K^2 - 1)), t of n - 2 degrees of freedom.

    Reference: Pitman 1939, Biometrika 31; Morgan 1939, ibid.
    """
    from scipy.stats import t

    n = len(ours)
    nothing = Part(asked, "below 1", n, None, None, None, NOT_SHOWN)
    if n != len(theirs) or n < 2 or not statistics.stdev(theirs):
        return nothing
    ratio = statistics.stdev(ours) / statistics.stdev(theirs)
    if n == 2 or not ratio:
        return nothing._replace(mean=ratio)
    left = 1 - statistics.correlation(ours, theirs) ** 2
    k = 1 + 2 * left * float(t.ppf(0.975, n - 2)) ** 2 / (n - 2)
    root = math.sqrt(max(0.0, k**2 - 1))
    # The smaller bound as a quotient: K - root loses all its digits where K is large.
    low, high = ratio / math.sqrt(k + root), ratio * math.sqrt(k + root)
    verdict = HELD if high < 1 else NOT_HELD if low > 1 else NOT_SHOWN
    return Part(asked, "below 1", n, ratio, low, high, verdict)


def accuracy(row: Row) -> float:
    """Test accuracy in per cent. A run that diverged counts as the commonest class, and is not left out."""
    if row["status"] == "failed":
        return 100 * (row.get("majority_accuracy") or 0.0)
    return 100 * row["test_accuracy"]


class Chosen(dict[tuple, list[Row]]):
    """Rows by combination; none of one that could not be made, which then shows nothing."""

    def __missing__(self, key: tuple) -> list[Row]:
        return []


def chosen(rows: Sequence[Row], by: Sequence[str]) -> Chosen:
    """Returns each combination's rows at the rate that is best by validation over all seeds.

    A rate at which a run failed is taken only where all others failed too; of equal ones the smaller.
    """
    found = Chosen()
    made = [row for row in rows if row["status"] in ("done", "failed")]
    for key in dict.fromkeys(tuple(row.get(name) for name in by) for row in made):
        mine = [row for row in made if tuple(row.get(name) for name in by) == key]
        rates: dict[float, list[Row]] = {}
        for row in mine:
            rates.setdefault(row.get(RATE, 0.0), []).append(row)
        best = max(sorted(rates), key=lambda rate: _score(rates[rate]))
        found[key] = sorted(rates[best], key=lambda row: row["seed"])
    return found


def _score(rows: Sequence[Row]) -> float:
    values = [row.get("validation_accuracy") for row in rows]
    if any(row["status"] == "failed" for row in rows) or None in values:
        return -math.inf
    return statistics.mean(values)


def differences(ours: Sequence[Row], theirs: Sequence[Row], figure=accuracy) -> list[float]:
    """Returns ours minus theirs, seed by seed: one seed has one split, A and head."""
    others = {row["seed"]: figure(row) for row in theirs}
    return [figure(row) - others[row["seed"]] for row in ours if row["seed"] in others]


def beyond(after: Pair, before: Pair) -> list[float]:
    """Returns how far the first of two is ahead after something, beyond before, seed by seed."""
    kept = set.intersection(*({row["seed"] for row in rows} for rows in (*after, *before)))
    both = [[[r for r in rows if r["seed"] in kept] for rows in pair] for pair in (after, before)]
    (later, earlier) = (differences(*pair) for pair in both)
    return [one - other for one, other in zip(later, earlier, strict=True)]


def cell(rows: Sequence[Row], every: Sequence[Row] = (), figure=accuracy) -> str:
    """Returns ``mean ± half the interval (rate; failed)`` of a combination at its rate.

    Args:
        rows: at the rate that was chosen.
        every: all rows of the search, for the ends of its grid.
        figure: what is averaged.
    """
    if not rows:
        return "-"
    found = interval_of([figure(row) for row in rows])
    half = "" if found.low is None else f" ± {found.high - found.mean:.1f}"
    rate, rates = rows[0].get(RATE), sorted({row[RATE] for row in every if RATE in row})
    notes = [] if rate is None else [f"{rate:g}" + "*" * (rate in (rates[:1] + rates[-1:]))]
    failed = sum(row["status"] == "failed" for row in rows)
    notes += [f"{failed} failed"] if failed else []
    return f"{found.mean:.1f}{half}" + (f" ({', '.join(notes)})" if notes else "")


def proved_above(asked: str, value: float, bound: float) -> Part:
    """Claimed: something lies above the bound; given is what it is at least, exactly or with 95 %."""
    verdict = HELD if value > bound else NOT_SHOWN
    return Part(asked, f"above {bound:g}", 1, value, value, None, verdict)
