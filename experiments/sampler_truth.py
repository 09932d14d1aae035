r"""Shuffled batches accounted as Poisson draws: how wrong.

Most training code goes through the data in a shuffled order and accounts as if each step had drawn every
example by itself (Poisson). Here an epoch is T batches, a run E epochs, and the noise s is what Poisson
accounting (q = 1 / T, E T steps, PLD) gives for a claimed epsilon at delta 1e-5. What such a run really
spends *at least* follows from two data sets that differ in one example, of which all others pull the other
way: in units of the clip norm the batches' sums are 2 e_t + noise or e_t + noise, t the batch that it fell
into.

- order hidden, one epoch: the event "no sum above h" has a probability in closed form; the best h counts
  (Chua et al. 2024, arXiv:2403.17673);
- order hidden, several epochs: the game is played, the likelihood ratio guesses, and the error rates are
  bounded by Clopper and Pearson (Annamalai et al. 2024, arXiv:2411.10614): audits, all together at 95 %;
- order known (never shuffled anew, or seen by the server): exactly E Gaussians without any amplification.

This library draws by Poisson (``cohort``), and prices the draws that it makes.

Claim (Chua et al. 2024, section 3): training on shuffled batches can spend a multiple of the epsilon that
    Poisson accounting claims.
Run: python -m experiments.sampler_truth        Time: 3 minutes on two cores; full: 10 times the games, 15
    minutes
Limits: lower bounds for the worst data set: a bound below the claim proves nothing, and real data may give
    away less. The neighbouring relation is zero-out, as everywhere here.
"""

import math
import sys

import numpy as np
from scipy.stats import beta, norm

from experiments import _frame
from experiments._verdicts import Judged, Row, proved_above
from ffalora_jax import accounting

DELTA = 1e-5
ONE_EPOCH = [(batches, 1) for batches in (10, 100, 1000)]
MORE = [(10, 10), (112, 5)]
"""(batches an epoch, epochs); the paper's SST-2 clients have 112 batches an epoch."""
CLAIMED = (1.0, 3.0, 6.0)
GAMES = 40_000
CHUNK = 2_000_000


def run(ask: _frame.Ask) -> list[Row]:
    """Returns a row a claim and form of run."""
    games = max(400, GAMES * ask.seeds if ask.rounds is None else 400)
    cases = ONE_EPOCH + MORE if ask.rounds is None else [(10, 1), (10, 2)]
    rows = []
    for batches, epochs in cases:
        for claimed in CLAIMED:
            name = f"{batches}-{epochs}-{claimed:g}"
            given = claimed, batches, epochs, games
            rows += ask.kept(name, lambda given=given: [of_case(*given)])
    return rows


def of_case(claimed: float, batches: int, epochs: int, games: int) -> Row:
    """Returns the row of a claim and a form of run."""
    noise = noise_of(claimed, batches, epochs)
    row = {"batches": batches, "epochs": epochs, "claimed": claimed, "noise": noise}
    if epochs > 1:
        hidden = played(noise, batches, epochs, games)
    else:
        hidden, games = of_one_epoch(noise, batches), 0
    found = {"hidden": hidden, "known": of_gaussians(noise, epochs), "games": games}
    return row | {name: float(f"{value:.4g}") for name, value in found.items()}


def noise_of(epsilon: float, batches: int, epochs: int) -> float:
    """Returns the noise that Poisson accounting gives for a claim, rounded up in the fourth digit."""
    draw = accounting.Sampling(100 * batches, 1 / batches)
    found = accounting.noise_for(draw, epsilon, batches * epochs, DELTA)
    return math.ceil(found * 1e4) / 1e4


def of_one_epoch(noise: float, batches: int) -> float:
    """Returns the epsilon of one epoch in a hidden order, at least: of the best event "a sum above h"."""
    heights = np.linspace(-6 * noise, 2 + 8 * noise, 4001)
    rest = (batches - 1) * norm.logcdf(heights / noise)
    with_it = -np.expm1(norm.logcdf((heights - 2) / noise) + rest)
    without = -np.expm1(norm.logcdf((heights - 1) / noise) + rest)
    usable = (with_it > DELTA) & (without > 0)
    above = np.log((with_it - DELTA)[usable] / without[usable]).max()
    with_none, without_none = (norm.cdf((heights - pull) / noise) * np.exp(rest) for pull in (2, 1))
    usable = (without_none > DELTA) & (with_none > 0)
    none_above = np.log((without_none - DELTA)[usable] / with_none[usable]).max()
    return float(max(above, none_above, 0.0))


