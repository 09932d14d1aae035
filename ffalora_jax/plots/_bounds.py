"""Pictures of what bounds and noise do: how much was clipped, and signal beside noise."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ffalora_jax import registry, schedules
from ffalora_jax.errors import InputError
from ffalora_jax.loaded_run import Run
from ffalora_jax.plots import _axes
from ffalora_jax.report import figures, words
from ffalora_jax.sweeps import Sweep

PLAIN = ("dp_sgd", "dp_fedavg")
"""Mechanisms whose noise on a sum has stddev noise_multiplier * clip_norm in every number, step by step."""


def clipping(
    runs: Run | Sequence[Run] | Sweep, ax: Axes | None = None, labels: Sequence[str] | None = None
) -> Axes:
    """Draws by round which share of the contributions (examples, or whole sites) was above the clip norm.

    Args:
        runs: as in ``accuracy``.
        ax: as in ``accuracy``.
        labels: as in ``accuracy``.

    Raises:
        InputError: as ``accuracy``, or runs that keep this figure out of their files.
    """
    found = _axes.runs_of(runs)
    names = _axes.names_of(found, labels)
    for run in found:
        _check_told(run)
    ax = _axes.axes_of(ax)
    for index, (run, name) in enumerate(zip(found, names, strict=True)):
        shares = [figures.drawn(line["clipped_share"]) for line in run.metrics]
        ax.plot(_rounds(run), shares, label=name, **_axes.style(index))
    _axes.by_round(ax)
    ax.set_ylim(0, 1.03)
    _axes.share(ax, f"share of {words.units(found[0])} clipped")
    _axes.legend(ax)
    return ax


def norms(run: Run, ax: Axes | None = None) -> Axes:
    """Draws how long one contribution is, what it is cut to, and the noise that is added, as L2 norms.

    A step's mean has noise of expected norm noise_multiplier * clip_norm * sqrt(trained numbers) / expected
    batch (Gaussian, so nearly exact); whole sites: a round's mean, over the expected cohort. The signal in
    that mean is at most the clip norm. The noise is left out where it is not of that form: mechanisms other
    than dp_sgd and dp_fedavg, methods that train parts in turn, sites with batches of their own.

    Args:
        run: one run; of sites with unequal noise the loudest is shown.
        ax: as in ``accuracy``.

    Raises:
        InputError: as ``clipping``.
    """
    (run,) = _axes.runs_of(run)
    _check_told(run)
    ax = _axes.axes_of(ax)
    rounds, whole = _rounds(run), run.privacy["unit"] == "client"
    given = [
        _mean_update(line) if whole else figures.drawn(line["gradient_norm"])
        for line in run.metrics
    ]
    what = "a site's update" if whole else "an example's gradient"
    ax.plot(rounds, given, label=f"{what}, mean", **_axes.style(0))
    if run.privacy["unit"] is not None:
        bound = _clip_norms(run)
        ax.plot(rounds, bound, color=_axes.INK, linestyle="--", label="clip norm")
        noise = _noise(run, bound)
        if noise is not None:
            of = "a round" if whole else "a step"
            ax.plot(rounds, noise, label=f"noise in the mean of {of}", **_axes.style(1))
    _axes.by_round(ax)
    ax.set_ylim(bottom=0)
    ax.set_ylabel("L2 norm")
    _axes.legend(ax)
    return ax


def _rounds(run: Run) -> list[int]:
    return [line["round_index"] + 1 for line in run.metrics]


def _mean_update(line: dict) -> float:
    return float(np.mean([figures.drawn(norm) for norm in line["client_update_norms"]] or [np.nan]))


def _check_told(run: Run) -> None:
    if run.experiment.monitor.private:
        raise InputError(
            f"The run in {run.path} leaves out what looks at data without noise (monitor.private = true), "
            "expected its clipped shares and norms: run it with monitor.private = false to see them."
        )


def _factors(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Returns the schedules' factors on clip norm and noise multiplier, one each a round that was made."""
    rates, count = schedules.rates_of(run.experiment), len(run.metrics)
    if rates is None:
        return np.ones(count), np.ones(count)
    which = np.minimum(np.arange(count), len(rates.noise) - 1)  # the last one stays
    return np.asarray(rates.clip_norm)[which], np.asarray(rates.noise)[which]


def _clip_norms(run: Run) -> np.ndarray:
    """The clip norm by round: as it adapted, else as scheduled."""
    planned = run.privacy["clip_norm"] * _factors(run)[0]
    told = [line.get("clip_norm") for line in run.metrics]
    return planned if None in told else np.array(told)


def _noise(run: Run, bound: np.ndarray) -> np.ndarray | None:
    """Norm of the noise in a mean, by round, of the loudest site; None where it has another form."""
    settings = run.experiment
    method = registry.lookup("methods", settings.method.name)()
    in_parts = method.phases or method.local_parts or settings.method.freeze != "none"
    if settings.privacy.mechanism not in PLAIN or in_parts or settings.sites.is_set:
        return None
    whole = run.privacy["unit"] == "client"
    cohort = settings.cohort_size or run.privacy["num_clients"]
    divisor = cohort if whole else settings.batch_size
    loudest = max(site["noise_multiplier"] for site in run.privacy["clients"])
    numbers = run.folder.read_json("environment.json")["trained_parameters"]
    return loudest * _factors(run)[1] * bound * np.sqrt(numbers) / divisor
