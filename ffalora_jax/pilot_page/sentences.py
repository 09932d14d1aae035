"""What the page says, put together from the figures; the words are the language's."""

import math
from typing import Any

from ffalora_jax.pilot_page.texts import Texts, epsilon, percent, points, size, small

MOST_ROWS = 8
WIDEST = 0.5
"""Of a site's interval, as a share: a wider one says nothing."""
MONTH_LINE = 1
"""Of ``report.times.RATES``: 10 Mbit/s, a weak office line."""


def recommendation(found: dict[str, Any], t: Texts) -> dict[str, Any]:
    """Returns the answer, the reasons for it, and how certain it is."""
    result = found["recommendation"]
    method = result["method"]
    if method is None:
        return {"answer": t("nothing"), "reasons": [], "certainty": t("certainty", level=t("low"))}
    certainty = t("certainty", level=t(result["certainty"]))
    pairs = result["repetitions"]
    # Then nothing is known of which one could be certain.
    if result["decision"] == "not_shown" and pairs:
        certainty = t("basis", repetitions=pairs)
    return {
        "answer": t(result["decision"], method=t(method)),
        "reasons": [_reason(found, t), *_against_the_other(found, t), t("two_ways")],
        "certainty": certainty,
    }


def _reason(found: dict[str, Any], t: Texts) -> str:
    result, mine = found["recommendation"], chosen(found)
    facts = {
        "together": percent(mine["accuracy"]["mean"]),
        "things": things(found, t),
        "epsilon": epsilon(found["about"]["epsilon"], t("no_privacy")),
    }
    gain = result["gain"]
    if gain["mean"] is None:
        return t("reason_unpaired", **facts)
    facts["together"] = percent(found["paired"]["together"])
    return t(
        "reason",
        **facts,
        alone=percent(found["paired"]["alone"]),
        gain=points(gain["mean"]),
        interval=t.interval(gain),
        repetitions=result["repetitions"],
    )


def _against_the_other(found: dict[str, Any], t: Texts) -> list[str]:
    gap = found["against_the_other"]
    if gap is None:
        return []
    method = t(found["recommendation"]["method"])
    return [t(gap["verdict"], method=method, others=t(gap["method"]))]


