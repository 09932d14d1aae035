"""docs/benchmarks.md from what the programs printed: page.md with its tables."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Store = dict[str, Any]
TEMPLATE = Path(__file__).with_name("page.md")

PEER_TITLES = {
    "sst2": "SST-2 as it is, 64 expected, 3 clients, MiniLM",
    "vader": "VADER as it is, 64 expected, 4 clients, MiniLM",
    "minilm": "64 fixed tokens, batch 16, MiniLM",
    "vit-tiny": "ViT-tiny, 32 x 32 images, batch 32",
    "toy": "toy MLP, 256 clients",
}
TARGETS = {
    "sst2": ((2.5, 3.5), (1.0, 1.3)),
    "vader": ((1.8, 2.5), (0.9, 1.2)),
    "minilm": ((0.85, 1.3), (0.75, 1.0)),
    "vit-tiny": ((0.85, 1.3), (0.75, 1.0)),
    "toy": ((60, 150), (0.8, 2.0)),
}
"""(must, aim) against PEFT + Opacus, and against the fastest PyTorch."""


def page(stored: Store) -> str:
    """Returns the page."""
    text = TEMPLATE.read_text()
    for name, write in TABLES.items():
        text = text.replace(f"{{{name}}}", write(stored).rstrip() or MISSING)
    return text


def targets(stored: Store) -> str:
    """Returns the table of targets: must, aim, measured."""
    rows = []
    for name, goals in TARGETS.items():
        line = _line(stored, f"against_peers {name}")
        measured = _ratios(line) if line else (None, None)
        for what, goal, value in zip(
            ("PEFT + Opacus", "the fastest PyTorch"), goals, measured, strict=True
        ):
            rows.append((f"{PEER_TITLES[name]}: against {what}", *goal, value, True))
    prefix = _line(stored, "prefix")
    ratio = prefix and prefix["ratio"]
    rows.append(("adapters on the last two layers: prefix cache against none", 2, 3, ratio, True))
    claims = {x["claim"]: x["ratio"] for x in _lines(stored, "rounds_per_second") if "claim" in x}
    for name, must, aim in (
        ("DP-SGD against none", 1.1, 1.03),
        ("FFA-LoRA against LoRA", 1.0, 0.95),
    ):
        rows.append((f"{name}: time", must, aim, claims.get(name), False))
    grown = _grown(stored)
    rows.append(("16 to 256 clients: time", 16.5, None, grown and grown[0], False))
    rows.append(("16 to 256 clients: peak memory", 1.3, None, grown and grown[1], False))
    lines = []
    for what, must, aim, value, more_is_better in rows:
        met = "not measured"
        if value is not None:
            inside = value >= must if more_is_better else value <= must
            met = "yes" if inside else "**missed**"
        lines.append((what, _number(must), _number(aim), _number(value), met))
    return _table(("measure", "must", "aim", "measured", "met"), lines)


def _elsewhere(stored: Store) -> str:
    """Returns the table of targets of each other processor that was measured on."""
    others: dict[str, Store] = {}
    for name, entry in stored.items():
        for other in entry.get("elsewhere", []):
            others.setdefault(other["machine"]["cpu"], {})[name] = other
    tables = [f"On {_machines(store)}:\n\n{targets(store)}" for store in others.values()]
    return "\n".join(tables) or "Nothing was measured on another processor."


def _peers(stored: Store) -> str:
    rows = []
    for name, title in PEER_TITLES.items():
        if line := _line(stored, f"against_peers {name}"):
            seconds = {k: v["seconds_per_client_step"]["median"] for k, v in line["peers"].items()}
            fastest = min((v, k) for k, v in seconds.items() if k != "peft_opacus")
            share = line["share_of_gemm_limit"]
            rows.append(
                (
                    title,
                    _number(line["ours"]["seconds_per_client_step"]["median"]),
                    _number(seconds["peft_opacus"]),
                    f"{_number(fastest[0])} ({fastest[1]})",
                    _percent(share) if share else "-",
                    f"{line['max_abs_difference']:.0e}",
                )
            )
    head = ("work", "ours", "PEFT + Opacus", "fastest PyTorch", "share of GEMM limit", "difference")
    return _table(head, rows)


def _prefix(stored: Store) -> str:
    line = _line(stored, "prefix")
    if line is None:
        return ""
    each = line["seconds_per_client_step"]
    return (
        f"The quickstart with `--method.layers {line['layers']}`: {_number(each['never'])} s a client's step "
        f"without, {_number(each['always'])} s with the cache, **{_number(line['ratio'])}** times as\n"
        f"fast ({line['kept']}; filling it took {_number(line['seconds_to_fill'])} s, so that short "
        f"runs do without).\nThe updates differ by {line['max_abs_difference']:.0e}. By dense products "
        "alone the ratio would be 2.07: six blocks forwards and 1.75 backwards (the\nlowest adapted one ends "
        "at its queries and values) against two and 1.75; attention, clipping and noise stay the same.\n"
    )


def _rounds(stored: Store) -> str:
    rows = [
        (
            *(x[k] for k in ("model", "clients", "rank", "method", "mechanism")),
            _number(x["rounds_per_second"]),
            _number(x["seconds_per_client_step"]["median"]),
            f"{x['tokens_per_second']:,.0f}",
            _number(x["gflop_per_second"]),
        )
        for x in _lines(stored, "rounds_per_second")
        if "claim" not in x
    ]
    head = (
        "model",
        "clients",
        "rank",
        "method",
        "mechanism",
        "rounds/s",
        "s a client's step",
        "tokens/s",
        "GFLOP/s",
    )
    return _table(head, rows)


def _scaling(stored: Store) -> str:
    lines = _lines(stored, "scaling")
    rows = [
        (x["axis"], x[x["axis"]], _number(x["seconds_per_round"]), f"{x['peak_mib']:,.0f}")
        for x in lines
    ]
    return _table(("grown", "to", "seconds a round", "peak MiB"), rows)


def _roofline(stored: Store) -> str:
    found = {name: _line(stored, name) for name in ("roofline", "roofline 4-5")}
    found = {name: line for name, line in found.items() if line}
    kinds = sorted({kind for line in found.values() for kind in line["shares"]})
    rows = [
        (kind, *(_percent(line["shares"].get(kind, 0.0)) for line in found.values()))
        for kind in kinds
    ]
    rate = (
        "GFLOP/s of the dense products",
        *(_number(x["gflop_per_second_of_dense_products"]) for x in found.values()),
    )
    names = (
        "all layers" if line["layers"] == "all" else f"layers {line['layers']}"
        for line in found.values()
    )
    return _table(("part of a round's time", *names), [*rows, rate])


def _plans(stored: Store) -> str:
    rows = [
        (
            x["workload"],
            _number(x["planned_seconds_per_round"]),
            _number(x["measured_seconds_per_round"]),
            _number(x["ratio"]),
            f"{x['estimated_bytes'] / 2**20:.1f} : {x['compiled_bytes'] / 2**20:.1f}",
        )
        for x in _lines(stored, "plan_against_runs")
    ]
    head = (
        "workload",
        "planned s a round",
        "measured",
        "ratio",
        "activations MiB, estimated : XLA's",
    )
    return _table(head, rows)


def _many(stored: Store) -> str:
    rows = [
        (
            f"{x['clients']:,}",
            _number(x["seconds_per_round"]),
            _number(x["device_mib"]),
            f"{x['host_mib']:,.0f}",
            _number(x["files_mib"]),
            _number(x["seconds_in_all"]),
        )
        for x in _lines(stored, "many_clients")
    ]
    head = (
        "clients",
        "s a round of 64",
        "MiB on the device",
        "MiB in all",
        "MiB of files",
        "s in all",
    )
    return _table(head, rows)


def _ratios(line: dict[str, Any]) -> tuple[float, float]:
    others = [ratio for name, ratio in line["ratios"].items() if name != "peft_opacus"]
    return line["ratios"]["peft_opacus"], min(others)


def _grown(stored: Store) -> tuple[float, float] | None:
    lines = {x["clients"]: x for x in _lines(stored, "scaling") if x["axis"] == "clients"}
    if not {16, 256} <= set(lines):
        return None
    few, many = lines[16], lines[256]
    return many["seconds_per_round"] / few["seconds_per_round"], many["peak_mib"] / few["peak_mib"]


def _machines(stored: Store) -> str:
    found = {}
    for entry in stored.values():
        machine = entry["machine"]
        versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
        cores, python = f"{machine['cores']} cores", f"Python {machine['python']}"
        facts = machine["cpu"], cores, python, versions, "float32", machine["date"]
        found[", ".join(facts)] = None
    return ";\n".join(found)


def _lines(stored: Store, name: str) -> list[dict[str, Any]]:
    return stored.get(name, {}).get("lines", [])


def _line(stored: Store, name: str) -> Any:
    return next(iter(_lines(stored, name)), None)


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    rows = list(rows)
    if not rows:
        return ""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if value < 0.1 else f"{100 * value:.0f} %"


TABLES: dict[str, Callable[[Store], str]] = {
    "machines": _machines,
    "targets": targets,
    "elsewhere": _elsewhere,
    "peers": _peers,
    "prefix": _prefix,
    "rounds": _rounds,
    "scaling": _scaling,
    "roofline": _roofline,
    "plans": _plans,
    "many": _many,
}
MISSING = "Not measured."
