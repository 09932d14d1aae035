"""What the page says, put together from the figures; the words are the language's."""

from typing import Any

from ffalora_jax.pilot_page.texts import Texts, epsilon, percent, points, size, small
from ffalora_jax.pilot_rules import FEW

MONTH_LINE = 1
"""Of ``report.times.RATES``: 10 Mbit/s, a weak office line."""


def recommendation(found: dict[str, Any], t: Texts) -> dict[str, Any]:
    """Returns the answer, the reasons for it, and how certain it is."""
    result = found["recommendation"]
    method = result["method"]
    if method is None:
        return {"answer": t("nothing"), "reasons": [], "certainty": t("certainty", level=t("low"))}
    return {
        "answer": t(result["decision"], method=t(method)),
        "reasons": [_reason(found, t), *_against_the_other(found, t)],
        "certainty": t("certainty", level=t(result["certainty"])),
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
        repetitions=found["paired"]["repetitions"],
    )


def _against_the_other(found: dict[str, Any], t: Texts) -> list[str]:
    result = found["recommendation"]
    tried = [m["method"] for m in found["methods"] if m["accuracy"]["mean"] is not None]
    others = [name for name in tried if name != result["method"]]
    if not others:
        return []
    key = "alike" if set(others) & set(result["alike"]) else "better"
    if key == "better" and result["repetitions"] < FEW:
        key = "ahead"
    return [t(key, method=t(result["method"]), others=t.names([t(name) for name in others]))]


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
    kind = things(found, t)
    return [
        (
            percent(mine["accuracy"]["mean"]),
            t("tile_accuracy", things=kind, majority=percent(found["majority"])),
        ),
        (t("no_safe"), t("tile_safe_unknown")) if safe is None else (percent(safe), t("tile_safe")),
        (
            f"ε = {epsilon(about['epsilon'], '–')}",
            t("tile_epsilon", unit=t(f"unit_{about['unit']}"), delta=small(about["delta"])),
        ),
        (size(mine["bytes_per_site"]), t("tile_traffic")),
    ]


def privacy(found: dict[str, Any], t: Texts) -> list[str]:
    """Says what privacy costs."""
    said, cost = [], found["privacy_cost"]
    at = epsilon(found["about"]["epsilon"], t("no_privacy"))
    if cost["mean"] is not None:
        # The interval is of the loss: its ends keep their signs.
        is_cost = cost["mean"] > 0
        facts = {"epsilon": at, "interval": t.interval(cost)}
        if is_cost:
            facts["points"] = f"{100 * cost['mean']:.1f}"
        said.append(t("privacy_cost" if is_cost else "privacy_free", **facts))
    if found["tightest"] is not None:
        said.append(t("tightest", tightest=epsilon(found["tightest"], ""), epsilon=at))
    return said


def traffic(found: dict[str, Any], t: Texts) -> dict[str, Any]:
    """Returns the table of methods, and what the lighter one saves a month."""
    asked = found["asked"]
    priced, on_links = asked["price_per_gb"] is not None, _has_links(found)
    lines = [] if on_links else [one["line"] for one in found["methods"][0]["on_lines"][:3]]
    head = [t("column_method"), t("column_accuracy"), t("column_site")]
    head += [t("column_links")] if on_links else [t("column_line", line=one) for one in lines]
    head += [t("column_month"), *([t("column_money")] if priced else [])]
    rows = []
    for one in found["methods"]:
        if one["accuracy"]["mean"] is None:
            continue
        times = [one["simulated_seconds"]] if on_links else [o["seconds"] for o in one["on_lines"]]
        month = monthly_bytes(found, one)
        row = [t(one["method"]), _with_half_width(one["accuracy"]), size(one["bytes_per_site"])]
        row += [t.duration(seconds) for seconds in times[: max(1, len(lines))]]
        rows.append([*row, size(month), *([_money(asked, month)] if priced else [])])
    said = _saved(found, t) + ([] if priced else [t("no_price")])
    return {"head": head, "rows": rows, "said": said}


def monthly_bytes(found: dict[str, Any], method: dict[str, Any]) -> float:
    """Returns what all sites send and receive in a month."""
    return (
        method["bytes_per_site"] * found["about"]["sites"] * found["asked"]["trainings_per_month"]
    )


def _has_links(found: dict[str, Any]) -> bool:
    tried = [m for m in found["methods"] if m["accuracy"]["mean"] is not None]
    return bool(tried) and all(m["simulated_seconds"] is not None for m in tried)


def _saved(found: dict[str, Any], t: Texts) -> list[str]:
    tried = [m for m in found["methods"] if m["accuracy"]["mean"] is not None]
    if len(tried) < 2:
        return []
    light, heavy = sorted(tried, key=lambda m: m["bytes_per_site"])[:2]
    if light["bytes_per_site"] >= heavy["bytes_per_site"]:
        return []
    asked = found["asked"]
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


def _with_half_width(interval: dict[str, Any]) -> str:
    if interval["low"] is None:
        return percent(interval["mean"])
    return f"{percent(interval['mean'])} ± {100 * (interval['high'] - interval['mean']):.1f}"


def clock(found: dict[str, Any], t: Texts) -> list[str]:
    """Says which site holds the others up, and what adapting saves."""
    facts = found["clock"]
    if facts is None:
        return [t("no_clock")]
    others = sorted(facts["seconds"].values(), reverse=True)
    said = [
        t(
            "clock",
            slowest=facts["slowest"],
            seconds=t.duration(facts["seconds"][facts["slowest"]]),
            second=t.duration(others[min(1, len(others) - 1)]),
        )
    ]
    adapted, mine = facts["adapted"], chosen(found)
    if adapted is None:
        return [*said, t("not_adapted")]
    return [
        *said,
        t(
            "adapted",
            deadline=f"{adapted['deadline']:.3g}",
            after=t.duration(adapted["seconds"]),
            before=t.duration(mine["simulated_seconds"]),
            accuracy=percent(adapted["accuracy"]),
            was=percent(adapted["before"]),
        ),
    ]


def sites(found: dict[str, Any], t: Texts) -> dict[str, Any]:
    """Returns the table of sites, and who gains and who loses."""
    rows, groups = [], {"winners": [], "losers": [], "open": []}
    for site in found["sites"]:
        gain = site["gain"]
        shown = points(gain["mean"])
        if gain["low"] is not None:
            shown += f" ({points(gain['low'])} … {points(gain['high'])})"
        key = "open"
        if gain["low"] is not None and gain["low"] > 0:
            key = "winners"
        if gain["high"] is not None and gain["high"] < 0:
            key = "losers"
        groups[key].append(site["name"])
        count = "–" if site["examples"] is None else f"{site['examples']:,}"
        both = percent(site["alone"]), percent(site["together"])
        rows.append([site["name"], count, *both, shown])
    said = [t(key, names=t.names(names)) for key, names in groups.items() if names]
    return {"rows": rows, "said": said or [t("no_sites")], "winners": groups["winners"]}
