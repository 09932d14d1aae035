"""What a search has cost: of all runs together, and of the best alone where a theorem covers it.

Tuning on private data is not free: every run looks at them. If all may be given out, their noised sums
compose. If the number of independent trials is secret and drawn by a law, giving out the best alone costs
less; so it is for random search, whose trials do not depend on each other's results.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ffalora_jax import accounting, composition
from ffalora_jax.accounting import Sampling
from ffalora_jax.config_search import SearchConfig
from ffalora_jax.errors import InputError

MOST_KINDS = 8
"""Kinds of clients that are priced one by one."""
COUNTED = (
    "method.name",
    "privacy.",
    "batch_size",
    "rounds",
    "local_steps",
    "cohort_",
    "partition.",
    "data.",
    "sites.",
)
"""Settings, by how they begin, that change what a run costs."""
SPLITS = ("partition.", "data.", "method.name", "batch_size")
"""Settings, by how they begin, that may change whose an example is: one method pools all data."""
READ = ("unit", "delta", "epsilon", "clients", "num_clients", "started_from")
"""What is read of a run's privacy.json."""
SCORED_BY = (
    "Choosing looks at validation examples without noise: they are outside the mechanism, and what is said "
    "here protects training examples alone."
)


class Cost(NamedTuple):
    """An epsilon, at a delta, and how it came about."""

    epsilon: float | None
    """None: nothing is promised, or it cannot be said."""
    delta: float | None
    how: str


class Kind(NamedTuple):
    """A client's noised sums in one run."""

    draw: Sampling
    noise_multiplier: float
    steps: int


def kinds_of(privacy: dict[str, Any]) -> list[Kind] | None:
    """Reads what each client draws out of a run's privacy.json; None where that does not give its epsilon."""
    found = []
    for client in privacy["clients"]:
        count = client.get("group_size", client["num_examples"])
        count = privacy["num_clients"] if privacy["unit"] == "client" else count
        draw = Sampling(count, client["sampling_probability"], client["capacity"])
        steps = client.get("priced_steps", client["steps"])
        found.append(Kind(draw, client["noise_multiplier"], steps))
    different = sorted(set(found), key=lambda kind: -kind.draw.probability)
    try:
        again = max(
            accounting.epsilon_of(kind.draw, kind.noise_multiplier, kind.steps, privacy["delta"])
            for kind in different[:MOST_KINDS]
        )
    except InputError:
        return None
    # Of many kinds the plan reports a dearer one's.
    least = 0.998 if len(different) <= MOST_KINDS else 0.9
    return found if least * privacy["epsilon"] <= again <= 1.002 * privacy["epsilon"] else None


def of_all(runs: Sequence[dict[str, Any]], same_clients: bool) -> Cost:
    """Returns the cost of giving out every run.

    **Guarantee:** an upper bound for every example (or client). With the same split in all runs the sums of
    each client compose. With other splits an example may be at another client in each: of a run, then, the
    highest sampling probability, the least noise and the most steps of its clients are taken together.

    Args:
        runs: contents of privacy.json.
        same_clients: whether all runs have the same split.
    """
    if not runs:
        return Cost(0.0, None, "no run was made")
    if why := _why_no_sum(runs, same_clients):
        return Cost(None, None, why)
    delta = max(run["delta"] for run in runs)
    each = [kinds_of(run) for run in runs]
    if any(kinds is None or (not same_clients and _is_tight(kinds)) for kinds in each):
        total = sum(run["epsilon"] for run in runs)
        deltas = sum(run["delta"] for run in runs)
        return Cost(
            total, deltas, f"basic composition of {len(runs)} runs: epsilons and deltas added up"
        )
    kinds = [one for one in each if one is not None]
    per_client: set[tuple[Kind, ...]] = set()
    if same_clients and len({len(one) for one in kinds}) == 1:
        per_client = {tuple(mine) for mine in zip(*kinds, strict=True)}
    if per_client and (len(per_client) <= MOST_KINDS or any(map(_is_tight, kinds))):
        epsilon = max(composition.epsilon_together(mine, delta) for mine in per_client)
        return Cost(epsilon, delta, f"{_runs(runs)} composed, client by client")
    dearest = [_dearest(one) for one in kinds]
    epsilon = composition.epsilon_together(dearest, delta)
    return Cost(epsilon, delta, f"{_runs(runs)} composed, each at its clients' dearest")


