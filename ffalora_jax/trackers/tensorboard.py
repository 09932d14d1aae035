"""TensorBoard: event files in the run folder, to be looked at with ``tensorboard --logdir runs``."""

from pathlib import Path
from typing import Any

from ffalora_jax.trackers import Writer


def build(path: Path, settings: dict[str, Any]) -> Writer:
    """Writes to ``tensorboard/`` in the run folder; a run that goes on adds a file."""
    from tensorboard.summary import Writer as EventWriter

    events = EventWriter(str(path / "tensorboard"))

    def log(figures: dict[str, float], rounds: int) -> None:
        for name, value in figures.items():
            events.add_scalar(name, value, rounds)

    return Writer(log, events.close)
