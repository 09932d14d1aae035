"""Pictures of searches: two settings against each other, or one with its interval over the repetitions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter

from ffalora_jax.errors import InputError, nearest, one_of
from ffalora_jax.plots import _axes
from ffalora_jax.report import words
from ffalora_jax.sweep_results import Interval, best_of
from ffalora_jax.sweeps import Sweep

SHOWN = {
    "validation_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "epsilon": "epsilon of a run",
    "bytes_per_client": "bytes sent and received by a site",
    "seconds": "seconds in the rounds of a run",
}
"""What may be drawn, and how it is called."""


def grid(
    sweep: Sweep, x: str, y: str, value: str = "validation_accuracy", ax: Axes | None = None
) -> Axes:
    """Draws two settings of a search against each other, with the value written into each cell.

    A cell is the mean over the repetitions; where further settings were varied, of the combination that is
    best by validation. Darker is more. An empty cell was not tried, or all its runs failed or were refused.

    Args:
        sweep: a search that varied both settings.
        x: setting across, like ``method.rank``.
        y: setting upwards.
        value: validation_accuracy, test_accuracy, epsilon, bytes_per_client or seconds.
        ax: axes to draw on; left out, those of a new figure.

    Raises:
        InputError: a setting that was not varied, the same one twice, another value.
    """
    if x == y:
        raise InputError(f"Expected two different settings for x and y, got {x!r} twice.")
    across, up = _values(sweep, x), _values(sweep, y)
    one_of(SHOWN, value=value)
    cells = np.array([[_mean(_best(sweep, {x: a, y: b}), value) for a in across] for b in up])
    ax = _axes.axes_of(ax)
    ax.grid(visible=False)
    colors = LinearSegmentedColormap.from_list("ffalora_jax", ["#eef4f3", _axes.COLORS[0]])
    ax.imshow(cells, cmap=colors, origin="lower", aspect="auto")
    low, high = (np.nanmin(cells), np.nanmax(cells)) if np.isfinite(cells).any() else (0.0, 1.0)
    for row, column in np.ndindex(cells.shape):
        found = float(cells[row, column])
        if math.isfinite(found):
            dark = found > low + 0.55 * (high - low)
            paint = "white" if dark else _axes.INK
            ax.text(column, row, _written(found, value), ha="center", va="center", color=paint)
    ax.set_xticks(range(len(across)), [_axes.value(one) for one in across])
    ax.set_yticks(range(len(up)), [_axes.value(one) for one in up])
    ax.set(xlabel=_axes.short(x), ylabel=_axes.short(y), title=SHOWN[value])
    return ax


def lines(
    sweep: Sweep,
    x: str,
    by: str | None = None,
    value: str = "test_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """Draws a setting against what came of it: means over the repetitions, bars their 95 % intervals.

    Where further settings were varied, a point is the combination that is best by validation. Student's t,
    as in the search's table: of one repetition there is no interval, of two it says next to nothing.

    Args:
        sweep: a search that varied the settings.
        x: setting across; numbers far apart are drawn by their logarithms.
        by: setting that has a line for each of its values.
        value: as in ``grid``.
        ax: as in ``grid``.

    Raises:
        InputError: as ``grid``.
    """
    if x == by:
        raise InputError(f"Expected two different settings for x and by, got {x!r} twice.")
    one_of(SHOWN, value=value)
    across, kinds = _values(sweep, x), [None] if by is None else _values(sweep, by)
    places = across if _are_numbers(across) else range(len(across))
    ax = _axes.axes_of(ax)
    for index, kind in enumerate(kinds):
        fixed = {} if by is None else {by: kind}
        found = [_interval(_best(sweep, {x: one, **fixed}), value) for one in across]
        label = None if by is None else f"{_axes.short(by)} {_axes.value(kind)}"
        _with_bars(ax, places, found, label, index)
    _across(ax, x, across)
    if value.endswith("accuracy"):
        _axes.share(ax, SHOWN[value])
        # An interval of few repetitions may pass what an accuracy can be.
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, 0.0), min(high, 1.0))
    else:
        ax.set_ylabel(SHOWN[value])
        ax.yaxis.set_major_formatter(FuncFormatter(lambda found, _: _written(found, value)))
    _axes.legend(ax)
    return ax


def _with_bars(
    ax: Axes, places: Sequence, found: Sequence[Interval], label: str | None, index: int
) -> None:
    shown = [(p, i) for p, i in zip(places, found, strict=True) if i.mean is not None]
    if not shown:
        return
    at, means = [p for p, _ in shown], np.array([i.mean for _, i in shown], float)
    ax.plot(at, means, label=label, **_axes.style(index))
    bars = [(p, i.low, i.high) for p, i in shown if i.low is not None]
    if bars:
        ax.vlines(
            *zip(*bars, strict=True), color=_axes.color(index), linewidth=3 - index % 3, alpha=0.5
        )


def _across(ax: Axes, x: str, across: Sequence) -> None:
    """Names the horizontal axis and writes the tried values on it."""
    numbers = _are_numbers(across)
    if numbers and _axes.far_apart(across):
        ax.set_xscale("log")
    ax.set_xticks(across if numbers else range(len(across)), [_axes.value(one) for one in across])
    ax.minorticks_off()
    ax.set_xlabel(_axes.short(x))


def _values(sweep: Sweep, name: str) -> list[Any]:
    """Returns what a setting was, numbers in order, words as they came.

    Raises:
        InputError: the search did not vary it.
    """
    trials = sweep.summary["trials"]
    there = list(trials[0]["settings"]) if trials else []
    if name not in there:
        raise InputError(
            f"This search did not vary {name!r}: choose from {', '.join(there) or 'nothing'}."
            f"{nearest(name, there)}"
        )
    found = list(dict.fromkeys(trial["settings"][name] for trial in trials))
    return sorted(found) if _are_numbers(found) else found


def _are_numbers(values: Sequence) -> bool:
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def _best(sweep: Sweep, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the best combination, by validation, of those with these settings; None if all failed."""
    return best_of(
        [t for t in sweep.summary["trials"] if settings.items() <= t["settings"].items()]
    )


def _interval(trial: dict[str, Any] | None, value: str) -> Interval:
    if trial is None or trial[value] is None:
        return Interval(None, None, None)
    found = trial[value]
    return Interval(**found) if isinstance(found, dict) else Interval(found, None, None)


def _mean(trial: dict[str, Any] | None, value: str) -> float:
    mean = _interval(trial, value).mean
    return math.nan if mean is None else mean


def _written(found: float, value: str) -> str:
    if value.endswith("accuracy"):
        return words.percent(found)
    if value == "bytes_per_client":
        return words.size(found)
    return words.duration(found) if value == "seconds" else words.number(found)