def of_gaussians(noise: float, count: int) -> float:
    """Returns the epsilon of so many Gaussians of sensitivity 1, exactly."""
    pull = math.sqrt(count) / noise

    def delta(epsilon: float) -> float:
        left = norm.cdf(pull / 2 - epsilon / pull)
        return left - math.exp(epsilon) * norm.cdf(-pull / 2 - epsilon / pull)

    low, high = 0.0, 600.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > DELTA else (low, middle)
    return low


def played(noise: float, batches: int, epochs: int, games: int) -> float:
    """Returns the epsilon that several epochs in hidden orders spend at least.

    Half of the games choose the threshold of the likelihood ratio, the other half are counted.
    """
    draw = np.random.default_rng(round(1e4 * noise) + batches)
    sizes = _chunks(games, batches * epochs)

    def all_games(pull: int) -> np.ndarray:
        found = [_ratios(draw, noise, batches, epochs, pull, size) for size in sizes]
        return np.concatenate(found)

    ratios = [all_games(pull) for pull in (2, 1)]
    (choose_in, count_in), (choose_out, count_out) = (np.array_split(one, 2) for one in ratios)
    thresholds = np.quantile(choose_out, 1 - np.geomspace(1 / len(choose_out), 0.5, 60))
    best = max(thresholds, key=lambda h: _bound((choose_in > h), (choose_out > h)))
    return max(0.0, _bound(count_in > best, count_out > best))


def _chunks(games: int, numbers: int) -> list[int]:
    size = max(1, CHUNK // numbers)
    return [min(size, games - begin) for begin in range(0, games, size)]


def _ratios(draw, noise: float, batches: int, epochs: int, pull: int, games: int) -> np.ndarray:
    """Returns the log likelihood ratio of each game."""
    sums = noise * draw.standard_normal((games, epochs, batches))
    place = draw.integers(batches, size=(games, epochs, 1))
    np.put_along_axis(sums, place, np.take_along_axis(sums, place, 2) + pull, 2)
    with_it = np.logaddexp.reduce((2 * sums - 2) / noise**2, axis=2)
    without = np.logaddexp.reduce((sums - 0.5) / noise**2, axis=2)
    return (with_it - without).sum(1)


def _bound(inside: np.ndarray, outside: np.ndarray) -> float:
    """Returns log((P - delta) / Q), P from below and Q from above; all audits together hold with 95 %."""
    tail = 0.05 / (2 * len(MORE) * len(CLAIMED))
    hits, alarms = int(inside.sum()), int(outside.sum())
    low = beta.ppf(tail, hits, len(inside) - hits + 1) if hits else 0.0
    high = beta.ppf(1 - tail, alarms + 1, max(len(outside) - alarms, 1))
    return math.log((low - DELTA) / high) if low > DELTA else -math.inf


def judge(rows: list[Row]) -> Judged:
    """Whether any of the lower bounds passes its claim, for each way of going through the data."""
    parts = []
    ways = {
        "one epoch, order hidden": ("hidden", lambda row: row["epochs"] == 1),
        "several epochs, order hidden (audit)": ("hidden", lambda row: row["epochs"] > 1),
        "order known": ("known", lambda row: True),
    }
    for way, (name, is_of) in ways.items():
        most = max((row[name] / row["claimed"] for row in rows if is_of(row)), default=0.0)
        parts.append(
            proved_above(f"{way}: largest epsilon spent at least, over the claim", most, 1)
        )
    head = ["batches an epoch", "epochs", "claimed", "noise", "hidden: at least", "known: exactly"]
    names = ("batches", "epochs", "claimed", "noise", "hidden", "known")
    return Judged(parts, head, [[f"{row[name]:.4g}" for name in names] for row in rows])


STUDY = _frame.Study("sampler_truth", __doc__ or "", (1, 10), run, judge)

if __name__ == "__main__":
    sys.exit(_frame.main(STUDY))
