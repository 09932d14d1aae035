"""The page's second half in sentences: risk, what the pilot cannot say, the next step."""

from typing import Any

from ffalora_jax.pilot_page.sentences import sites
from ffalora_jax.pilot_page.texts import Texts, epsilon, percent, small

CLAIMS = {"dp_sgd_secagg": "claim_sum", "dp_sgd": "claim_local", "dp_fedavg": "claim_server"}
"""By how a mechanism's name begins: against whom its promise holds."""
COARSE = 100
"""Examples of a repetition: with fewer, one of them counts more than a point."""


def risk(found: dict[str, Any], t: Texts) -> list[str]:
    """Says what may go wrong, what is claimed, and what the pilot itself has cost."""
    facts, about = found["risk"], found["about"]
    method = t(facts["method"])
    key = "failed" if facts["failed"] or not facts["runs"] else "none_failed"
    failed = {"failed": facts["failed"]} if key == "failed" else {}
    said = [t(key, runs=facts["runs"], method=method, **failed)]
    if found["failed"] > facts["failed"]:
        said.append(t("failed_others", runs=found["runs"], failed=found["failed"]))
    if facts["worst"] is not None:
        said.append(t("worst", worst=percent(facts["worst"]), method=method))
    claim = {
        "epsilon": epsilon(about["epsilon"], "–"),
        "delta": small(about["delta"]),
        "unit": t(f"unit_{about['unit']}"),
    }
    kind = next((k for n, k in CLAIMS.items() if about["mechanism"].startswith(n)), "claim_other")
    return [*said, t(kind, **claim), _audit(found["audit"], t), *_spent(found, t)]


def _audit(audit: dict[str, Any] | None, t: Texts) -> str:
    if audit is None:
        return t("no_audit", why=t("audit_quick"))
    if "why" in audit:
        return t("no_audit", why=t("audit_time") if audit["why"] == "time" else audit["why"])
    facts = {
        "canaries": audit["canaries"],
        "lower": epsilon(audit["lower_bound"], "–"),
        "claimed": epsilon(audit["claimed"], "–"),
    }
    if not audit["holds"]:
        return t("audit_broken", **facts)
    facts["ceiling"] = epsilon(audit["ceiling"], "–")
    if audit["ceiling"] <= audit["claimed"]:
        return t("audit_weak", **facts)
    return t("audit", **facts, confidence=f"{100 * audit['confidence']:g} %")


def _spent(found: dict[str, Any], t: Texts) -> list[str]:
    spent = found["spent"]
    key = "spent_unknown" if spent["epsilon"] is None else "spent"
    facts = {"epsilon": epsilon(spent["epsilon"], "–")} if spent["epsilon"] is not None else {}
    said = [t(key, private=spent["private"], **facts)]
    if spent["open"]:
        said.append(t("open_runs", open=spent["open"]))
    return said + ([] if found["releasable"] else [t("not_releasable")])


def limits(found: dict[str, Any], t: Texts) -> list[str]:
    """Says what the pilot cannot say."""
    said = [t("limit_data"), t("limit_alone"), t("limit_held_out"), t("limit_simulated")]
    if found["asked"]["price_per_gb"] is not None:
        said.append(t("limit_money"))
    count = found["about"]["tested"]
    if 0 < count < COARSE:
        said.append(t("limit_few", count=count, points=f"{100 / count:.1f}"))
    if found["asked"]["quick"]:
        said.append(
            t("limit_quick", layers=found["about"]["layers"], test=found["about"]["max_test"])
        )
    if not found["whole"]:
        said.append(t("limit_stopped"))
    return said + [t("limit_refused", why=why) for why in found["refused"]]


def next_steps(found: dict[str, Any], t: Texts) -> list[str]:
    """Says what to do now: sites, rounds and budget, or what to look at again."""
    decision = found["recommendation"]["decision"]
    if decision in ("nothing", "no_learning"):
        return [t("next_lower_rate")]
    if decision == "train_alone":
        return [t("next_alone")]
    said = []
    if decision == "roll_out":
        groups, all_sites = sites(found, t)["groups"], found["sites"]
        some = 0 < len(groups["winners"]) < len(all_sites)
        first = t.names(groups["winners"]) if some else t("next_sites_all")
        said += [t("next_roll_out", sites=first), *([t("next_losers")] if groups["losers"] else [])]
    if found["recommendation"]["certainty"] != "high":
        key = "next_not_quick" if found["asked"]["quick"] else "next_other"
        said.append(t(key if found["whole"] else "next_resume"))
    rounds, longer = found["next"]["rounds"], found["next"]["longer"]
    if longer is not None:
        key, planned = ("next_longer", 2 * rounds) if longer else ("next_rounds", rounds)
        said.append(t(key, rounds=planned))
    at = epsilon(found["about"]["epsilon"], "–")
    rate = f"{found['learning_rate']:.3g}"
    return [*said, t("next_budget", epsilon=at, rate=rate, rank=found["about"]["rank"])]
