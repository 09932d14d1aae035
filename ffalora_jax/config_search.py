"""The table ``[search]``: which settings are varied, over what, and how the combinations are gone through."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from typing_extensions import Doc

from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError, one_of, positive
from ffalora_jax.experiment_file import build, checked, from_table, kind_of_setting, read_table

OBJECTIVES = ("accuracy", "loss")
LAWS = ("fixed", "poisson", "geometric")
MATCHES = ("rank", "parameters")
SHARED = ("grid", "random", "halving", "bayesian")
FIXED = {
    "seed": "repetitions come from search.seeds",
    "noise_seed": "every run has noise of its own",
    "name": "runs are named by their number",
    "rounds": "all runs of a search are scored after the same ones",
}
"""What is not varied, and why."""
MOST_TRIALS = 10_000


@dataclass(frozen=True)
class SearchConfig:
    """Many runs: what differs between them, and which are made."""

    strategy: Annotated[str, Doc("a name from `ffalora list searches`, or module:function")] = (
        "grid"
    )
    over: Annotated[
        dict[str, Any],
        Doc(
            'settings and their values: a list, or for a number a range like "0.01..1 log" (not in a grid)'
        ),
    ] = field(default_factory=dict)
    seeds: Annotated[
        int, Doc("runs of each combination, with seed, seed + 1, ...: split, A and noise anew")
    ] = 1
    trials: Annotated[int, Doc("combinations that are drawn (their expected number by a law)")] = 20
    trials_law: Annotated[
        str,
        Doc(
            "how many are drawn, with random: fixed, poisson or geometric. By a law whose draw stays secret "
            "and independent trials, the best alone costs less than all of them"
        ),
    ] = "fixed"
    objective: Annotated[
        str, Doc("of the validation part: accuracy (highest) or loss (lowest)")
    ] = "accuracy"
    keep: Annotated[float, Doc("with halving: of every so many combinations one goes on")] = 3.0
    first_rounds: Annotated[
        int | None, Doc("with halving: rounds before the first choice; unset: a ninth of all")
    ] = None
    match: Annotated[
        str,
        Doc(
            "between methods: rank (that of the settings), or parameters (each method's rank is the "
            "one that trains about as many numbers as the experiment's own method.name at the settings' rank)"
        ),
    ] = "rank"
    storage: Annotated[
        str | None,
        Doc(
            "shared by workers on any machine, each started with this command: the path of a journal file "
            "on a shared disk, or the address of a PostgreSQL or MySQL database (extra `search`)"
        ),
    ] = None
    stale_seconds: Annotated[
        float,
        Doc("with storage: silence after which a worker's trial is taken over by another one"),
    ] = 60.0
    compare: Annotated[
        str | None,
        Doc(
            "a setting, e.g. method.name: the best combination of each of its values, by validation, "
            "is compared with the others on the test part, seed by seed"
        ),
    ] = None

    def __post_init__(self):
        positive(
            **{
                "search.seeds": self.seeds,
                "search.trials": self.trials,
                "search.first_rounds": self.first_rounds,
            }
        )
        positive(**{"search.stale_seconds": self.stale_seconds})
        if self.storage is not None and self.strategy not in SHARED:
            raise InputError(
                f"Expected search.strategy to be one of {', '.join(SHARED)} with search.storage, got "
                f"{self.strategy!r}."
            )
        if self.storage is not None and self.trials_law != "fixed":
            raise InputError(
                "Expected search.trials_law = 'fixed' with search.storage: workers see how many trials there "
                "are, and the law's promise needs that to stay secret."
            )
        one_of(OBJECTIVES, **{"search.objective": self.objective})
        one_of(MATCHES, **{"search.match": self.match})
        one_of(LAWS, **{"search.trials_law": self.trials_law})
        if not self.keep >= 2:
            raise InputError(f"Expected search.keep >= 2, got {self.keep}.")
        if self.trials_law != "fixed" and self.strategy != "random":
            raise InputError(
                f"Expected search.trials_law = 'fixed' with search.strategy {self.strategy!r}, got "
                f"{self.trials_law!r}: its promise is for independent trials, those of 'random'."
            )
        if self.compare is not None and self.compare not in self.over:
            raise InputError(
                f"Expected search.compare to be a setting of [search.over], got {self.compare!r}."
            )


def load_search(path: str | Path) -> tuple[Experiment, SearchConfig]:
    """Reads an experiment file with a table [search], which may be left out.

    Raises:
        InputError: as ``load_experiment``.
    """
    table = read_table(path)
    search = table.pop("search", {})
    if not isinstance(search, dict):
        raise InputError(f"Expected a table [search] in {path}, got {search!r}.")
    if isinstance(search.get("over"), dict):
        search["over"] = _flat(search["over"])
    return from_table(table, str(path)), build(SearchConfig, search, str(path), "search.")


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted names: TOML reads ``method.name = [...]`` as a table in a table."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        found |= {prefix + name: value} if inner is None else inner
    return found


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``."""

    low: float
    high: float
    log: bool
    whole: bool

    def at(self, share: float) -> float | int:
        """Returns the number at a share of the way, in the logarithm if so asked."""
        if self.log:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value


