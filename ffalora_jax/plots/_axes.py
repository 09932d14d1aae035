"""What all pictures share: axes, colours, names of runs, and what may be given to be drawn."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import flat_settings, unlike
from ffalora_jax.loaded_run import Run, load_run
from ffalora_jax.report import figures, words
from ffalora_jax.sweeps import Sweep

COLORS = (
    "#0b6e66",
    "#c2571a",
    "#4a5fc1",
    "#a83279",
    "#7a8b00",
    "#8c564b",
    "#2f8fb5",
    "#6b6b6b",
)
"""The report's, on its light page; line styles and markers repeat what they say."""
INK, FAINT = "#1d2329", "#c3c8ce"
MARKERS = "osD^vPX*"
SIZE = (5.6, 3.4)
"""Inches: two side by side fit a page."""
SPREAD = 8
"""Numbers that lie further apart than by this factor are drawn by their logarithms."""


def axes_of(ax: Axes | None) -> Axes:
    """Returns the given axes, or those of a new figure that a notebook shows, without what distracts."""
    if ax is None:
        from matplotlib import pyplot  # chooses a window system, so not before somebody draws

        _, ax = pyplot.subplots(figsize=SIZE, layout="constrained")
    assert ax is not None
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color=FAINT, alpha=0.5, linewidth=0.6)
    ax.set_axisbelow(True)
    return ax


def color(index: int) -> str:
    """Returns the colour of the i-th line."""
    return COLORS[index % len(COLORS)]


def style(index: int) -> dict[str, Any]:
    """Returns how the i-th line looks: colour and marker, so that neither alone has to be told apart."""
    return {
        "color": color(index),
        "marker": MARKERS[index % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


def runs_of(given: Run | Sequence[Run] | Sweep) -> list[Run]:
    """Returns the runs to draw; of a search the first run of each combination.

    Raises:
        InputError: none, or one without a finished round.
    """
    if isinstance(given, Sweep):
        first = {row["trial"]: row for row in reversed(given.rows) if row.get("folder")}
        given = [load_run(given.path / first[trial]["folder"]) for trial in sorted(first)]
    runs = [given] if isinstance(given, Run) else list(given)
    if not runs:
        raise InputError("Expected at least one run to draw, got none: make one with ffa.simulate.")
    for run in runs:
        if not run.metrics:
            raise InputError(
                f"The run in {run.path} has no finished round yet, expected one: ffa.resume goes on."
            )
    return runs


def names_of(runs: Sequence[Run], labels: Sequence[str] | None = None) -> list[str]:
    """Returns a name a run: as given, else method and privacy if they tell the runs apart, else what does.

    Raises:
        InputError: another number of labels than of runs.
    """
    if labels is not None:
        if len(labels) != len(runs):
            raise InputError(
                f"Expected a label a run, {len(runs)} of them, got {len(labels)}: leave labels out to have "
                "them named by what differs."
            )
        return [figures.literal(label) for label in labels]
    plain = [words.label(run) for run in runs]
    if len(set(plain)) < len(runs):
        plain = _by_difference(runs)
    return [figures.literal(name) for name in plain]


def _by_difference(runs: Sequence[Run]) -> list[str]:
    """Names runs by the settings in which they differ, or by their folders."""
    every = [flat_settings(run.experiment) for run in runs]
    names = unlike([run.experiment for run in runs], ("name", "noise_seed"))
    named = [", ".join(f"{short(name)} {value(one[name])}" for name in names) for one in every]
    return named if len(set(named)) == len(runs) else [run.path.name for run in runs]


def short(name: str) -> str:
    """Returns a setting's name for an axis: ``method.rank`` -> rank, ``method.name`` -> method."""
    return name.removesuffix(".name").rpartition(".")[2].replace("_", " ")


def value(found: Any) -> str:
    """Returns a setting's value for a label."""
    return f"{found:.4g}" if isinstance(found, float) else str(found)


def far_apart(numbers: Sequence[float]) -> bool:
    """Whether numbers above zero are to be drawn by their logarithms."""
    return bool(numbers) and min(numbers) > 0 and max(numbers) > SPREAD * min(numbers)


def by_powers(ax: Axes) -> None:
    """Draws the horizontal axis by logarithms, with plain numbers on it."""
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))


def by_round(ax: Axes) -> None:
    """Names the axis of rounds."""
    ax.set_xlabel("round")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def share(ax: Axes, label: str) -> None:
    """Names a vertical axis of shares, in per cent."""
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set_ylabel(label)


def legend(ax: Axes, columns: int = 2) -> None:
    """Puts the legend under the axes, where it covers nothing; none for a single unnamed thing."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, -0.2),
            ncols=columns,
            frameon=False,
            fontsize="small",
        )
