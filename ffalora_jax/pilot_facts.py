"""Looks into a pilot's runs: accuracy by privacy, method, site and setting, traffic, time, cost."""

from collections import Counter
from collections.abc import Mapping
from statistics import mean
from typing import Any

from ffalora_jax import pilot_rules, search_cost
from ffalora_jax.loaded_run import Run
from ffalora_jax.pilot_course import ALONE, METHODS, RATE, Job
from ffalora_jax.pilot_rules import Option
from ffalora_jax.piloting import Piloting, seconds_of_sites
from ffalora_jax.report.times import RATES
from ffalora_jax.report.words import num_clients
from ffalora_jax.run_folder import RunFolder
from ffalora_jax.sweep_results import Interval, interval_of

SENSITIVE = ("rate", "init", "rank", "clip", "share")
"""Questions of the tornado."""


class Facts:
    """Looks into a pilot's rows."""

    def __init__(self, pilot: Piloting):
        self.pilot, self.experiment = pilot, pilot.experiment
        self.rows = {(a.job.changes, a.job.repeat): a.row for a in pilot.answers}
        self.first_row = next(row for row in self.rows.values() if row["status"] != "refused")

    @property
    def main(self) -> dict[str, Any]:
        """Settings of the main method."""
        return {"method.name": METHODS[0], RATE: self.rate(METHODS[0])}

    @property
    def majority(self) -> float | None:
        """Accuracy of always naming each site's commonest class, on average over the repetitions."""
        rows = self.of(self.main).values() or [self.first_row]
        known = [m for row in rows if (m := row["majority_accuracy"]) is not None]
        return mean(known) if known else None

    def run(self, row: Mapping[str, Any]) -> Run:
        return Run(RunFolder(self.pilot.path / row["folder"]))

    def rate(self, method: str) -> float:
        """Returns the learning rate of the best score on the validation part."""
        tried = [
            (answer.row["validation_accuracy"] or 0.0, answer.job.settings[RATE])
            for answer in self.pilot.answers
            if answer.job.question in ("methods", "rate")
            and answer.job.settings["method.name"] == method
            and answer.row["status"] == "done"
        ]
        start = self.experiment.optimizer.learning_rate
        return max(tried, key=lambda one: one[0], default=(0.0, start))[1]

    def of(self, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
        """Returns rows by repetition of what has just these settings."""
        changes = tuple(sorted(settings.items()))
        return {
            repeat: row
            for (known, repeat), row in self.rows.items()
            if known == changes and row["status"] != "refused"
        }

    def settings(self, method: str) -> dict[str, Any]:
        """Returns the settings a method was repeated with."""
        rate = self.rate(METHODS[0] if method == ALONE else method)
        return {"method.name": method, RATE: rate}

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
            "rounds": settings.rounds,
            "rank": settings.method.rank,
            "layers": settings.method.layers,
            "max_test": settings.max_test,
            "init": settings.method.init,
            "clip_norm": settings.privacy.clip_norm,
            "mechanism": settings.privacy.mechanism,
            "unit": run.privacy["unit"],
            "epsilon": settings.privacy.budget if settings.privacy.is_private else None,
            "delta": run.privacy["delta"],
        }

    def privacy(self) -> list[dict[str, Any]]:
        """Returns accuracy by epsilon, without privacy first, then from weak to strong."""
        base = self.main
        tried: dict[float | None, dict[int, dict[str, Any]]] = {}
        for answer in self.pilot.answers:
            if answer.job.question != "privacy":
                continue
            named = answer.job.settings
            epsilon = None if "privacy.mechanism" in named else named["privacy.epsilon"]
            tried[epsilon] = self.of(named)
        tried[self.about()["epsilon"]] = self.of(base)
        order = sorted(tried, key=lambda e: float("inf") if e is None else e, reverse=True)
        return [
            {"epsilon": epsilon, "each": values, **_interval(values.values())}
            for epsilon in order
            if (values := _tested(tried[epsilon]))
        ]

    def method(self, name: str) -> dict[str, Any]:
        """Returns a method's accuracy, traffic, and time on lines."""
        option, rows = self.option(name), self.of(self.settings(name))
        facts: dict[str, Any] = {
            "method": name,
            "rate": self.rate(name),
            "failed": option.failed,
            "repetitions": len(rows),
            "bytes_per_site": option.bytes_per_site,
            "accuracy": _interval(option.accuracy.values()),
        }
        run = None if not rows else self.run(rows[min(rows)])
        lines = [] if run is None else run.metrics
        known = bool(lines) and "simulated_seconds" in lines[0]
        clock = sum(line["simulated_seconds"] for line in lines) if known else None
        facts["simulated_seconds"] = clock
        bits = 8 * option.bytes_per_site
        facts["on_lines"] = [{"line": line, "seconds": bits / rate} for line, rate in RATES]
        return facts

    def sites(self, method: str) -> list[dict[str, Any]]:
        """Returns what each site has with the others and alone."""
        with_others, alone = self.of(self.settings(method)), self.of(self.settings(ALONE))
        both = sorted(with_others.keys() & alone.keys())
        pairs = [(self._by_site(with_others[k]), self._by_site(alone[k])) for k in both]
        pairs = [(one, other) for one, other in pairs if one and other]
        if not pairs:
            return []
        gains = pilot_rules.gains_of_sites(*map(list, zip(*pairs, strict=True)))
        counts = {c["name"]: c["num_examples"] for c in self.run(self.first_row).privacy["clients"]}
        return [
            {
                "name": name,
                "examples": counts.get(name),
                "together": mean(one[name] for one, _ in pairs),
                "alone": mean(other[name] for _, other in pairs),
                "gain": gain._asdict() if len(pairs) >= pilot_rules.FEW else _interval([gain.mean]),
            }
            for name, gain in gains.items()
        ]

    def _by_site(self, row: Mapping[str, Any]) -> dict[str, float]:
        lines = self.run(row).metrics
        each = (lines[-1].get("test_accuracy_per_client") or {}) if lines else {}
        return {name: value for name, value in each.items() if value is not None}

    def clock(self) -> dict[str, Any] | None:
        """Returns which site holds the others up, and what adapting saves; None without [sites]."""
        seconds = seconds_of_sites(self.pilot.first)
        if seconds is None:
            return None
        names = self.pilot.first.owners.names
        rows = self.of(self.main)
        slowest = Counter(line["slowest"] for line in self.run(rows[0]).metrics) if rows else None
        last = int(seconds.argmax()) if slowest is None else slowest.most_common(1)[0][0]
        facts: dict[str, Any] = {
            "slowest": names[int(seconds.argmax()) if last is None else last],
            "seconds": {name: float(s) for name, s in zip(names, seconds, strict=True)},
            "adapted": None,
        }
        adapted = next((a.row for a in self.pilot.answers if a.job.question == "adapt"), None)
        if adapted is not None and adapted["status"] == "done" and rows:
            run = self.run(adapted)
            facts["adapted"] = {
                "deadline": run.experiment.sites.deadline,
                "seconds": sum(line["simulated_seconds"] for line in run.metrics),
                "accuracy": adapted["test_accuracy"],
                "before": rows[0]["test_accuracy"],
            }
        return facts

    def sensitivity(self) -> list[dict[str, Any]]:
        """Returns, for each setting that was moved, the accuracies on the validation part it led to.

        Of the main method, in the first repetition: the same split and seed for all.
        """
        base = self.of(self.main).get(0)
        if base is None or base["validation_accuracy"] is None:
            return []
        bars: dict[str, list[dict[str, Any]]] = {}
        for job, row in ((a.job, a.row) for a in self.pilot.answers):
            moved = _moved(job, self.main)
            if moved and job.repeat == 0 and job.question in SENSITIVE and row["status"] == "done":
                setting, value = moved
                point = {"value": value, "accuracy": row["validation_accuracy"]}
                bars.setdefault(setting, []).append(point)
        return [
            {"setting": setting, "base": base["validation_accuracy"], "points": points}
            for setting, points in bars.items()
        ]

    def inits(self) -> list[dict[str, Any]]:
        """Returns every repetition of every initialiser that was tried, failed ones too."""
        rows = list(self.of(self.main).values())
        return rows + [a.row for a in self.pilot.answers if a.job.question == "init"]

    def curve(self, settings: Mapping[str, Any]) -> list[float]:
        """Returns accuracy on the validation part as training went on, in the first repetition."""
        rows = self.of(settings)
        lines = self.run(rows[min(rows)]).metrics if rows else []
        return [line["accuracy"] for line in lines if line["accuracy"] is not None]

    def spent(self) -> dict[str, Any]:
        """Returns what the pilot's own private runs have cost, and how many others there are."""
        folders = {a.row["folder"]: a for a in self.pilot.answers if a.row["status"] != "refused"}
        runs = [RunFolder(self.pilot.path / one).read_json("privacy.json") for one in folders]
        private = [run for run in runs if run["unit"] is not None]
        repeats = {a.job.repeat for a in folders.values()}
        cost = search_cost.of_all(private, repeats == {0})
        return cost._asdict() | {"private": len(private), "open": len(runs) - len(private)}


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


def _interval(values) -> dict[str, Any]:
    """Returns mean and interval; from fewer than three values an interval would say nothing."""
    found = interval_of(list(values))
    few = len(values) < pilot_rules.FEW
    return (Interval(found.mean, None, None) if few else found)._asdict()
