"""Differentially private federated LoRA fine-tuning in JAX/Flax.

``import ffalora_jax as ffa``; names are loaded when they are first used, so importing costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

from ffalora_jax._version import __version__

if TYPE_CHECKING:
    from ffalora_jax import plots as plot
    from ffalora_jax.config import (
        DataConfig,
        Experiment,
        MethodConfig,
        ModelConfig,
        OptimizerConfig,
        PartitionConfig,
        PrivacyConfig,
    )
    from ffalora_jax.config_search import SearchConfig, load_search
    from ffalora_jax.data import Dataset, as_dataset
    from ffalora_jax.errors import InputError
    from ffalora_jax.experiment_file import load_experiment
    from ffalora_jax.export import export_run
    from ffalora_jax.load import load_dataset
    from ffalora_jax.loaded_adapter import LoadedAdapter, load_adapter
    from ffalora_jax.loaded_run import Run, load_run
    from ffalora_jax.pretrained import load_pretrained
    from ffalora_jax.report import write_report
    from ffalora_jax.simulation import resume, simulate
    from ffalora_jax.sweeps import Sweep, load_sweep, sweep
    from ffalora_jax.trackers import tracking

_HOMES = {
    "config": (
        "DataConfig",
        "Experiment",
        "MethodConfig",
        "ModelConfig",
        "OptimizerConfig",
        "PartitionConfig",
        "PrivacyConfig",
    ),
    "config_pilot": ("PilotConfig", "load_pilot"),
    "config_search": ("SearchConfig", "load_search"),
    "data": ("Dataset", "as_dataset"),
    "errors": ("InputError",),
    "experiment_file": ("load_experiment",),
    "export": ("export_run",),
    "loaded_adapter": ("LoadedAdapter", "load_adapter"),
    "loaded_run": ("Run", "load_run"),
    "load": ("load_dataset",),
    "pilots": ("Pilot", "pilot"),
    "pretrained": ("load_pretrained",),
    "report": ("write_report",),
    "simulation": ("resume", "simulate"),
    "sweeps": ("Sweep", "load_sweep", "sweep"),
    "trackers": ("tracking",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", "plot", *sorted(_HOME)]


def __getattr__(name: str):
    if name == "plot":
        return importlib.import_module("ffalora_jax.plots")
    if name not in _HOME:
        raise AttributeError(f"module 'ffalora_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ffalora_jax.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
