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


def found(pilot: Piloting, whole: bool, audit: dict[str, Any] | None) -> dict[str, Any]:
    """Returns all figures of the page; what was not looked at is None or empty.

    Args:
        pilot: with at least one run that was made.
        whole: whether all questions were asked.
        audit: what an audit gave, or why there is none.
    """
    facts = Facts(pilot)
    main = facts.main
    options = [facts.option(method) for method in METHODS]
    alone = facts.tested(ALONE)
    result = pilot_rules.recommend(options, alone, facts.majority or 0.0)
    chosen = result.method or METHODS[0]
    together = facts.tested(chosen)
    shared = sorted(together.keys() & alone.keys())
    settings = pilot.experiment
    privacy = facts.privacy()
    return {
        "name": settings.name,
        "about": facts.about(),
        "asked": vars(pilot.asked) | {"seconds": pilot.before + pilot.used},
        "whole": whole,
        "runs": len({a.row["folder"] for a in pilot.answers if a.row["status"] != "refused"}),
        "failed": sum(a.row["status"] == "failed" for a in pilot.answers),
        "refused": sorted({a.row["why"] for a in pilot.answers if a.row["status"] == "refused"}),
        "recommendation": _plain(result._asdict()) | {"method": result.method},
        "learning_rate": facts.rate(chosen),
        "majority": facts.majority,
        "privacy": privacy,
        "privacy_cost": _cost(privacy, settings.privacy.budget),
        "tightest": pilot_rules.tightest(
            {one["epsilon"]: one["each"] for one in privacy if one["epsilon"] is not None}
        ),
        "methods": [facts.method(method) for method in METHODS],
        "paired": {
            "repetitions": len(shared),
            "together": mean(together[k] for k in shared) if shared else None,
            "alone": mean(alone[k] for k in shared) if shared else None,
        },
        "sites": facts.sites(chosen),
        "clock": facts.clock(),
        "sensitivity": facts.sensitivity(),
        "risk": _risk(facts.option(chosen), facts.inits()),
        "audit": audit,
        "next": {"longer": pilot_rules.longer(facts.curve(main)), "rounds": settings.rounds},
        "spent": facts.spent(),
        "releasable": settings.noise_seed is None,
    }


def _cost(privacy: Sequence[Mapping[str, Any]], epsilon: float | None) -> dict[str, Any]:
    """Returns what the epsilon that is asked for costs against no privacy, repetition by repetition."""
    each = {one["epsilon"]: one["each"] for one in privacy}
    if None not in each or epsilon not in each:
        return Interval(None, None, None)._asdict()
    return pilot_rules.paired(each[None], each[epsilon])._asdict()


def _risk(option: Option, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what share failed, and what 95 % of repetitions reach."""
    values = list(option.accuracy.values())
    return {
        "runs": len(rows),
        "failed": sum(row["status"] == "failed" for row in rows),
        "safe_accuracy": pilot_rules.safe_accuracy(values),
        "worst": min(values, default=None),
    }


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts with intervals as tables."""
    return {n: v._asdict() if isinstance(v, Interval) else v for n, v in facts.items()}
