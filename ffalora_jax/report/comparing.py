"""What several runs side by side teach, as far as their settings and figures say it."""

import math
from collections.abc import Sequence

from ffalora_jax.experiment_file import unlike
from ffalora_jax.loaded_run import Run
from ffalora_jax.report.words import Row, row

SAME = ("data.", "partition.", "model.", "seed", "local_steps", "batch_size")
"""Settings, by how they begin, that have to agree for runs to be held against each other at all."""
MOVED = ("name", "method.name", "privacy.")
"""Those that a comparison is about, by how they begin."""
NO_MATTER = (
    *("noise_seed", "rounds", "client_chunk", "client_data", "packing", "prefix_cache", "mesh"),
    *("evaluate_every", "max_validation", "model.remat", "model.scan_layers", "monitor."),
)
"""Those that change no figure, or what is seen below: how many rounds were made."""


def comparable(runs: Sequence[Run]) -> bool:
    """Whether the runs have the same data, model, seed, and number of steps."""

    def facts(run: Run) -> tuple:
        source = run.folder.read_json("environment.json")["data_source"]
        return source, len(run.metrics)

    same = not any(name.startswith(SAME) for name in _unlike(runs))
    return same and all(facts(run) == facts(runs[0]) for run in runs)


def _unlike(runs: Sequence[Run]) -> list[str]:
    return unlike([run.experiment for run in runs], NO_MATTER)


def comparison(runs: Sequence[Run]) -> str:
    """What the compared runs teach, as far as the figures say it."""
    if not comparable(runs):
        return (
            "These runs differ in their data, model, seed or number of steps: read each for itself, not "
            "against the others."
        )
    said = [*_privacy_cost(runs), *_against_plain(runs)]
    others = [name for name in _unlike(runs) if not name.startswith(MOVED)]
    if others:
        said.append(
            f"Beside method and privacy they differ in {', '.join(others)}: part of what is seen may come "
            "from that."
        )
    said.append("These are single runs of one seed: differences of a few points may be chance.")
    return " ".join(said)


def _only(runs: Sequence[Run], method: str, private: bool) -> tuple[Run, Row] | None:
    """Returns the one scored run of a method with or without privacy; None of several or none."""
    found = [
        (run, facts)
        for run in runs
        if run.experiment.method.name == method
        and (run.epsilon is not None) == private
        and (facts := row(run)).accuracy is not None
    ]
    return found[0] if len(found) == 1 else None


def _privacy_cost(runs: Sequence[Run]) -> list[str]:
    private, open_ = _only(runs, "ffa_lora", True), _only(runs, "ffa_lora", False)
    if private is None or open_ is None:
        return []
    cost = _points(open_[1].accuracy, private[1].accuracy)
    if cost <= 0:
        return ["Privacy cost no accuracy here."]
    return [f"Privacy cost {cost:.1f} points of accuracy."]


def _against_plain(runs: Sequence[Run]) -> list[str]:
    ours, plain = _only(runs, "ffa_lora", True), _only(runs, "fedavg_lora", True)
    if ours is None or plain is None:
        return []
    gain = _points(ours[1].accuracy, plain[1].accuracy)
    sent = plain[1].bytes_total
    share = ours[1].bytes_total / sent if sent else 1.0
    under = "Under the same privacy" if _same_privacy(ours, plain) else "Under another privacy"
    word = "more" if gain >= 0 else "less"
    return [
        f"{under} FFA-LoRA sends {share:.0%} of what plain LoRA sends and reaches {abs(gain):.1f} points "
        f"{word}."
    ]


def _points(one: float | None, other: float | None) -> float:
    """Percentage points between two shares as the table prints them: a reader's subtraction agrees."""
    return round(100 * (one or 0.0), 1) - round(100 * (other or 0.0), 1)


def _same_privacy(one: tuple[Run, Row], other: tuple[Run, Row]) -> bool:
    units = [run.privacy["unit"] for run, _ in (one, other)]
    epsilons = [facts.epsilon or 0.0 for _, facts in (one, other)]
    same = units[0] == units[1] and one[1].delta == other[1].delta
    return same and math.isclose(*epsilons, rel_tol=0.02)
