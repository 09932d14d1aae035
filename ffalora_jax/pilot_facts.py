"""Looks into a pilot's runs: accuracy by privacy, method, site and setting, traffic, time, cost."""

import math
from collections import Counter
from collections.abc import Mapping
from statistics import mean
from typing import Any

from ffalora_jax import pilot_rules, search_cost
from ffalora_jax.held_out import scored_rows
from ffalora_jax.loaded_run import Run
from ffalora_jax.pilot_course import (
    ALONE,
    METHODS,
    OPEN,
    RATE,
    Job,
    best_rate,
    first_repeat,
    settings_of,
)
from ffalora_jax.pilot_rules import Option
from ffalora_jax.piloting import Piloting, seconds_of_sites, validated
from ffalora_jax.report.times import RATES
from ffalora_jax.report.words import num_clients
from ffalora_jax.run_folder import RunFolder
from ffalora_jax.sweep_results import Interval, interval_of

SENSITIVE = ("methods", "rate", "init", "rank", "clip", "share")
"""Questions whose runs stand in the tornado."""


class Facts:
    """Looks into a pilot's rows."""

    def __init__(self, pilot: Piloting):
        self.pilot, self.experiment = pilot, pilot.experiment
        self.rows = {
            (a.job.changes, a.job.repeat): a.row
            for a in pilot.answers
            if a.row["status"] != "refused"
        }
        self.first_row = next(iter(self.rows.values()))
        self.main = self.settings(METHODS[0])

    @property
    def majority(self) -> float | None:
        """Accuracy of always naming each site's commonest class, on average over the repetitions."""
        rows = self.of(self.main).values() or [self.first_row]
        known = [m for row in rows if (m := row["majority_accuracy"]) is not None]
        return mean(known) if known else None

    def run(self, row: Mapping[str, Any]) -> Run:
        """Opens a run."""
        return Run(RunFolder(self.pilot.path / row["folder"]))

    def rate(self, method: str) -> float:
        """Returns the learning rate of the best score on the validation part, as the course takes it."""
        tried = [
            (answer.job.settings[RATE], validated(answer.row))
            for answer in self.pilot.answers
            if answer.job.question in ("methods", "rate")
            and answer.job.settings["method.name"] == method
        ]
        return best_rate(tried, self.experiment.optimizer.learning_rate)

    def of(self, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """Returns rows by repetition of what has just these settings.

        Repetition 0 chose the learning rate, so it is left out where there is another one.
        """
        changes = tuple(sorted(settings.items()))
        found = {repeat: row for (known, repeat), row in self.rows.items() if known == changes}
        first = first_repeat(self.pilot.asked.quick)
        return {repeat: row for repeat, row in found.items() if repeat >= first} or found

    def settings(self, method: str) -> dict[str, Any]:
        """Returns the settings a method was repeated with."""
        return settings_of(self.experiment, method, self.rate(method))

    def tested(self, method: str) -> dict[int, float]:
        """Returns accuracy on the test part by repetition."""
        return _tested(self.of(self.settings(method)))

    def option(self, method: str) -> Option:
        """Returns a method as the rules read it."""
        rows = self.of(self.settings(method))
        failed = sum(row["status"] == "failed" for row in rows.values())
        sizes = [row["bytes_per_client"] for row in rows.values()]
        return Option(method, _tested(rows), failed, mean(sizes) if sizes else 0.0)

    def about(self) -> dict[str, Any]:
        """Returns what was piloted."""
        run, settings = self.run(self.first_row), self.experiment
        environment = run.folder.read_json("environment.json")
        return {
            "data": environment["data_source"],
            "things": environment["data_kind"],
            "model": environment["model_source"],
            "sites": num_clients(run),
            "own_sites": settings.partition.name == "natural",
            "rounds": settings.rounds,
            "rank": settings.method.rank,
            "layers": settings.method.layers,
            "max_test": settings.max_test,
            "tested": sum(len(rows) for rows in scored_rows(self.pilot.first)),
            "mechanism": settings.privacy.mechanism,
            "unit": self.pilot.first.plan.unit,
            "epsilon": settings.privacy.budget,
            "delta": settings.privacy.delta,
            "deadline": settings.sites.deadline,
        }

    def privacy(self) -> list[dict[str, Any]]:
        """Returns accuracy by epsilon, without privacy first, then from weak to strong."""
        tried: dict[float | None, dict[str, Any]] = {self.experiment.privacy.budget: self.main}
        open_: list[tuple[float, float | None]] = []
        for answer in self.pilot.answers:
            named = answer.job.settings
            if answer.job.question != "privacy":
                continue
            if OPEN in answer.job.changes:
                open_ += [(named[RATE], validated(answer.row))] if answer.job.repeat == 0 else []
            else:
                tried[named["privacy.epsilon"]] = named
        if open_:
            tried[None] = self.main | dict([OPEN]) | {RATE: best_rate(open_, self.main[RATE])}
        order = sorted(tried, key=lambda e: float("inf") if e is None else e, reverse=True)
        return [
            {"epsilon": epsilon, "each": values, **few_hidden(values.values())}
            for epsilon in order
            if (values := _tested(self.of(tried[epsilon])))
        ]

    def method(self, name: str) -> dict[str, Any]:
        """Returns a method's accuracy, traffic, and time on lines."""
        option, rows = self.option(name), self.of(self.settings(name))
        sent = option.bytes_per_site if rows else self._expected_bytes(name)
        return {
            "method": name,
            "rate": self.rate(name),
            "failed": option.failed,
            "repetitions": len(rows),
            "bytes_per_site": sent,
            "accuracy": few_hidden(option.accuracy.values()),
            "simulated_seconds": self._clocked(rows[min(rows)]) if rows else None,
            "on_lines": [{"line": line, "seconds": 8 * sent / rate} for line, rate in RATES],
        }

    def _expected_bytes(self, name: str) -> float:
        """Returns the traffic of a method that was not run: that of the first run, by the messages' sizes."""
        row = self.first_row
        one, other = (self.pilot.round_bytes(method) for method in (row["method.name"], name))
        return (row.get("bytes_per_client") or 0.0) * other / one if one else 0.0

    def _clocked(self, row: Mapping[str, Any]) -> float | None:
        lines = self.run(row).metrics
        known = bool(lines) and "simulated_seconds" in lines[0]
        return sum(line["simulated_seconds"] for line in lines) if known else None

    def sites(self, method: str) -> list[dict[str, Any]]:
        """Returns what each site has with the others and alone."""
        with_others, alone = (
            {k: row for k, row in self.of(self.settings(one)).items() if row["status"] == "done"}
            for one in (method, ALONE)
        )
        both = sorted(with_others.keys() & alone.keys())
        parts = [[self._by_site(rows[k]) for k in both] for rows in (with_others, alone)]
        gains = pilot_rules.gains_of_sites(*parts)
        counts = {c["name"]: c["num_examples"] for c in self.run(self.first_row).privacy["clients"]}
        return [
            {
                "name": name,
                "examples": counts.get(name),
                "together": mean(one[name] for one in parts[0] if name in one),
                "alone": mean(one[name] for one in parts[1] if name in one),
                "gain": gain._asdict(),
            }
            for name, gain in gains.items()
        ]

    def _by_site(self, row: Mapping[str, Any]) -> dict[str, float]:
        lines = self.run(row).metrics
        each = (lines[-1].get("test_accuracy_per_client") or {}) if lines else {}
        return {name: value for name, value in each.items() if value is not None}

    def clock(self) -> dict[str, Any] | None:
        """Returns which site holds the others up, and what adapting saves; None without [sites]."""
        seconds, rows = seconds_of_sites(self.pilot.first), self.of(self.main)
        if seconds is None or len(seconds) < 2:
            return None
        names, last = self.pilot.first.owners.names, int(seconds.argmax())
        if rows:  # with cohorts and absences it is not always the slowest of all
            met = Counter(line["slowest"] for line in self.run(rows[min(rows)]).metrics)
            last = next((one for one, _ in met.most_common() if one is not None), last)
        others = [float(s) for k, s in enumerate(seconds) if k != last]
        facts = {"slowest": names[last], "seconds": float(seconds[last]), "second": max(others)}
        adapted = next((a for a in self.pilot.answers if a.job.question == "adapt"), None)
        if adapted is None or adapted.row["status"] != "done" or adapted.job.repeat not in rows:
            return facts | {"adapted": None}
        before = rows[adapted.job.repeat]
        change = {
            "deadline": adapted.job.settings["sites.deadline"],
            "seconds": self._clocked(adapted.row),
            "seconds_before": self._clocked(before),
            "accuracy": adapted.row["test_accuracy"],
            "accuracy_before": before["test_accuracy"],
        }
        return facts | {"adapted": change}

    def sensitivity(self) -> dict[str, Any]:
        """Returns how far accuracy on the validation part moved with each setting, and what chance moves.

        Each run is held against the main method's of its own repetition: the same split, A and held-out part.
        """
        changes = tuple(sorted(self.main.items()))
        base = {r: validated(row) for (known, r), row in self.rows.items() if known == changes}
        bars: dict[str, list[dict[str, Any]]] = {}
        for job, row in ((a.job, a.row) for a in self.pilot.answers):
            moved, start = _moved(job, self.main), base.get(job.repeat)
            score = validated(row)
            if start is None or score is None or job.question not in SENSITIVE:
                continue
            if moved:
                bars.setdefault(moved[0], []).append({"value": moved[1], "change": score - start})
        # Repetition 0 chose the rate, so it lies too high to say what chance does.
        known = [validated(row) for row in self.of(self.main).values()]
        return {"bars": bars, "spread": pilot_rules.chance([s for s in known if s is not None])}

    def rows_at_risk(self, method: str) -> list[dict[str, Any]]:
        """Returns every repetition of a method, with every initialiser that was tried, failed ones too."""
        others = [
            answer.row
            for answer in self.pilot.answers
            if answer.job.question == "init" and answer.job.settings["method.name"] == method
        ]
        repeated = self.of(self.settings(method)).values()
        return [*repeated, *(row for row in others if row["status"] != "refused")]

    def curve(self, settings: Mapping[str, Any]) -> list[float]:
        """Returns accuracy on the validation part as training went on, on average over the repetitions."""
        each = [
            [line["accuracy"] for line in self.run(row).metrics if line["accuracy"] is not None]
            for row in self.of(settings).values()
            if row["status"] == "done"
        ]
        return [mean(at) for at in zip(*each, strict=False)]

    def month(self, method: str) -> dict[str, Any]:
        """Returns how often a month the same examples are trained on, and what all of that costs."""
        rows = self.of(self.settings(method))
        count = math.ceil(self.pilot.asked.trainings_per_month)
        epsilon = None
        if count > 1 and rows:
            each = [self.run(next(iter(rows.values()))).privacy] * count
            epsilon = search_cost.of_all(each, same_clients=True).epsilon
        return {"trainings": count, "epsilon": epsilon}

    def spent(self, audit: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns what all private runs have cost, the audit's and broken-off ones too."""
        files = sorted(self.pilot.path.glob("runs/*/privacy.json"))
        runs = [RunFolder(file.parent).read_json(file.name) for file in files]
        private = [run for run in runs if run["unit"] is not None]
        if audit is not None and "why" not in audit:  # rounds of the experiment as it stands
            private += [self.run(row).privacy for row in list(self.of(self.main).values())[:1]]
        # Read off the files: of runs that broke off there is no answer.
        splits = {Run(RunFolder(file.parent)).experiment.seed for file in files}
        cost = search_cost.of_all(private, len(splits) == 1)
        return cost._asdict() | {
            "private": len(private),
            "open": sum(r["unit"] is None for r in runs),
        }


def _moved(job: Job, main: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Returns the one setting in which a job differs from the main method; None if it is not one."""
    named = {name: value for name, value in job.settings.items() if main.get(name) != value}
    if len(named) != 1 or job.settings["method.name"] != main["method.name"]:
        return None
    return next(iter(named.items()))


def _tested(rows: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    return {
        repeat: row["test_accuracy"]
        for repeat, row in rows.items()
        if row["status"] == "done" and row["test_accuracy"] is not None
    }


def few_hidden(values) -> dict[str, Any]:
    """Returns mean and interval; from fewer than three values an interval would say nothing."""
    found = interval_of(list(values))
    few = len(values) < pilot_rules.FEW
    return (Interval(found.mean, None, None) if few else found)._asdict()
