"""What runs cost together, and what the best of them costs alone."""

import functools
import logging
import math
from collections.abc import Sequence

from ffalora_jax.accounting import (
    COARSE,
    FINE,
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

    def on(interval: float) -> float:
        parts = [base_pld(*kind, interval).self_compose(n) for kind, n in counts.items() if n]
        if not parts:
            return 0.0
        whole = functools.reduce(lambda a, b: a.compose(b), parts)
        return float(whole.get_epsilon_for_delta(delta))

    value = on(COARSE)
    return value if value >= 1 else on(FINE)


def epsilon_of_the_best(
    draw: Sampling, noise_multiplier: float, steps: int, delta: float, trials: float, law: str
) -> float:
    """Returns the epsilon of giving out the best of a secret random number of independent trials alone.

    Papernot & Steinke 2022 (arXiv:2110.03620), theorems 2 and 6, by RDP: geometric or Poisson with mean
    ``trials``. RDP knows uncapped draws only; half of delta is kept for that (``needed_capacity``).
    """
    from dp_accounting import dp_event, rdp

    one = event_of(draw._replace(capacity=None), noise_multiplier)
    shape = {"poisson": math.inf, "geometric": 1.0}[law]
    ledger = rdp.RdpAccountant()
    logging.getLogger("absl").setLevel(logging.ERROR)  # it tells of each order that it leaves out
    run = dp_event.SelfComposedDpEvent(one, steps)
    ledger.compose(dp_event.RepeatAndSelectDpEvent(run, trials, shape))
    return float(ledger.get_epsilon(delta / 2))


def needed_capacity(draw: Sampling, steps: int, trials: float, epsilon: float, delta: float) -> int:
    """Returns the least cap of a draw at which an uncapped one's (epsilon, delta / 2) is (epsilon, delta).

    Both differ where more examples come than fit, over all expected trials with probability at most p, and
    that costs (1 + e^epsilon) p of delta.
    """
    from scipy.stats import binom

    most = delta / 2 / (steps * trials) / (1 + math.exp(min(epsilon, 700.0)))
    needed = binom.isf(most, draw.num_examples, draw.probability)
    return draw.num_examples if math.isnan(needed) else int(needed)
