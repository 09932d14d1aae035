"""DpEvent -> epsilon and back: what the sampling that was really run costs. Imports no JAX.

dp-accounting does the sums. Relation: add or remove one example, with the client's size n_k public (the
sampling probability B / n_k uses it), that is zero-out. Runs draw capped Poisson batches, which only PLD
can price; RDP serves uncapped questions and comparison with papers.

Reference: Doroshenko et al. 2022 (PLD, arXiv:2207.04380); Mironov 2017 (RDP, arXiv:1702.07476).
"""

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ffalora_jax import cache
from ffalora_jax.errors import InputError, between, one_of, positive

NEIGHBOURS = "add or remove one example (zero-out, the number of examples is public)"
LEAST_NOISE = 0.1
COARSE, FINE = (
    1e-3,
    1e-4,
)  # PLD grid; any grid gives an upper bound, small epsilons want the fine one
PLD_SMALLEST_DELTA = 1e-15
_VERSION = 1
"""Of the sums below: kept results of another version are not used."""


Steps = int | tuple[tuple[float, int], ...]
"""How many noised sums; or, where the noise goes by a schedule, (factor on the noise, how many) of each."""


class Sampling(NamedTuple):
    """One client's repeated draw: each of ``num_examples`` with ``probability``, at most ``capacity``."""

    num_examples: int
    probability: float
    capacity: int | None = None
    """None: uncapped Poisson."""


def default_capacity(batch_size: int) -> int:
    """Returns batch_size + 6 sqrt(batch_size) + 6: so rarely passed that the cap costs nothing visible.

    The last 6 are for small batches, whose Poisson tail is longer. Unused slots are not computed
    (``clipping.clipped_sum_in_blocks``), so a generous cap is cheap.
    """
    return math.ceil(batch_size + 6 * math.sqrt(batch_size)) + 6


def sampling(num_examples: int, batch_size: int, capacity: int | None = None) -> Sampling:
    """Returns the draw of a client with so many examples, ``batch_size`` of them expected.

    Raises:
        InputError: fewer examples than one expected batch, or a capacity below the expectation.
    """
    positive(num_examples=num_examples, batch_size=batch_size, capacity=capacity)
    if num_examples < batch_size:
        raise InputError(
            f"Expected at least batch_size = {batch_size} examples at every client, got "
            f"{num_examples}: lower --batch-size or leave that client out."
        )
    if capacity is not None and capacity < batch_size:
        raise InputError(
            f"Expected privacy.capacity >= batch_size = {batch_size}, got {capacity}: leave it out "
            f"for {default_capacity(batch_size)}."
        )
    return Sampling(num_examples, batch_size / num_examples, capacity)


def check_delta(delta: float, num_examples: int) -> str | None:
    """Returns a warning if delta is at or above 1 / n; raises if it promises nothing.

    Raises:
        InputError: delta >= 0.1 or >= 100 / n.
    """
    if not 0 < delta < 0.1 or delta >= 100 / num_examples:
        raise InputError(
            f"Expected 0 < delta < min(0.1, 100 / examples), got {delta:g} for a client with "
            f"{num_examples} examples: use well below 1 / {num_examples} = {1 / num_examples:.1e}."
        )
    if delta >= 1 / num_examples:
        return (
            f"delta {delta:g} is not below 1 / {num_examples}: publishing one example in full "
            "would satisfy such a guarantee."
        )
    return None


def check_noise(noise_multiplier: float) -> None:
    """Raises InputError for noise so small that it promises nothing."""
    if not noise_multiplier >= LEAST_NOISE:
        raise InputError(
            f"Expected noise_multiplier >= {LEAST_NOISE}, got {noise_multiplier}: less promises nothing "
            "(epsilon in the hundreds and more) and takes the accountant forever. Without privacy: "
            "--privacy.mechanism none."
        )


def event_of(draw: Sampling, noise_multiplier: float):
    """Returns the DpEvent of one noised sum over one draw."""
    import dp_accounting

    if draw.capacity is None:
        gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
        return dp_accounting.PoissonSampledDpEvent(draw.probability, gaussian)
    return dp_accounting.TruncatedSubsampledGaussianDpEvent(
        dataset_size=draw.num_examples,
        sampling_probability=draw.probability,
        truncated_batch_size=draw.capacity,
        noise_multiplier=noise_multiplier,
    )


def epsilon_of(
    draw: Sampling, noise_multiplier: float, steps: Steps, delta: float, accountant: str = "pld"
) -> float:
    """Returns the epsilon spent by ``steps`` noised sums.

    Guarantee: an upper bound for exactly this sampling, composed over all steps at once, each with its
    own noise where a schedule says so.

    Raises:
        InputError: a capped draw with RDP; a delta that PLD cannot resolve.
    """
    check_draw(draw, delta, accountant)
    check_noise(noise_multiplier)
    kinds = _kinds(noise_multiplier, steps)
    if not kinds:
        return 0.0
    check_noise(min(noise for noise, _ in kinds))
    value = _epsilon(draw, kinds, delta, accountant, COARSE)
    if accountant == "pld" and value < 1:
        value = _epsilon(draw, kinds, delta, accountant, FINE)
    return value


