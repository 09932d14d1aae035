"""What a pilot found, as plain figures: the page puts them into words, other programs read ``pilot.json``."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from ffalora_jax import pilot_rules
from ffalora_jax.pilot_course import ALONE, METHODS
from ffalora_jax.pilot_facts import Facts
from ffalora_jax.pilot_rules import Option
from ffalora_jax.piloting import Piloting
from ffalora_jax.sweep_results import Interval


def found(pilot: Piloting, audit: dict[str, Any] | None) -> dict[str, Any]:
    """Returns all figures of the page; what was not looked at is None or empty.

    Args:
        pilot: with at least one run that was made.
        audit: what an audit gave, or why there is none.
    """
    facts, settings = Facts(pilot), pilot.experiment
    options = [facts.option(method) for method in METHODS]
    single, majority = facts.option(ALONE), facts.majority
    result = pilot_rules.recommend(options, single, majority or 0.0)
    chosen = result.method or METHODS[0]
    mine = next(option for option in options if option.method == chosen)
    together, alone, privacy = mine.accuracy, single.accuracy, facts.privacy()
    shared = sorted(together.keys() & alone.keys())
    each = {one["epsilon"]: one["each"] for one in privacy}
    budget = settings.privacy.budget or 0.0
    return {
        "name": settings.name,
        "about": facts.about(),
        "asked": vars(pilot.asked) | {"seconds": pilot.before + pilot.used},
        "whole": pilot.whole,
        "runs": len({a.row["folder"] for a in pilot.answers if a.row["status"] != "refused"}),
        "failed": sum(a.row["status"] == "failed" for a in pilot.answers),
        "refused": sorted({a.row["why"] for a in pilot.answers if a.row["status"] == "refused"}),
        "recommendation": _plain(result._asdict()),
        "against_the_other": _gap(options, mine, majority or 0.0),
        "learning_rate": facts.rate(chosen),
        "majority": majority,
        "privacy_of": METHODS[0],
        "privacy": privacy,
        "privacy_cost": pilot_rules.paired(each.get(None, {}), each.get(budget, {}))._asdict(),
        "tightest": pilot_rules.tightest({e: v for e, v in each.items() if e is not None}, budget),
        "month": facts.month(chosen),
        "methods": [facts.method(method) for method in METHODS],
        "paired": {
            "together": mean(together[k] for k in shared) if shared else None,
            "alone": mean(alone[k] for k in shared) if shared else None,
        },
        "sites": facts.sites(chosen),
        "clock": facts.clock(),
        "sensitivity": facts.sensitivity(),
        "risk": _risk(mine, facts.rows_at_risk(chosen)),
        "audit": audit,
        "next": {
            "longer": pilot_rules.longer(facts.curve(facts.settings(chosen))),
            "rounds": settings.rounds,
        },
        "spent": facts.spent(audit),
        "releasable": settings.noise_seed is None,
    }


def _gap(options: Sequence[Option], mine: Option, majority: float) -> dict[str, Any] | None:
    """Returns by how much the chosen method lies above the other one, and why it is not the other one."""
    other = next((one for one in options if one is not mine and (one.accuracy or one.failed)), None)
    if other is None or not mine.accuracy:
        return None
    gap = pilot_rules.paired(mine.accuracy, other.accuracy)
    why = pilot_rules.verdict(mine, other, majority)
    return {"method": other.method, "verdict": why, **gap._asdict()}


def _risk(option: Option, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what share failed, and what 95 % of repetitions reach; nothing of that where some failed."""
    values = list(option.accuracy.values())
    return {
        "method": option.method,
        "runs": len(rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "safe_accuracy": None if option.failed else pilot_rules.safe_accuracy(values),
        "worst": min(values, default=None),
    }


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts with intervals as tables."""
    return {n: v._asdict() if isinstance(v, Interval) else v for n, v in facts.items()}
