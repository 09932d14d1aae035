"""What an adapter that a run starts from has cost already, where it says so and the data are the same.

Two runs on the same examples compose: at most epsilon_1 + epsilon_2 at delta_1 + delta_2 (Dwork & Roth 2014,
theorem 3.16), an upper bound whatever the mechanisms. Data are told by their settings and never by a hash
of the examples: that, published, would confirm a guess of them.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ffalora_jax.cache import from_json
from ffalora_jax.config import Experiment
from ffalora_jax.config_data import DataConfig, PartitionConfig

FACTS, PRIVACY = "run.json", "privacy.json"


def trained_on(experiment: Experiment) -> dict[str, Any]:
    """Returns what tells whose examples a run saw: settings of data and split, paths by their last name."""
    data = dataclasses.asdict(experiment.data)
    if data.get("path"):
        data["path"] = Path(data["path"]).name
    return {
        "data": data,
        "partition": dataclasses.asdict(experiment.partition),
        "seed": experiment.seed,
    }


def facts_for_later(experiment: Experiment, privacy: dict[str, Any]) -> dict[str, Any]:
    """Returns what an exported adapter says of its cost, with that of its own start on the same data."""
    spent = {name: privacy[name] for name in ("unit", "epsilon", "delta")}
    before = privacy.get("started_from")
    if before and before["same_data"] and spent["epsilon"] is not None:
        spent |= {"epsilon": before["epsilon_in_all"], "delta": before["delta_in_all"]}
    return {"privacy": spent, "trained_on": trained_on(experiment)}


def started_from(
    experiment: Experiment, epsilon: float | None, delta: float | None
) -> dict[str, Any] | None:
    """Returns what the start has cost, and with this run's in all; None without one, or if it says nothing.

    Args:
        experiment: of this run.
        epsilon: spent by this run; None without privacy.
        delta: of this run.
    """
    folder = experiment.method.start
    if folder is None:
        return None
    said = _read(Path(folder))
    if said is None:
        return None
    before, same = said["privacy"], _same(said["trained_on"], trained_on(experiment))
    found = {"unit": before["unit"], "epsilon": before["epsilon"], "delta": before["delta"]}
    found |= {"same_data": same, "epsilon_in_all": None, "delta_in_all": None}
    if same and None not in (epsilon, delta, before["epsilon"], before["delta"]):
        found |= {
            "epsilon_in_all": epsilon + before["epsilon"],
            "delta_in_all": delta + before["delta"],
        }
    return found


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs saw the same sites' data; a setting that one does not know of was at its default.

    Which site is public changes who trains, not whose data it is: the sum is then too large, never too small.
    """

    def whole(said: dict[str, Any]) -> dict[str, Any]:
        partition = {
            **dataclasses.asdict(PartitionConfig()),
            **said["partition"],
            "public_site": None,
        }
        data = {**dataclasses.asdict(DataConfig()), **said["data"]}
        return {**said, "data": data, "partition": partition}

    return whole(one) == whole(other)


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found = from_json((folder / FACTS).read_bytes())
        return found if {"privacy", "trained_on"} <= set(found) else None
    except (OSError, ValueError, TypeError):
        return None
