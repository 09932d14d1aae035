"""The report's pictures: SVG by matplotlib, in colours that follow the page's light or dark theme."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ffalora_jax.loaded_run import Run
from ffalora_jax.report import words

# Stand-ins that the page's style sheet replaces, so that one drawing serves both themes.
INK, FAINT = "#010203", "#040506"
LINES = tuple(f"#0a0b{index:02x}" for index in range(8))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ffalora_jax",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


MOST_BARS, LONGEST_LABEL = 100, 40


def of_run(run: Run) -> dict[str, str]:
    """Returns the drawings of one run by name, as SVG text."""
    drawn = {
        "accuracy": drawing(lambda axes: _accuracy(axes, run)),
        "bytes": drawing(lambda axes: _bytes(axes, run)),
        "norms": drawing(lambda axes: _norms(axes, run)),
        "partition": drawing(lambda axes: _partition(axes, run)),
    }
    if not run.experiment.monitor.private:
        drawn["clipped"] = drawing(lambda axes: _clipped(axes, run))
    if run.epsilon is not None:
        drawn["epsilon"] = drawing(lambda axes: _epsilon(axes, run))
    return drawn


def accuracy_of_runs(runs: Sequence[Run]) -> str:
    """Returns the validation curves of several runs in one drawing."""

    def draw(axes: Axes):
        for index, run in enumerate(runs):
            rounds, values = evaluated(run, "accuracy")
            axes.plot(rounds, values, "o-", color=color(index), label=words.label(run))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylabel("validation accuracy")
        _legend_below(axes, 1)

    return drawing(draw)


def _accuracy(axes: Axes, run: Run) -> None:
    rounds, mean = evaluated(run, "accuracy")
    _, per_site = evaluated(run, "accuracy_per_client")
    names = list(
        run.metrics[-1].get("test_accuracy_per_client")
        or [c["name"] for c in run.privacy["clients"]]
    )
    if per_site and len(names) <= 7:
        for index, name in enumerate(names):
            values = [row[index] if row[index] is not None else np.nan for row in per_site]
            axes.plot(
                rounds,
                values,
                "o-",
                color=color(index + 1),
                label=name,
                linewidth=1.2,
                markersize=3,
            )
    axes.plot(rounds, mean, "o-", color=color(0), label="all sites", linewidth=2.6)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("validation accuracy")
    _legend_below(axes, 3)


def _epsilon(axes: Axes, run: Run) -> None:
    rounds = [line["round_index"] + 1 for line in run.metrics]
    axes.plot(
        [0, *rounds],
        [0.0, *(line["epsilon"] for line in run.metrics)],
        color=color(0),
        label="spent",
    )
    if run.privacy["budget"]:
        axes.axhline(run.privacy["budget"], color=INK, linestyle="--", linewidth=1, label="budget")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("epsilon spent (largest site)")
    _legend_below(axes, 2)


def _bytes(axes: Axes, run: Run) -> None:
    rounds = [line["round_index"] + 1 for line in run.metrics]
    for index, (field, label) in enumerate(
        (("bytes_up", "sent to the server"), ("bytes_down", "received"))
    ):
        total = np.cumsum([line[field] for line in run.metrics]) / 1e6
        axes.plot(
            [0, *rounds],
            [0, *total],
            color=color(index),
            linestyle=("-", "--")[index],
            label=label,
        )
    axes.set_ylabel("megabytes, all sites")
    axes.set_ylim(bottom=0)
    _legend_below(axes, 2)


def _norms(axes: Axes, run: Run) -> None:
    rounds = [line["round_index"] + 1 for line in run.metrics]
    moved = [drawn(line["update_norm"]) for line in run.metrics]
    axes.plot(rounds, moved, color=color(0), label="mean update")
    mean = [
        np.mean([drawn(norm) for norm in line["client_update_norms"]] or [0])
        for line in run.metrics
    ]
    axes.plot(rounds, mean, color=color(1), linestyle="--", label="one site's update, on average")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("L2 norm of the update")
    _legend_below(axes, 2)


def _clipped(axes: Axes, run: Run) -> None:
    rounds = [line["round_index"] + 1 for line in run.metrics]
    axes.plot(rounds, [drawn(line["clipped_share"]) for line in run.metrics], color=color(0))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(f"share of {words.units(run)} clipped")


def _partition(axes: Axes, run: Run) -> None:
    class_bars(axes, run, color)
    if len(run.folder.read_json("partition.json")["class_names"]) <= 8:
        _legend_below(axes, 4)


def class_bars(axes: Axes, run: Run, color_of: Callable[[int], str]) -> None:
    """Draws how many examples of each class each site has, of the first of many sites."""
    table = run.folder.read_json("partition.json")
    shown = table["clients"][:MOST_BARS]
    counts = np.array([site["examples_per_class"] for site in shown])
    place, left = np.arange(len(shown)), np.zeros(len(shown))
    for index, label in enumerate(table["class_names"]):
        part, name = counts[:, index], literal(label)
        axes.barh(place, part, left=left, height=0.7, color=color_of(index), label=name)
        left += part
    if len(shown) <= 25:
        axes.set_yticks(place, [literal(site["name"]) for site in shown])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    some = "" if len(shown) == len(table["clients"]) else f" of the first {MOST_BARS} sites"
    axes.set_xlabel(f"examples{some} (training, validation and test)")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def drawing(draw: Callable[[Axes], None], size: tuple[float, float] = (5.2, 3.3)) -> str:
    """Runs a drawing function on fresh axes and returns SVG that the page can colour."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if not axes.get_xlabel():
            axes.set_xlabel("round")
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        buffer = io.StringIO()
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    for index, color in enumerate(LINES):
        text = text.replace(color, f"var(--line{index})")
    return re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text).replace(
        'width="', 'data-width="', 1
    )


def drawn(value: float | None) -> float:
    """Returns the value, or a gap where a figure was not finite."""
    return float("nan") if value is None else value


def evaluated(run: Run, field: str) -> tuple[list[int], list]:
    """Returns the rounds, from 1 on, that were evaluated, and what a figure was there."""
    lines = [line for line in run.metrics if line.get(field) is not None]
    return [line["round_index"] + 1 for line in lines], [line[field] for line in lines]


def _legend_below(axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    labels = [literal(label) for label in labels]
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def literal(text: str) -> str:
    """Returns a name as a label: a short line, whose dollar signs matplotlib does not read as mathematics."""
    line = " ".join(text.split())
    line = line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}\u2026"
    return line.replace("$", r"\$")


def color(index: int) -> str:
    """Returns the stand-in of a line's colour."""
    return LINES[index % len(LINES)]