def _why_no_sum(runs: Sequence[dict[str, Any]], same_clients: bool) -> str:
    """Returns why runs have no epsilon in common, or nothing if they have."""
    if any(run["unit"] is None for run in runs):
        return "some runs promise no privacy, and so does the whole"
    if len({run["unit"] for run in runs}) > 1:
        return "runs protect examples and whole clients: two promises, not one sum"
    if any(run.get("started_from") for run in runs):
        return "what the adapter cost that runs start from comes on top of all of them"
    if runs[0]["unit"] == "client" and not same_clients:
        return "with another split for each seed no client is the same in all runs"
    return ""


def _runs(runs: Sequence[Any]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def _is_tight(kinds: Sequence[Kind]) -> bool:
    """Whether draws may pass their cap: then a client with a lower probability may cost more."""
    return any(
        kind.draw.capacity is not None
        and kind.draw.capacity < accounting.default_capacity(_expected(kind.draw))
        for kind in kinds
    )


def _expected(draw: Sampling) -> int:
    return max(1, round(draw.probability * draw.num_examples))


def _dearest(kinds: Sequence[Kind]) -> Kind:
    """Returns one kind that costs at least what each of them does, where no cap is tight."""
    draw = max((kind.draw for kind in kinds), key=lambda draw: draw.probability)
    noise = min(kind.noise_multiplier for kind in kinds)
    return Kind(draw, noise, max(kind.steps for kind in kinds))


def of_the_best(search: SearchConfig, runs: Sequence[dict[str, Any]], is_whole: bool) -> Cost:
    """Returns the cost of giving out the best trial alone, with its settings, where a theorem says it.

    Args:
        search: its law.
        runs: contents of privacy.json.
        is_whole: whether as many trials were made as the law drew. Of a search that was stopped the number
            follows no law any more.
    """
    if why := _why_not_covered(search, runs, is_whole):
        return Cost(None, None, why)
    each = [kinds_of(run) for run in runs]
    every = [kind for kinds in each if kinds is not None for kind in kinds]
    if not every or None in each:
        why = "not covered: runs whose cost is no plain composition of their steps"
        return Cost(None, None, why)
    one, delta = _dearest(every), max(run["delta"] for run in runs)
    steps, trials = one.steps * search.seeds, float(search.trials)
    epsilon = composition.epsilon_of_the_best(
        one.draw, one.noise_multiplier, steps, delta, trials, search.trials_law
    )
    draws = {kind.draw for kind in every if kind.draw.capacity is not None}
    needed = {d: composition.needed_capacity(d, steps, trials, epsilon, delta) for d in draws}
    if any((draw.capacity or 0) < capacity for draw, capacity in needed.items()):
        return Cost(
            None,
            None,
            f"not covered with this cap on draws: with privacy.capacity {max(needed.values())} (which "
            f"takes hardly more time) the best alone would cost epsilon {epsilon:.3g}",
        )
    return Cost(
        epsilon,
        delta,
        f"a secret number of trials, {search.trials_law} with mean {search.trials}, independent of each "
        "other, of which the best alone is given out, without its number (Papernot & Steinke 2022)",
    )


def _why_not_covered(search: SearchConfig, runs: Sequence[dict[str, Any]], is_whole: bool) -> str:
    """Returns why the theorem says nothing of a search, or nothing if it does."""
    if search.trials_law == "fixed":
        return "as that of all runs (a law for the number of trials makes it less: docs/search.md)"
    if not is_whole:
        return "not covered: the search was stopped, and the law is of all that it drew (resume it)"
    varied = [name for name in search.over if name.startswith(COUNTED)]
    if varied:
        return f"not covered: trials differ in what they cost ({', '.join(varied)})"
    why = _why_no_sum(runs, search.seeds == 1) if runs else "no run was made"
    return why and f"not covered: {why}"
