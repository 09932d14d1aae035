"""What is written down of an experiment: its rows, its settings, the machine, and what follows."""

import datetime
import json
import math
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import ffalora_jax as ffa
from experiments._verdicts import Judged, Row

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
KEPT = (
    *("seed", "status", "validation_accuracy", "test_accuracy", "majority_accuracy"),
    *("epsilon_spent", "bytes_per_client", "rank", "trained_parameters"),
)
"""What of a run's row is kept beside the settings that were varied."""


def condensed(row: Row, over: Sequence[str] = ()) -> Row:
    """Returns what is kept of a run's row."""
    names = [name for name in (*over, *KEPT) if name in row]
    found = {name: _short(row[name]) for name in names}
    if row["status"] == "refused":
        found["why"] = row["why"]
    return found


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def settings_of(base: ffa.Experiment) -> dict[str, Any]:
    """Returns the settings that a reader asks for."""
    privacy = base.privacy
    return {
        "data": base.data.name,
        "max_examples": base.data.max_examples,
        "partition": base.partition.name,
        "clients": base.partition.num_clients if base.partition.name != "proportions" else None,
        "proportions": base.partition.proportions,
        "model": base.model.name,
        "head": base.model.head,
        "targets": base.method.targets,
        "layers": base.method.layers,
        "rank": base.method.rank,
        "lora_alpha": base.method.lora_alpha,
        "rounds": base.rounds,
        "local_steps": base.local_steps,
        "batch_size": base.batch_size,
        "optimizer": base.optimizer.name,
        "learning_rate": base.optimizer.learning_rate,
        "mechanism": privacy.mechanism,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "clip_norm": privacy.clip_norm,
    }


def facts(rows: list[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns where it ran, with which settings, and what came of the runs."""
    statuses = [row.get("status") for row in rows]
    runs = {name: statuses.count(name) for name in ("done", "failed", "refused")}
    return {"machine": machine(), "settings": settings, "runs": runs, "rows": rows}


def verdict_of(judged: Judged) -> dict[str, Any]:
    """Returns a judgement as it is written down."""
    parts = [part._asdict() for part in judged.parts]
    for part in parts:
        part |= {name: _short(part[name]) for name in ("mean", "low", "high")}
    return {
        "verdict": judged.verdict,
        "parts": parts,
        "head": judged.head,
        "table": [[str(entry) for entry in line] for line in judged.table],
    }


def machine() -> dict[str, Any]:
    """Returns where this runs."""
    import jax

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "accelerator": None if device.platform == "cpu" else device.device_kind,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def text_of(record: dict[str, Any]) -> str:
    """Returns a record as JSON, a row a line."""
    rows = ",\n".join(f"  {json.dumps(row)}" for row in record["rows"])
    text = json.dumps(record | {"rows": ["ROWS"]}, indent=1)
    return text.replace('[\n  "ROWS"\n ]', f"[\n{rows}\n ]") + "\n"


def interval(part: dict[str, Any]) -> str:
    """Returns a part's mean and interval in words."""
    if part["mean"] is None:
        return "no figure"
    if part["low"] is None:
        return f"{part['mean']:.3g} (one value, no interval)"
    if part["high"] is None:
        return f"at least {part['low']:.3g}"
    return f"{part['mean']:.3g} ({part['low']:.3g} to {part['high']:.3g})"
