"""What an adapter that a run starts from has cost already, where it says so and the data are the same.

Two runs on the same examples compose: at most epsilon_1 + epsilon_2 at delta_1 + delta_2 (Dwork & Roth 2014,
theorem 3.16), an upper bound whatever the mechanisms, of one unit. Data are told by their settings and never
by a hash of the examples: that, published, would confirm a guess of them.
"""

from pathlib import Path
from typing import Any

from ffalora_jax.cache import from_json
from ffalora_jax.config import Experiment

FACTS = "run.json"
OWN = ("csv", "images", "instructions", "jsonl", "parquet")
"""Data sets that are whatever the path holds; of all others the name says it."""


def trained_on(experiment: Experiment) -> dict[str, Any]:
    """Returns what tells whose examples a run saw: the data's name, a path's last part, and the seed."""
    path = experiment.data.path
    data = {"name": experiment.data.name, "path": path and Path(path).resolve().name}
    return {"data": data, "seed": experiment.seed}


def facts_for_later(experiment: Experiment, privacy: dict[str, Any]) -> dict[str, Any]:
    """Returns what an exported adapter says of its cost, and of what it started from, one after another."""
    spent = {name: privacy[name] for name in ("unit", "epsilon", "delta")}
    before = privacy.get("started_from") or {"bills": []}
    return {"privacy": spent, "trained_on": trained_on(experiment), "started_from": before["bills"]}


def started_from(
    experiment: Experiment, unit: str | None, epsilon: float | None, delta: float | None
) -> dict[str, Any] | None:
    """Returns what the start has cost, and with this run's in all; None without one, or if it says nothing.

    What was trained on the same data is added up, however long ago in the chain. Epsilons of different
    units (an example, a client) do not add up: there is no sum then, and the reason.

    Args:
        experiment: of this run.
        unit: that this run protects; None without privacy.
        epsilon: spent by this run; None without privacy.
        delta: of this run.
    """
    folder = experiment.method.start
    said = None if folder is None else told(Path(folder))
    if said is None or not {"privacy", "trained_on"} <= said.keys():
        return None
    now, bills = trained_on(experiment), _bills(said)
    spent = [bill["privacy"] for bill in bills if _same(bill["trained_on"], now)]
    found = {name: said["privacy"][name] for name in ("unit", "epsilon", "delta")}
    found |= {"same_data": bool(spent), "epsilon_in_all": None, "delta_in_all": None, "no_sum": ""}
    found |= {"bills": bills}
    if not spent:
        return found
    units = {one["unit"] for one in spent}
    if None in units or unit is None or epsilon is None or delta is None:
        who = "this run" if unit is None else "what it started from"
        found["no_sum"] = f"{who} was trained on the same data without privacy"
    elif units != {unit}:
        found["no_sum"] = (
            f"the start protects one {' and one '.join(sorted(units))}, this run one {unit}, and epsilons of "
            "different units do not add up"
        )
    else:
        found["epsilon_in_all"] = epsilon + sum(one["epsilon"] for one in spent)
        found["delta_in_all"] = delta + sum(one["delta"] for one in spent)
    return found


def _bills(said: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns what an adapter says of itself and of all that it started from."""
    own = {name: said[name] for name in ("privacy", "trained_on")}
    return [own, *said.get("started_from", [])]


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs took examples out of the same data.

    Which columns and how many of them, how they were dealt to sites, and the seed (unless it makes the data)
    are another choice among the same examples, of which most pay twice; so is where a public set lies, and
    which part of it is held out. The sum is then too large, never too small.
    """

    def source(said: dict[str, Any]) -> tuple:
        name = said["data"]["name"].removesuffix("_mismatched")
        path = said["data"].get("path") if name in OWN else None
        return name, path, said["seed"] if name == "synthetic" else None

    return source(one) == source(other)


def told(folder: Path) -> dict[str, Any] | None:
    """Returns what an adapter says of itself; None where it says nothing."""
    try:
        return dict(from_json((folder / FACTS).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
