"""What runs cost together, and what the best of them costs alone."""

import functools
import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

from ffalora_jax.accounting import (
    COARSE,
    Sampling,
    base_pld,
    check_draw,
    check_noise,
    event_of,
)


def epsilon_together(parts: Sequence[tuple[Sampling, float, int]], delta: float) -> float:
    """Returns the epsilon of noised sums over several kinds of draws: (draw, noise multiplier, how many).

    Guarantee: an upper bound, by PLD, for somebody who takes part in all of them.

    Raises:
        InputError: as ``epsilon_of``.
    """
    counts: dict[tuple[Sampling, float], int] = {}
    for draw, noise, count in parts:
        check_draw(draw, delta, "pld")
        check_noise(noise)
        counts[draw, noise] = counts.get((draw, noise), 0) + count
    each = [base_pld(*kind, COARSE).self_compose(count) for kind, count in counts.items() if count]
    if not each:
        return 0.0
    return float(functools.reduce(lambda a, b: a.compose(b), each).get_epsilon_for_delta(delta))


class Best(NamedTuple):
    """What giving out the best of many trials alone costs."""

    epsilon: float
    capacity: int
    """Of a draw, from which on that holds."""


def epsilon_of_the_best(
    draw: Sampling, noise_multiplier: float, steps: int, delta: float, trials: float, law: str
) -> Best:
    """Returns the epsilon of giving out the best of a secret random number of independent trials alone.

    Papernot & Steinke 2022 (arXiv:2110.03620), theorems 2 and 6, by RDP: geometric or Poisson with mean
    ``trials``. RDP knows uncapped draws only. A capped one differs where more examples come than fit, over
    all expected trials with probability at most p, which costs (1 + e^epsilon) p of delta; half of delta is
    kept for that.
    """
    from dp_accounting import dp_event, rdp
    from scipy.stats import binom

    one = event_of(draw._replace(capacity=None), noise_multiplier)
    shape = {"poisson": math.inf, "geometric": 1.0}[law]
    ledger = rdp.RdpAccountant()
    logging.getLogger("absl").setLevel(logging.ERROR)  # it tells of each order that it leaves out
    run = dp_event.SelfComposedDpEvent(one, steps)
    ledger.compose(dp_event.RepeatAndSelectDpEvent(run, trials, shape))
    epsilon = float(ledger.get_epsilon(delta / 2))
    most = delta / 2 / (steps * trials) / (1 + math.exp(min(epsilon, 700.0)))
    needed = binom.isf(most, draw.num_examples, draw.probability)
    return Best(epsilon, draw.num_examples if math.isnan(needed) else int(needed))