def chosen(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of the recommended method, or of the first where none is."""
    name = found["recommendation"]["method"]
    return next((m for m in found["methods"] if m["method"] == name), found["methods"][0])


def things(found: dict[str, Any], t: Texts) -> str:
    """Names what is classified."""
    return t(f"things_{found['about']['things']}")


def tiles(found: dict[str, Any], t: Texts) -> list[tuple[str, str]]:
    """Returns the few figures that matter most."""
    about, mine, safe = found["about"], chosen(found), found["risk"]["safe_accuracy"]
    kind, majority = things(found, t), found["majority"]
    facts = {"things": kind, "count": f"{about['tested']:,}"}
    right = (
        t("tile_accuracy_plain", **facts)
        if majority is None
        else t("tile_accuracy", **facts, majority=percent(majority))
    )
    return [
        (percent(mine["accuracy"]["mean"]), right),
        (t("no_safe"), t("tile_safe_unknown")) if safe is None else (percent(safe), t("tile_safe")),
        (
            f"ε = {epsilon(about['epsilon'], '–')}",
            t("tile_epsilon", unit=t(f"unit_{about['unit']}"), delta=small(about["delta"])),
        ),
        (size(mine["bytes_per_site"]), t("tile_traffic")),
    ]


def privacy(found: dict[str, Any], t: Texts) -> list[str]:
    """Says what the promise means, and what it costs."""
    cost, costs = found["privacy_cost"], []
    at = epsilon(found["about"]["epsilon"], t("no_privacy"))
    if cost["mean"] is not None:
        facts = {
            "method": t(found["privacy_of"]),
            "epsilon": at,
            "interval": t.interval(cost, "interval_loss"),
        }
        costs.append(_cost(cost, facts, t))
    if found["tightest"] is not None:
        costs.append(t("tightest", tightest=epsilon(found["tightest"], ""), epsilon=at))
    return [*_promise(found, t), *(costs or [t("privacy_not_yet")])]


def _promise(found: dict[str, Any], t: Texts) -> list[str]:
    """Says what each epsilon leaves to whoever guesses, and what training again adds."""
    about, month = found["about"], found["month"]
    budgets = {about["epsilon"], *(one["epsilon"] for one in found["privacy"])} - {None}
    each = [
        t("promise_at", epsilon=epsilon(one, ""), most=_guessed(most_guessed(one, about["delta"])))
        for one in sorted(budgets, reverse=True)
    ]
    said = t("promise", unit=t(f"unit_{about['unit']}"), each=t.names(each))
    if month["epsilon"] is None:
        return [said, t("promise_again")]
    facts = {"trainings": month["trainings"], "epsilon": epsilon(month["epsilon"], "")}
    return [said, t("promise_month", **facts)]


def most_guessed(budget: float, delta: float) -> float:
    """Returns the share of right guesses that no attacker exceeds.

    One of two neighbouring data sets is taken by a fair coin and guessed from what is released. Where that
    is (epsilon, delta)-private, the guess is right with probability (e^epsilon + delta) / (1 + e^epsilon) at
    most.

    Reference: Kairouz, Oh, Viswanath, "The composition theorem for differential privacy", ICML 2015, sec. 2.
    """
    return min(1.0, (1 + delta * math.exp(-budget)) / (1 + math.exp(-budget)))


def _guessed(share: float) -> str:
    return "99.9 %+" if share >= 0.9995 else percent(share)


def _cost(cost: dict[str, Any], facts: dict[str, str], t: Texts) -> str:
    """Says a loss as one only where its interval lies above zero."""
    if cost["mean"] <= 0:
        return t("privacy_free", **facts)
    shown, lost = cost["low"] is not None and cost["low"] > 0, f"{100 * cost['mean']:.1f}"
    return t("privacy_cost" if shown else "privacy_unclear", **facts, points=lost)


def traffic(found: dict[str, Any], t: Texts) -> dict[str, Any]:
    """Returns the table of methods, and what the lighter one saves a month."""
    asked = found["asked"]
    priced, on_links = asked["price_per_gb"] is not None, _has_links(found)
    lines = [] if on_links else [one["line"] for one in found["methods"][0]["on_lines"][:3]]
    head = [t("column_method"), t("column_accuracy"), t("column_site")]
    head += [t("column_links")] if on_links else [t("column_line", line=one) for one in lines]
    head += [t("column_month"), *([t("column_money")] if priced else [])]
    rows = []
    for one in _listed(found):
        times = [one["simulated_seconds"]] if on_links else [o["seconds"] for o in one["on_lines"]]
        row = [t(one["method"]), _right(one["accuracy"], t), size(one["bytes_per_site"])]
        row += [t.duration(seconds) for seconds in times[: max(1, len(lines))]]
        month = monthly_bytes(found, one)
        rows.append([*row, size(month), *([_money(asked, month)] if priced else [])])
    unpriced = [] if priced else [t("no_price")]
    return {"head": head, "rows": rows, "said": [*_saved(found, t), *unpriced]}


def monthly_bytes(found: dict[str, Any], method: dict[str, Any]) -> float:
    """Returns what all sites send and receive in a month."""
    return (
        method["bytes_per_site"] * found["about"]["sites"] * found["asked"]["trainings_per_month"]
    )


def _listed(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the methods whose traffic is known: on given links only of those that were run."""
    on_links = _has_links(found)
    return [
        one
        for one in found["methods"]
        if one["accuracy"]["mean"] is not None or (one["bytes_per_site"] and not on_links)
    ]


def _has_links(found: dict[str, Any]) -> bool:
    tried = [m for m in found["methods"] if m["accuracy"]["mean"] is not None]
    return bool(tried) and all(m["simulated_seconds"] is not None for m in tried)


def _saved(found: dict[str, Any], t: Texts) -> list[str]:
    listed, asked = sorted(_listed(found), key=lambda m: m["bytes_per_site"]), found["asked"]
    if not listed or listed[0]["bytes_per_site"] >= listed[-1]["bytes_per_site"]:
        return []
    light, heavy = listed[0], listed[-1]
    less = monthly_bytes(found, heavy) - monthly_bytes(found, light)
    if _has_links(found):
        seconds = heavy["simulated_seconds"] - light["simulated_seconds"]
        key, facts = "traffic_links", {}
    else:
        one, other = (m["on_lines"][MONTH_LINE] for m in (heavy, light))
        seconds, facts = one["seconds"] - other["seconds"], {"line": one["line"]}
        key = "traffic_time"
    month = seconds * asked["trainings_per_month"]
    time = t(key, time=t.duration(month), **facts) if month > 0 else ""
    money = "" if asked["price_per_gb"] is None else t("traffic_money", money=_money(asked, less))
    return [
        t(
            "traffic_saved",
            method=t(light["method"]),
            other=t(heavy["method"]),
            share=f"{100 * light['bytes_per_site'] / heavy['bytes_per_site']:.0f} %",
            bytes=size(less),
            trainings=f"{asked['trainings_per_month']:g}",
            time=time,
            money=money,
        )
    ]


def _money(asked: dict[str, Any], count: float) -> str:
    amount = count / 1e9 * asked["price_per_gb"]
    shown = f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.2g}"
    return f"{shown} {asked['currency']}"


