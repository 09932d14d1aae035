"""What a pilot recommends, and how sure it is: rules on measured figures, written so that they can be read.

    1. Of methods whose difference lies inside its interval the cheaper one is taken (bytes a site).
    2. It has to learn: one point above always naming the commonest class.
    3. It is held against training alone, in pairs of one repetition each: the interval of the gain decides.
    4. Certainty is high from five repetitions on without a failed one, medium from three on, else low.

Figures are shares of right answers on the test part; intervals are Student's t at 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ffalora_jax.sweep_results import LEVEL, Interval, interval_of

LEARNS = 0.01
"""Above the commonest class."""
ALIKE = 0.01
"""Difference that is taken for none where there are too few repetitions for an interval."""
FEW, MANY = 3, 5
MOST_FAILED = 0.2


class Option(NamedTuple):
    """A way to train together, as it was measured."""

    method: str
    accuracy: Mapping[int, float]
    """By repetition; of failed ones there is none."""
    failed: int
    bytes_per_site: float

    @property
    def mean(self) -> float:
        """Mean over the repetitions; -inf if all failed."""
        return float(np.mean(list(self.accuracy.values()))) if self.accuracy else -math.inf

    @property
    def failed_share(self) -> float:
        """Share of repetitions that failed."""
        return self.failed / max(1, self.failed + len(self.accuracy))


class Recommendation(NamedTuple):
    """What to do, and why; in codes that the page puts into words."""

    decision: str
    """roll_out, promising, not_shown, train_alone, no_learning or nothing (no run to go by)."""
    certainty: str
    """high, medium or low."""
    method: str | None
    alike: tuple[str, ...]
    """Methods that are as good as far as one can tell, the recommended one among them."""
    gain: Interval
    """Over training alone."""
    repetitions: int


def recommend(
    options: Sequence[Option], alone: Mapping[int, float], majority: float
) -> Recommendation:
    """Applies the rules.

    Args:
        options: the ways to train together, at the privacy that is asked for.
        alone: accuracy of every site's own model on its own part, by repetition.
        majority: accuracy of always naming each site's commonest class.
    """
    nothing = Interval(None, None, None)
    tried = [option for option in options if option.accuracy]
    if not tried:
        return Recommendation("nothing", "low", None, (), nothing, 0)
    alike = as_good_as_the_best(tried)
    chosen = min(alike, key=lambda option: (option.bytes_per_site, option.failed_share))
    gain = paired(chosen.accuracy, alone)
    certainty = _certainty(chosen, gain)
    decision = _decision(chosen, gain, majority, certainty)
    names = tuple(option.method for option in alike)
    return Recommendation(decision, certainty, chosen.method, names, gain, len(chosen.accuracy))


def as_good_as_the_best(options: Sequence[Option]) -> list[Option]:
    """Returns the options whose difference from the best mean lies inside its interval, the best included."""
    best = max(options, key=lambda option: option.mean)
    return [option for option in options if option is best or _is_alike(best, option)]


def _is_alike(best: Option, other: Option) -> bool:
    gap = paired(best.accuracy, other.accuracy)
    if gap.mean is None:
        return False
    if gap.low is None or len(best.accuracy.keys() & other.accuracy.keys()) < FEW:
        return gap.mean < ALIKE
    return gap.low <= 0


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Interval:
    """Returns the mean difference over the repetitions that both have."""
    return interval_of([one[k] - other[k] for k in sorted(one.keys() & other.keys())])


def _decision(chosen: Option, gain: Interval, majority: float, certainty: str) -> str:
    if chosen.mean < majority + LEARNS:
        return "no_learning"
    if gain.mean is None or gain.low is None or gain.high is None:
        return "not_shown"
    if gain.high < 0:
        return "train_alone"
    if gain.low <= 0:
        return "not_shown"
    return "promising" if certainty == "low" else "roll_out"


def _certainty(chosen: Option, gain: Interval) -> str:
    count = len(chosen.accuracy)
    settled = gain.low is not None and gain.high is not None and (gain.low > 0 or gain.high < 0)
    if count >= MANY and chosen.failed == 0 and settled:
        return "high"
    return "medium" if count >= FEW and chosen.failed_share < MOST_FAILED else "low"


def safe_accuracy(values: Sequence[float]) -> float | None:
    """Returns what 95 % of further repetitions reach: mean - t s sqrt(1 + 1/n); None below three of them.

    A bound for one more repetition, one-sided, as if repetitions were normal.
    """
    from scipy.stats import t

    if len(values) < FEW:
        return None
    found = np.asarray(values, float)
    spread = float(found.std(ddof=1)) * math.sqrt(1 + 1 / found.size)
    return float(found.mean()) - float(t.ppf(LEVEL, found.size - 1)) * spread


def gains_of_sites(
    together: Sequence[Mapping[str, float]], alone: Sequence[Mapping[str, float]]
) -> dict[str, Interval]:
    """Returns each site's gain over training alone, in pairs of one repetition each.

    Args:
        together: accuracy by site, of each repetition.
        alone: the same of every site's own model.
    """
    names = sorted({name for one in together for name in one})
    found = {}
    for name in names:
        pairs = zip(together, alone, strict=False)
        found[name] = interval_of([a[name] - b[name] for a, b in pairs if name in a and name in b])
    return found


RISES = 0.005
"""Share of right answers by which the last third of the rounds has to be better, to go on longer."""


def longer(curve: Sequence[float]) -> bool | None:
    """Whether accuracy on the validation part still rose at the end, so that more rounds may help.

    The mean of the last third of the evaluations against that of the third before it; None of too few.
    """
    third = len(curve) // 3
    if third == 0:
        return None
    last, before = curve[-third:], curve[-2 * third : -third]
    return float(np.mean(last)) - float(np.mean(before)) > RISES


def tightest(by_epsilon: Mapping[float, Mapping[int, float]]) -> float | None:
    """Returns the smallest epsilon whose accuracy is not shown to be lower than at the largest tried.

    None if no smaller one was tried in at least ``FEW`` repetitions together with the largest.
    """
    if not by_epsilon:
        return None
    largest = max(by_epsilon)
    found = None
    for epsilon in sorted(by_epsilon, reverse=True)[1:]:
        gap = paired(by_epsilon[largest], by_epsilon[epsilon])
        few = len(by_epsilon[largest].keys() & by_epsilon[epsilon].keys()) < FEW
        if few or gap.low is None or gap.low > 0 or (gap.mean or 0) > ALIKE:
            break
        found = epsilon
    return found
