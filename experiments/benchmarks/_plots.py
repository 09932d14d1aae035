"""The benchmarks' two pictures: how a round grows, and where its time goes."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

INK, FIRST, SECOND = "#444444", "#0b6e99", "#c05621"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ffalora_jax",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


def scaling(lines: list[dict[str, Any]], path: Path) -> None:
    """Draws time and peak memory along every axis, both axes of a panel logarithmic."""
    axes_names = list(dict.fromkeys(line["axis"] for line in lines))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * len(axes_names), 2.6), layout="constrained")
        panels = np.atleast_1d(figure.subplots(1, len(axes_names)))
        for panel, name in zip(panels, axes_names, strict=True):
            here = [line for line in lines if line["axis"] == name]
            values = [line[name] for line in here]
            seconds = [line["seconds_per_round"] for line in here]
            memory = [line["peak_mib"] / 1024 for line in here]
            panel.loglog(values, seconds, "o-", color=FIRST)
            beside = panel.twinx()
            beside.plot(values, memory, "s--", color=SECOND)
            beside.set_ylim(0, 1.3 * max(memory))
            panel.set_xticks(values, [str(value) for value in values])
            panel.minorticks_off()
            panel.set_xlabel(name)
        panels[0].set_ylabel("seconds a round", color=FIRST)
        beside.set_ylabel("peak GiB", color=SECOND)
        _save(figure, path)


def shares(found: dict[str, dict[str, float]], path: Path) -> None:
    """Draws the parts of a round's time as one bar for every profile."""
    kinds = sorted({kind for parts in found.values() for kind in parts})
    colors = mpl.colormaps["tab10"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 0.9 + 0.6 * len(found)), layout="constrained")
        panel = figure.subplots()
        left = np.zeros(len(found))
        for index, kind in enumerate(kinds):
            widths = np.array([parts.get(kind, 0.0) for parts in found.values()])
            panel.barh(list(found), widths, left=left, color=colors(index), label=kind)
            left += widths
        panel.set_xlim(0, 1)
        panel.set_xlabel("share of a round's time")
        panel.spines["right"].set_visible(False)
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    metadata = {"Date": None, "Creator": None}
    figure.savefig(path, format="svg", facecolor="white", metadata=metadata)
    lines = (line.rstrip() for line in path.read_text().splitlines())
    path.write_text("\n".join(lines) + "\n")
