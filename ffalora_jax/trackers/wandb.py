"""Weights & Biases, offline unless WANDB_MODE says otherwise: nothing leaves the machine by itself."""

import os
from pathlib import Path
from typing import Any

from ffalora_jax.trackers import Writer, identity


def build(path: Path, settings: dict[str, Any]) -> Writer:
    """Writes to ``wandb/`` in the run folder, for ``wandb sync``. A run that goes on is the same one."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "ffalora_jax"),
        name=path.name,
        id=identity(path),
        resume="allow",
        dir=str(path),
        config=settings,
        mode=_mode(),
        settings=wandb.Settings(silent=True),
    )

    def log(figures: dict[str, float], rounds: int) -> None:
        run.log(figures, step=rounds)

    return Writer(log, run.finish)


def _mode() -> Any:
    return os.environ.get("WANDB_MODE", "offline")
