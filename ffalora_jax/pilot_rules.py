"""What a pilot recommends, and how sure it is: rules on measured figures, written so that they can be read.

    1. Of methods that cannot be told apart the cheaper one is taken (bytes a site): their difference lies
       inside its interval, or there are fewer than three pairs of repetitions. One of which fewer than a
       fifth of the runs failed comes before one that fails more often, and one that has learned before one
       that has not.
    2. It has to learn: one point above always naming the commonest class.
    3. It is held against training alone, where nothing leaves a site and so nothing is noised, in pairs of
       one repetition each: the interval of the gain decides.
    4. Certainty is high from five pairs on without a failed run of either, medium from three on, else low.

Figures are shares of right answers on the test part; intervals are Student's t at 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ffalora_jax.sweep_results import LEVEL, Interval, interval_of

LEARNS = 0.01
"""Above the commonest class."""
SMALL_LOSS = 0.01
"""For which a smaller epsilon is still offered."""
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
    """Pairs that the gain is taken over."""


def recommend(options: Sequence[Option], alone: Option, majority: float) -> Recommendation:
    """Applies the rules.

    Args:
        options: the ways to train together, at the privacy that is asked for.
        alone: every site's own model on its own part.
        majority: accuracy of always naming each site's commonest class.
    """
    nothing = Interval(None, None, None)
    tried = [option for option in options if option.accuracy]
    if not tried:
        return Recommendation("nothing", "low", None, (), nothing, 0)
    alike = as_good_as_the_best([option for option in tried if _is_sound(option)] or tried)
    alike = [option for option in alike if _has_learned(option, majority)] or alike
    chosen = min(alike, key=lambda option: (option.bytes_per_site, option.failed_share))
    gain = paired(chosen.accuracy, alone.accuracy)
    pairs = len(chosen.accuracy.keys() & alone.accuracy.keys())
    certainty = _certainty(chosen, alone, gain, pairs)
    decision = _decision(chosen, gain, majority, certainty)
    names = tuple(option.method for option in alike)
    return Recommendation(decision, certainty, chosen.method, names, gain, pairs)


def as_good_as_the_best(options: Sequence[Option]) -> list[Option]:
    """Returns the best mean's option and those that cannot be told from it."""
    best = max(options, key=lambda option: option.mean)
    return [option for option in options if option is best or _is_alike(best, option)]


def verdict(chosen: Option, other: Option, majority: float) -> str:
    """Returns why not the other one.

    Returns:
        ``better`` beyond the interval of the difference; ``failing``: the other one fails too often;
        ``unlearned``: it has not learned; ``close``: too few pairs to tell; ``alike``: the difference lies
        inside its interval.
    """
    gap = paired(chosen.accuracy, other.accuracy)
    if gap.low is not None and gap.low > 0:
        return "better"
    if _is_sound(chosen) and not _is_sound(other):
        return "failing"
    if _has_learned(chosen, majority) and not _has_learned(other, majority):
        return "unlearned"
    return "close" if gap.low is None else "alike"


def _is_sound(option: Option) -> bool:
    return option.failed_share < MOST_FAILED


def _has_learned(option: Option, majority: float) -> bool:
    return option.mean >= majority + LEARNS


def _is_alike(best: Option, other: Option) -> bool:
    gap = paired(best.accuracy, other.accuracy)
    return bool(other.accuracy) and (gap.low is None or gap.low <= 0)


def paired(one: Mapping[int, float], other: Mapping[int, float], level: float = LEVEL) -> Interval:
    """Returns the mean difference over the repetitions that both have; of a few of them no interval."""
    pairs = sorted(one.keys() & other.keys())
    found = interval_of([one[k] - other[k] for k in pairs], level=level)
    return found if len(pairs) >= FEW else Interval(found.mean, None, None)


def _decision(chosen: Option, gain: Interval, majority: float, certainty: str) -> str:
    if not _has_learned(chosen, majority):
        return "no_learning"
    if gain.mean is None or gain.low is None or gain.high is None:
        return "not_shown"
    if gain.high < 0:
        return "not_shown" if certainty == "low" else "train_alone"
    if gain.low <= 0:
        return "not_shown"
    return "promising" if certainty == "low" else "roll_out"


def _certainty(chosen: Option, alone: Option, gain: Interval, pairs: int) -> str:
    settled = gain.low is not None and gain.high is not None and (gain.low > 0 or gain.high < 0)
    if pairs >= MANY and chosen.failed == alone.failed == 0 and settled:
        return "high"
    return "medium" if pairs >= FEW and _is_sound(chosen) and _is_sound(alone) else "low"


def safe_accuracy(values: Sequence[float]) -> float | None:
    """Returns what 95 % of further repetitions reach: mean - t s sqrt(1 + 1/n); None below three of them.

    A bound for one more repetition, one-sided, as if repetitions were normal. Of those that failed it knows
    nothing.
    """
    from scipy.stats import t

    if len(values) < FEW:
        return None
    found = np.asarray(values, float)
    spread = float(found.std(ddof=1)) * math.sqrt(1 + 1 / found.size)
    return max(0.0, float(found.mean()) - float(t.ppf(LEVEL, found.size - 1)) * spread)


def gains_of_sites(
    together: Sequence[Mapping[str, float]], alone: Sequence[Mapping[str, float]]
) -> dict[str, Interval]:
    """Returns each site's gain over training alone, in pairs of one repetition each.

    The intervals hold for all sites together (Bonferroni): of many without any gain one would else seem to
    have some.

    Args:
        together: accuracy by site, of each repetition.
        alone: the same of every site's own model.
    """
    names = sorted({name for one in together for name in one} & {n for one in alone for n in one})
    level = 1 - (1 - LEVEL) / max(1, len(names))
    by_site = {
        name: [
            {k: one[name] for k, one in enumerate(part) if name in one}
            for part in (together, alone)
        ]
        for name in names
    }
    return {
        name: paired(both[0], both[1], level)
        for name, both in by_site.items()
        if both[0].keys() & both[1].keys()
    }


def chance(values: Sequence[float]) -> float | None:
    """Returns by how much two runs differ by chance in 19 of 20 cases; None of fewer than three of them.

    t s sqrt(2) at 95 %, two-sided: each of the two has the spread s of the repetitions.
    """
    from scipy.stats import t

    if len(values) < FEW:
        return None
    spread = float(np.std(values, ddof=1)) * math.sqrt(2)
    return float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread


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


def tightest(by_epsilon: Mapping[float, Mapping[int, float]], asked: float) -> float | None:
    """Returns the smallest epsilon below the one asked for whose accuracy is not shown to be lower.

    None if none was tried in at least ``FEW`` repetitions together with it. Stops at the first with a loss.
    """
    found = None
    for epsilon in sorted((e for e in by_epsilon if e < asked), reverse=True):
        gap = paired(by_epsilon.get(asked, {}), by_epsilon[epsilon])
        if gap.low is None or gap.low > 0 or (gap.mean or 0) > SMALL_LOSS:
            break
        found = epsilon
    return found