def _right(interval: dict[str, Any], t: Texts) -> str:
    if interval["mean"] is None:
        return t("not_run")
    if interval["low"] is None:
        return percent(interval["mean"])
    return f"{percent(interval['mean'])} ± {100 * (interval['high'] - interval['mean']):.1f}"


def clock(found: dict[str, Any], t: Texts) -> list[str]:
    """Says which site holds the others up, and what adapting saves."""
    facts, deadline = found["clock"], found["about"]["deadline"]
    if facts is None:
        return [t("one_site" if found["about"]["sites"] == 1 else "no_clock")]
    times = {name: t.duration(facts[name]) for name in ("seconds", "second")}
    if deadline is not None:
        times["deadline"] = f"{deadline:g}"
        return [t("clock_deadline", slowest=facts["slowest"], **times)]
    adapted, often = facts["adapted"], facts["second"] > facts["seconds"]
    if often:  # it is there more often than the slowest one
        said = [t("clock_often", slowest=facts["slowest"], seconds=times["seconds"])]
    else:
        said = [t("clock", slowest=facts["slowest"], **times)]
    if adapted is None:
        return [*said, t("not_adapted")]
    return [
        *said,
        t(
            "adapted",
            deadline=f"{adapted['deadline']:.3g}",
            after=t.duration(adapted["seconds"]),
            before=t.duration(adapted["seconds_before"]),
            accuracy=percent(adapted["accuracy"]),
            was=percent(adapted["accuracy_before"]),
        ),
    ]


def sites(found: dict[str, Any], t: Texts) -> dict[str, Any]:
    """Returns the table of sites, the furthest apart of many, and who gains and who loses."""
    ordered = sorted(found["sites"], key=lambda site: -site["gain"]["mean"])
    half = MOST_ROWS // 2
    shown = ordered if len(ordered) <= MOST_ROWS else [*ordered[:half], *ordered[-half:]]
    groups = _groups(ordered)
    said = [t(key, names=t.names(names)) for key, names in _groups(shown).items() if names]
    if all(site["gain"]["low"] is None for site in shown):
        said = [t("few_repetitions")]
    if len(shown) < len(ordered):
        said.append(t("more_sites", count=len(ordered) - len(shown)))
    if not found["about"]["own_sites"]:
        said.append(t("dealt_sites"))
    rows = [_site(site, t) for site in shown]
    return {"rows": rows, "said": said if rows else [t("no_sites")], "groups": groups}


def _groups(some: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Sorts sites by the interval of their gain."""
    found: dict[str, list[str]] = {"winners": [], "losers": [], "open": []}
    for site in some:
        low, high = site["gain"]["low"], site["gain"]["high"]
        gains, loses = low is not None and low > 0, high is not None and high < 0
        found["winners" if gains else "losers" if loses else "open"].append(site["name"])
    return found


def _site(site: dict[str, Any], t: Texts) -> list[str]:
    gain = site["gain"]
    change = points(gain["mean"])
    if gain["low"] is not None and gain["high"] - gain["low"] > WIDEST:
        change += t("unclear")
    elif gain["low"] is not None:
        change += f" ({points(gain['low'])} … {points(gain['high'])})"
    count = "–" if site["examples"] is None else f"{site['examples']:,}"
    return [site["name"], count, percent(site["alone"]), percent(site["together"]), change]
