"""Our figures beside those of the paper, and what the settings have in common.

Run: python -m experiments.compare_with_paper        Time: seconds; also the last part of docs/results.md
"""

import tomllib
from pathlib import Path
from typing import Any

from experiments import _frame
from experiments._verdicts import cell, chosen
from ffalora_jax import accounting

FIGURES = _frame.HERE / "paper_figures.toml"
TRAIN, LARGEST_SHARE = 67_349, 1 / 3
"""SST-2's training texts; the middle client's share of them in the severe split."""
HIDDEN, LAYERS, RANK, PLACES = 1024, 24, 8, 2
"""RoBERTa-large with adapters on query and value."""


def lines(folder: Path = _frame.RESULTS) -> list[list[str]]:
    """Returns a line a figure: where, what, the paper's, ours, what differs."""
    told = tomllib.loads(FIGURES.read_text())
    found = [_trained(figure, told["setting"], folder) for figure in told["figure"]]
    return found + [_exact(figure) for figure in told["exact"]]


def _trained(figure: dict[str, Any], common: dict[str, Any], folder: Path) -> list[str]:
    paper = f"{figure['paper']:.2f}"
    paper += f" ± {figure['spread']}" if "spread" in figure else ""
    paper += f" to {figure['to']:.2f}" if "to" in figure else ""
    start = [figure["where"], figure["what"], paper]
    record = _frame.record_of(figure["study"], folder)
    if record is None:
        return [*start, "not run yet", "-"]
    rows = [row for row in record["rows"] if all(row.get(k) == v for k, v in figure["of"].items())]
    if not rows:
        return [*start, "not among the runs", "-"]
    cells = chosen(rows, ["method.rank"])
    ours = " / ".join(cell(one) for one in cells.values())
    searched = record["settings"][rows[0]["search"]] | figure.get("ours", {})
    rank = figure["of"].get("method.rank", searched["rank"])
    ours_set = searched | {"rank": rank} | ({} if "to" not in figure else {"rank": "2 to 16"})
    return [*start, ours, different(ours_set, (common | figure["setting"]), figure.get("only"))]


def different(ours: dict[str, Any], theirs: dict[str, Any], only: list[str] | None = None) -> str:
    """Returns what differs between two settings, ours after theirs; a setting left open is ``all``."""
    names = only or list(theirs)
    apart = [
        f"{name} {_plain(theirs[name])} / {_plain(ours.get(name))}"
        for name in names
        if _plain(theirs[name]) != _plain(ours.get(name))
    ]
    return "; ".join(apart) or "nothing"


def _plain(value: Any) -> str:
    if value is None:
        return "all"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _exact(figure: dict[str, Any]) -> list[str]:
    value = COMPUTED[figure["computed"]]()
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    theirs = f"{figure['paper']:,}"
    return [figure["where"], figure["what"], theirs, shown, "nothing"]


def noise() -> float:
    """Returns the noise multiplier of the paper's SST-2 clients: no cap, RDP, as there."""
    draw = accounting.Sampling(int(TRAIN * LARGEST_SHARE), 200 / int(TRAIN * LARGEST_SHARE))
    return accounting.noise_for(draw, 6.0, 10_000, 1e-5, "rdp")


def sent(factors: int) -> int:
    """Returns how many numbers of so many factors a client sends."""
    return factors * LAYERS * PLACES * HIDDEN * RANK


COMPUTED = {"noise": noise, "sent_lora": lambda: sent(2), "sent_ffa": lambda: sent(1)}


def section(folder: Path = _frame.RESULTS) -> str:
    """Returns the part of docs/results.md."""
    head = ["in the paper", "what", "paper", "ours", "setting: paper / ours"]
    return TEXT + _frame.table(head, lines(folder))


TEXT = """Figures of Sun et al. that could be recovered, and ours that come nearest. The paper's spread is a
standard deviation over 20 runs, ours half a 95 % interval over the seeds; in brackets the rate. Where a
setting differs the two figures are not measurements of one thing.

"""

if __name__ == "__main__":
    for line in lines():
        print(" | ".join(line))
