"""Pictures of runs: over the rounds, over what was spent, and site by site."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ffalora_jax.errors import InputError
from ffalora_jax.loaded_run import Run
from ffalora_jax.plots import _axes
from ffalora_jax.report import figures, words
from ffalora_jax.sweeps import Sweep

Runs = Run | Sequence[Run] | Sweep
VALIDATION = "validation accuracy"


def accuracy(runs: Runs, ax: Axes | None = None, labels: Sequence[str] | None = None) -> Axes:
    """Draws validation accuracy by round, a line a run, and what guessing would give.

    Args:
        runs: a run, several, or a search (the first run of each combination).
        ax: axes to draw on; left out, those of a new figure.
        labels: names of the runs; left out, what tells them apart.

    Raises:
        InputError: no run, one without a finished round, another number of labels.
    """
    found = _axes.runs_of(runs)
    names = _axes.names_of(found, labels)
    ax = _axes.axes_of(ax)
    for index, (run, name) in enumerate(zip(found, names, strict=True)):
        ax.plot(*figures.evaluated(run, "accuracy"), label=name, **_axes.style(index))
    guessing = {run.metrics[-1].get("majority_accuracy") for run in found}
    level = guessing.pop() if len(guessing) == 1 else None
    if level is not None:
        ax.axhline(level, color=_axes.INK, linestyle=":", label="always the site's commonest class")
    _axes.by_round(ax)
    _axes.share(ax, VALIDATION)
    _axes.legend(ax)
    return ax


def privacy(runs: Runs, ax: Axes | None = None, labels: Sequence[str] | None = None) -> Axes:
    """Draws validation accuracy against the epsilon spent so far; runs without privacy as dashed levels.

    Budgets far apart are drawn by their logarithms.

    Args:
        runs: a run, several, or a search; at least one of them private.
        ax: as in ``accuracy``.
        labels: as in ``accuracy``.

    Raises:
        InputError: as ``accuracy``, or no run spends an epsilon.
    """
    found = _axes.runs_of(runs)
    names = _axes.names_of(found, labels)
    if all(run.epsilon is None for run in found):
        raise InputError(
            "Expected a run with an epsilon, got none that spends any: set privacy.mechanism, or use "
            "ffa.plot.accuracy."
        )
    ax = _axes.axes_of(ax)
    for index, (run, name) in enumerate(zip(found, names, strict=True)):
        if run.epsilon is None:
            _, values = figures.evaluated(run, "accuracy")
            if len(values):
                ax.axhline(values[-1], color=_axes.color(index), linestyle="--", label=name)
            continue
        lines = [line for line in run.metrics if line.get("accuracy") is not None]
        spent = [line["epsilon"] for line in lines]
        ax.plot(spent, [line["accuracy"] for line in lines], label=name, **_axes.style(index))
    ax.set_xlabel("epsilon spent (largest site)")
    if _axes.far_apart([run.epsilon for run in found if run.epsilon]):
        _axes.by_powers(ax)
    else:
        ax.set_xlim(left=0)
    _axes.share(ax, VALIDATION)
    _axes.legend(ax)
    return ax


def traffic(runs: Runs, ax: Axes | None = None, labels: Sequence[str] | None = None) -> Axes:
    """Draws validation accuracy against what a site has sent and received so far, in kB or MB.

    Args:
        runs: as in ``accuracy``; bytes are means over all sites, those that sat out included.
        ax: as in ``accuracy``.
        labels: as in ``accuracy``.

    Raises:
        InputError: as ``accuracy``.
    """
    found = _axes.runs_of(runs)
    names = _axes.names_of(found, labels)
    ax = _axes.axes_of(ax)
    most = max(words.row(run).bytes_per_client for run in found)
    unit, name_of_unit = (1e6, "MB") if most >= 1e6 else (1e3, "kB")
    for index, (run, name) in enumerate(zip(found, names, strict=True)):
        each = [line["bytes_up"] + line["bytes_down"] for line in run.metrics]
        total = np.cumsum(each) / words.num_clients(run) / unit
        points = [(x, line["accuracy"]) for x, line in zip(total, run.metrics, strict=True)]
        points = [(x, y) for x, y in points if y is not None]
        ax.plot(*zip(*points, strict=True), label=name, **_axes.style(index))
    ax.set_xlabel(f"{name_of_unit} sent and received by a site")
    ax.set_xlim(left=0)
    _axes.share(ax, VALIDATION)
    _axes.legend(ax)
    return ax


def sites(runs: Runs, ax: Axes | None = None, labels: Sequence[str] | None = None) -> Axes:
    """Draws test accuracy site by site, a bar a run, with a stroke at the share of its commonest class.

    Args:
        runs: finished runs over the same sites; the strokes are the first one's, over all its examples.
        ax: as in ``accuracy``.
        labels: as in ``accuracy``.

    Raises:
        InputError: as ``accuracy``; a run that has not ended, or one over other sites.
    """
    found = _axes.runs_of(runs)
    names = _axes.names_of(found, labels)
    scores = [_by_site(run) for run in found]
    there = list(scores[0])
    if any(list(one) != there for one in scores):
        raise InputError(
            f"Expected runs over the same sites ({', '.join(there)}): draw the others by themselves."
        )
    ax = _axes.axes_of(ax)
    place, width = np.arange(len(there)), 0.8 / len(found)
    for index, (score, name) in enumerate(zip(scores, names, strict=True)):
        left = place + (index - (len(found) - 1) / 2) * width
        heights = np.array([score[site] for site in there], float)  # None: a gap
        ax.bar(left, heights, width, color=_axes.color(index), label=name)
    commonest = _commonest(found[0], there)
    if commonest:
        ax.hlines(
            commonest, place - 0.45, place + 0.45, color=_axes.INK, label="its commonest class"
        )
    ax.set_xticks(place, [figures.literal(site) for site in there])
    ax.grid(visible=False, axis="x")
    ax.set_xlabel("site")
    ax.set_ylim(0, 1)
    _axes.share(ax, "test accuracy")
    _axes.legend(ax)
    return ax


def _by_site(run: Run) -> dict[str, float | None]:
    found = run.metrics[-1].get("test_accuracy_per_client")
    if not found:
        raise InputError(
            f"The run in {run.path} has no test accuracy by site, expected a run that ended with few enough "
            "sites to name them: ffa.resume goes on."
        )
    return found


def _commonest(run: Run, there: Sequence[str]) -> list[float]:
    """Shares of each site's commonest class; nothing where there are no classes."""
    table = {
        one["name"]: one.get("examples_per_class")
        for one in run.folder.read_json("partition.json")["clients"]
    }
    counts = [table.get(site) for site in there]
    return [max(one) / sum(one) for one in counts if one] if all(counts) else []


def classes(run: Run, ax: Axes | None = None) -> Axes:
    """Draws how many examples of each class each site has: training, validation and test together.

    Args:
        run: one run of a classifier.
        ax: as in ``accuracy``.

    Raises:
        InputError: as ``accuracy``, or examples without classes.
    """
    (run,) = _axes.runs_of(run)
    if run.kind == "instructions":
        raise InputError(
            f"The run in {run.path} learns responses, expected one with classes to count."
        )
    ax = _axes.axes_of(ax)
    figures.class_bars(ax, run, _axes.color)
    _axes.legend(ax, 4)
    return ax