Space = dict[str, Range | list[Any]]
"""What is varied: choices, or a range."""


def space_of(search: SearchConfig, experiment: Experiment) -> Space:
    """Returns what is varied, each value checked against the experiment.

    Raises:
        InputError: an unknown setting, a value of another type, an empty list, a range of words.
    """
    found: Space = {}
    for name, given in search.over.items():
        kind = kind_of_setting(name)
        if name in FIXED:
            raise InputError(f"search.over cannot vary {name}: {FIXED[name]}.")
        if isinstance(given, str) and kind in (int, float) and ".." in given:
            found[name] = _range(name, given, kind)
            continue
        values = given if isinstance(given, list) else [given]
        if not values:
            raise InputError(f"Expected at least one value for {name} in [search.over].")
        values = [checked(kind, value, name, "[search.over]") for value in values]
        for value in values:
            experiment.replace(**{name: value})
        found[name] = list(dict.fromkeys(values))
    if not found and search.seeds == 1:
        raise InputError(
            "Nothing is varied: say over what, like --over method.name=ffa_lora,fedavg_lora, or "
            "--search.seeds 5."
        )
    if math.prod(len(v) for v in found.values() if isinstance(v, list)) > MOST_TRIALS:
        raise InputError(f"Expected at most {MOST_TRIALS} combinations: leave some values out.")
    return found


def _range(name: str, text: str, kind: type) -> Range:
    number = r"([0-9.eE+-]+?)"
    found = re.fullmatch(rf"\s*{number}\s*\.\.\s*{number}(\s+log)?\s*", text)
    try:
        if found is None:
            raise ValueError
        low, high = float(found[1]), float(found[2])
    except ValueError:
        raise InputError(
            f'Expected {name} in [search.over] to be a list or a range like "0.01..1 log", got {text!r}.'
        ) from None
    log = found[3] is not None
    if not (math.isfinite(high) and low < high) or (log and low <= 0):
        raise InputError(
            f"Expected a range from a lower to a higher number{' above 0' * log} for {name}, got {text!r}."
        )
    return Range(low, high, log, kind is int)


def read_over(text: str) -> tuple[str, Any]:
    """Reads ``NAME=VALUE,VALUE`` or ``NAME=LOW..HIGH[:log]`` as the command line has it.

    Raises:
        InputError: another form, or a value of another type.
    """
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not values.strip():
        raise InputError(f"Expected --over NAME=VALUE,VALUE (or NAME=0.01..1:log), got {text!r}.")
    kind = kind_of_setting(name)
    if kind in (int, float) and ".." in values:
        return name, values.replace(":", " ")
    return name, [_value(kind, name, value.strip()) for value in values.split(",")]


def _value(kind: Any, name: str, text: str) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (ValueError, KeyError):
        raise InputError(f"Expected {kind.__name__} for --over {name}, got {text!r}.") from None