def _kinds(noise_multiplier: float, steps: Steps) -> tuple[tuple[float, int], ...]:
    """Returns (noise multiplier, how many sums) of each kind there is."""
    parts = ((1.0, steps),) if isinstance(steps, int) else steps
    counts: dict[float, int] = {}
    for factor, count in parts:
        noise = noise_multiplier * factor
        counts[noise] = counts.get(noise, 0) + count
    return tuple((noise, count) for noise, count in sorted(counts.items()) if count)


def noise_for(
    draw: Sampling, epsilon: float, steps: Steps, delta: float, accountant: str = "pld"
) -> float:
    """Returns the smallest noise multiplier whose ``steps`` sums spend at most ``epsilon``.

    A schedule's factors come on top of it. Found without the cap (fast), then raised until the capped
    draw keeps to the budget.

    Raises:
        InputError: as ``epsilon_of``; an epsilon that no reasonable noise reaches.
    """
    check_draw(draw, delta, accountant)
    positive(epsilon=epsilon)
    uncapped = draw._replace(capacity=None)
    smallest = min((f for f, _ in _kinds(1.0, steps)), default=1.0)
    low, high = LEAST_NOISE / min(1.0, smallest), max(1.0, LEAST_NOISE / smallest)
    while epsilon_of(uncapped, high, steps, delta, accountant) > epsilon:
        low, high = high, high * 2
        if high > 1e4:
            raise InputError(
                f"No noise multiplier up to 10,000 gives epsilon {epsilon} over "
                f"{sum(count for _, count in _kinds(1.0, steps))} steps: raise epsilon or take fewer steps."
            )
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        inside = epsilon_of(uncapped, middle, steps, delta, accountant) <= epsilon
        low, high = (low, middle) if inside else (middle, high)
    raised = high
    while raised < 4 * high:
        if epsilon_of(draw, raised, steps, delta, accountant) <= epsilon:
            return raised
        raised *= 1.002 if raised < 1.02 * high else 1.05
    raise InputError(
        f"A capacity of {draw.capacity} is too close to the expected batch to reach epsilon "
        f"{epsilon}: raise privacy.capacity or leave it out."
    )


def trajectory(
    draw: Sampling, noise_multiplier: float, steps_after: Sequence[Steps], delta: float
) -> list[float]:
    """Returns epsilon after each number of steps, ascending; one distribution, composed with itself.

    At most 48 points are computed; one in between gets the value of the next, an upper bound.
    """
    stride = -(-len(steps_after) // 48)
    found, value = [], 0.0
    for index in reversed(range(len(steps_after))):
        if (len(steps_after) - 1 - index) % stride == 0:
            value = epsilon_of(draw, noise_multiplier, steps_after[index], delta)
        found.append(value)
    return found[::-1]


def check_draw(draw: Sampling, delta: float, accountant: str) -> None:
    """Raises InputError for what an accountant cannot price."""
    one_of(("pld", "rdp"), accountant=accountant)
    between(0, 1, delta=delta)
    if accountant == "rdp" and draw.capacity is not None:
        raise InputError(
            "RDP cannot price a capped draw: use accountant pld, or leave capacity out."
        )
    if accountant == "pld" and delta <= PLD_SMALLEST_DELTA:
        raise InputError(
            f"PLD cannot resolve delta {delta:g} (it gives infinity at 1e-15 and below): use "
            "--accountant rdp or a larger delta."
        )


def _epsilon(draw, kinds, delta, accountant, interval) -> float:
    one = kinds[0] if len(kinds) == 1 else (kinds, None)
    question = [_VERSION, *draw, *one, delta, accountant, interval, _library_version()]
    name = hashlib.sha256(json.dumps(question).encode()).hexdigest()[:24]
    stored = cache.read_json("accounting", name)
    if stored is not None:
        return stored
    value = _compute(draw, kinds, delta, accountant, interval)
    if math.isfinite(value):
        cache.write_json("accounting", name, value)
    return value


def _compute(draw, kinds, delta, accountant, interval) -> float:
    if accountant == "rdp":
        import dp_accounting
        from dp_accounting import rdp

        ledger = rdp.RdpAccountant()
        for noise, count in kinds:
            ledger.compose(dp_accounting.SelfComposedDpEvent(event_of(draw, noise), count))
        return float(ledger.get_epsilon(delta))
    parts = [base_pld(draw, noise, interval).self_compose(count) for noise, count in kinds]
    return float(functools.reduce(lambda a, b: a.compose(b), parts).get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=32)
def base_pld(draw: Sampling, noise_multiplier: float, interval: float):
    """The privacy loss of one step, from the same event that the plan hands out."""
    import dp_accounting
    from dp_accounting.pld import privacy_loss_distribution as pld

    event: Any = event_of(draw, noise_multiplier)
    if isinstance(event, dp_accounting.TruncatedSubsampledGaussianDpEvent):
        return pld.from_truncated_subsampled_gaussian_mechanism(
            dataset_size=event.dataset_size,
            sampling_probability=event.sampling_probability,
            truncated_batch_size=event.truncated_batch_size,
            noise_multiplier=event.noise_multiplier,
            value_discretization_interval=interval,
        )
    return pld.from_gaussian_mechanism(
        standard_deviation=event.event.noise_multiplier,
        sampling_prob=event.sampling_probability,
        value_discretization_interval=interval,
    )


@functools.cache
def _library_version() -> str:
    from importlib.metadata import version

    return version("dp-accounting")
