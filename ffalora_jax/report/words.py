"""The report's sentences and numbers, in words that need no knowledge of LoRA."""

import math
from typing import NamedTuple

from ffalora_jax.loaded_run import Run

METHOD_NAMES = {
    "ffa_lora": "FFA-LoRA",
    "fedavg_lora": "plain LoRA (FedAvg)",
    "freeze_b": "freeze B",
    "local_only": "each site alone",
    "centralized": "all data in one place",
}


class Row(NamedTuple):
    """One run in the comparison table."""

    label: str
    accuracy: float | None
    majority: float | None
    epsilon: float | None
    delta: float | None
    bytes_per_client: float
    bytes_total: int
    seconds: float
    rounds: int


class Site(NamedTuple):
    """One site in the table of sites."""

    name: str
    examples: int
    accuracy: float | None
    epsilon: float | None
    noise_multiplier: float
    bytes_total: int


def percent(value: float | None) -> str:
    """Formats a share."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def number(value: float | None, digits: int = 2) -> str:
    """Formats a real number."""
    return "–" if value is None else f"{value:.{digits}f}"


def small(value: float) -> str:
    """Formats a tiny probability: 1e-5."""
    return f"{value:.3g}".replace("e-0", "e-")


def size(count: float) -> str:
    """Formats a number of bytes in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 999.5 else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Formats a time span."""
    if 0 < seconds < 0.095:
        return f"{1000 * seconds:.2g} ms" if seconds >= 1e-3 else "under 1 ms"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def label(run: Run) -> str:
    """Names a run by its method and its privacy."""
    name = run.experiment.method.name
    method = METHOD_NAMES.get(name, name)
    return (
        f"{method}, no privacy" if run.epsilon is None else f"{method}, epsilon {run.epsilon:.3g}"
    )


def row(run: Run) -> Row:
    """Returns a run's line in the comparison."""
    last, sent = run.metrics[-1], run.communication
    return Row(
        label=label(run),
        accuracy=last.get("test_accuracy"),
        majority=last.get("majority_accuracy"),
        epsilon=run.epsilon,
        delta=run.privacy["delta"],
        bytes_per_client=sent["bytes_total"] / num_clients(run),
        bytes_total=sent["bytes_total"],
        seconds=run.seconds,
        rounds=len(run.metrics),
    )


def num_clients(run: Run) -> int:
    """Returns how many sites there are, of which many alike share a line."""
    return run.privacy.get("num_clients", len(run.privacy["clients"]))


def sites(run: Run) -> list[Site]:
    """Returns a line for each site that trained, or for all of many that are alike."""
    accuracies = run.metrics[-1].get("test_accuracy_per_client") or {}
    sent = {
        one["name"]: one["bytes_up"] + one["bytes_down"] for one in run.communication["clients"]
    }
    average = run.communication["bytes_total"] / num_clients(run)
    return [
        Site(
            one["name"],
            one["num_examples"],
            accuracies.get(one["name"]),
            one["epsilon"],
            one["noise_multiplier"],
            sent.get(one["name"], average),
        )
        for one in run.privacy["clients"]
    ]


def answer(run: Run) -> str:
    """The whole result in one sentence."""
    facts, who, what = row(run), _who(run), things(run)
    if facts.accuracy is None:
        return f"{who} trained for {facts.rounds} rounds; the run has not reached its final evaluation."
    if diverged(run):
        return (
            f"{who} trained for {facts.rounds} rounds, and the run diverged: its updates or outputs are "
            "no longer finite, or beyond all reason. Lower optimizer.learning_rate."
        )
    gained = f"{who} trained {_what(run)} that {_success(run, facts, what)}"
    traffic = f"it cost {size(facts.bytes_per_client)} sent and received per site"
    if run.experiment.method.name == "centralized":
        traffic = "all data had to be moved there"
    if facts.epsilon is None or facts.delta is None:
        return f"{gained}; nothing is protected by noise, and {traffic}."
    whole = run.privacy["unit"] == "client"
    protected = (
        f"every whole site with all its {what}" if whole else f"every single training {what[:-1]}"
    )
    return (
        f"{gained}; {protected} is protected with epsilon {facts.epsilon:.2f} "
        f"(delta {small(facts.delta)}), and {traffic}."
    )


DIVERGED_LOSS = 1e4
"""Nats; guessing over 100,000 classes costs 11.5."""


def diverged(run: Run) -> bool:
    """Whether outputs, updates or a quarter of the gradients are not finite, or the loss is beyond reason."""
    lines = run.metrics
    if not lines:
        return False
    loss = lines[-1].get("test_loss", 0.0)
    drawn, broken = (sum(line[name] or 0 for line in lines) for name in ("drawn", "broken"))
    norms = [norm for line in lines for norm in (line["update_norm"], *line["client_update_norms"])]
    lost = None in norms or 4 * broken > drawn > 0
    return loss is None or loss > DIVERGED_LOSS or lost


def _who(run: Run) -> str:
    count = num_clients(run)
    if run.experiment.method.name == "centralized":
        return "One place that holds all the data"
    if count == 1:
        return "One site"
    return f"{_count_word(count)} sites that keep their {things(run)} to themselves"


def success(run: Run) -> str:
    """Says what the accuracy is a share of, beside what the commonest class would give."""
    what = things(run)
    if what == "examples":
        return "of the tokens of unseen responses predicted"
    return f"right on unseen {what} (commonest class: {percent(row(run).majority)})"


def _what(run: Run) -> str:
    return "a model each" if run.experiment.method.name == "local_only" else "one model"


def units(run: Run) -> str:
    """Names what is clipped one by one: sites where whole sites are protected, else examples."""
    return "sites" if run.privacy["unit"] == "client" else "examples"


def things(run: Run) -> str:
    """Names what the data are made of."""
    kind = run.folder.read_json("environment.json")["data_kind"]
    return {"text": "texts", "images": "images", "instructions": "examples"}[kind]


def _success(run: Run, facts: Row, what: str) -> str:
    if facts.majority is not None:
        return (
            f"classifies {percent(facts.accuracy)} of unseen {what} correctly{judged(run, ' ({})')}, where "
            f"always naming each site's commonest class gives {percent(facts.majority)}"
        )
    return (
        f"predicts {percent(facts.accuracy)} of the tokens of unseen responses{judged(run, '; {}')}"
    )


def judged(run: Run, form: str) -> str:
    """Puts the task's own figure into ``form``; empty where accuracy is all there is."""
    found = run.metrics[-1].get("test_metrics") or {}
    if "exact_match" in found:
        low, high = (percent(found[f"exact_match_{end}"]) for end in ("low", "high"))
        right = percent(found["exact_match"])
        return form.format(f"exact match of answers {right} (95 % interval {low} to {high})")
    for name, called in {"f1": "F1", "matthews": "Matthews correlation"}.items():
        if name in found:
            return form.format(f"{called} {number(found[name], 3)}")
    return ""


def _count_word(count: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
    return words[count] if count < len(words) else f"{count:,}"
