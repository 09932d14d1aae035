"""Settings of an experiment: frozen dataclasses that check themselves. Public facts only.

The same tree is the TOML file, the command-line flags and the Python object. Every setting is
described once, in its annotation; ``ffalora run --help`` and ``ffalora init`` print that text.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from typing_extensions import Doc

from ffalora_jax.config_data import DataConfig, PartitionConfig
from ffalora_jax.config_sites import SitesConfig
from ffalora_jax.config_training import (
    EnsembleConfig,
    MethodConfig,
    ModelConfig,
    OptimizerConfig,
    PrivacyConfig,
    ServerConfig,
)
from ffalora_jax.config_watch import MonitorConfig
from ffalora_jax.errors import InputError, between, nearest, one_of, positive

COHORT_SAMPLINGS = ("fixed", "poisson")
PREFIX_CACHES = ("auto", "always", "never")
WEIGHTS = ("uniform", "size", "inverse_loss")
CLIENT_DATA = ("auto", "device", "host")


@dataclass(frozen=True)
class Experiment:
    """One federated run: what is trained, on whose data, how privately."""

    name: Annotated[str, Doc("name of the run, and of its folder under runs/")] = "run"
    seed: Annotated[int, Doc("public seed: splits, A, a frozen head, the clients of a round")] = 0
    noise_seed: Annotated[
        int | None,
        Doc("secret seed of the noise and the Poisson draws; unset: fresh entropy (for release)"),
    ] = None
    rounds: Annotated[int, Doc("number of rounds")] = 9
    schedule_rounds: Annotated[
        int | None, Doc("rounds that schedules run over, then stay; unset: rounds, as it began")
    ] = None
    local_steps: Annotated[int, Doc("optimiser steps of a client in a round")] = 3
    batch_size: Annotated[int, Doc("expected number of examples in a Poisson draw")] = 32
    cohort_size: Annotated[int | None, Doc("clients in a round; unset: all of them")] = None
    cohort_sampling: Annotated[
        str, Doc("fixed (exactly cohort_size) or poisson (each client with cohort_size / clients)")
    ] = "fixed"
    client_chunk: Annotated[
        str, Doc("clients computed at once: auto, or a number (memory against speed)")
    ] = "auto"
    packing: Annotated[
        bool,
        Doc(
            "compute only what a draw filled, texts laid one after another into rows (fast); false: every "
            "slot of the capacity, padded: fixed work, whatever is drawn"
        ),
    ] = True
    prefix_cache: Annotated[
        str,
        Doc(
            "compute what the blocks below the lowest adapter give (method.layers) once an example: auto (if "
            "the run is long enough, and that takes at most a quarter of the free memory), always or never"
        ),
    ] = "auto"
    client_data: Annotated[
        str,
        Doc(
            "where the examples lie: device (moved once), host (those of a round's clients are moved when "
            "it begins), or auto (host if a round needs a part only and all are above 1 GiB)"
        ),
    ] = "auto"
    mesh: Annotated[
        str,
        Doc(
            "devices: auto (all there are, the clients dealt over them), or e.g. clients=4,model=2 "
            "(model: the backbone's large matrices sharded)"
        ),
    ] = "auto"
    compression: Annotated[
        str,
        Doc(
            "uploads on the wire: none, float16, int8 (unbiased), topk SHARE; not where sums alone are seen"
        ),
    ] = "none"
    weights: Annotated[
        str,
        Doc(
            "of the clients in the mean: uniform, size (number of examples, which it reveals) or "
            "inverse_loss (1 / training loss of the round; without privacy only)"
        ),
    ] = "uniform"
    evaluate_every: Annotated[int, Doc("rounds between evaluations on the validation part")] = 3
    max_validation: Annotated[
        int, Doc("validation examples per client used in between, drawn from the seed")
    ] = 500
    max_test: Annotated[
        int | None,
        Doc("test examples per client used at the end, drawn from the seed; unset: all of them"),
    ] = None
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    sites: SitesConfig = field(default_factory=SitesConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)

    def __post_init__(self):
        positive(
            rounds=self.rounds,
            local_steps=self.local_steps,
            batch_size=self.batch_size,
            cohort_size=self.cohort_size,
            schedule_rounds=self.schedule_rounds,
            evaluate_every=self.evaluate_every,
            max_validation=self.max_validation,
            max_test=self.max_test,
        )
        one_of(COHORT_SAMPLINGS, cohort_sampling=self.cohort_sampling)
        one_of(PREFIX_CACHES, prefix_cache=self.prefix_cache)
        one_of(WEIGHTS, weights=self.weights)
        one_of(CLIENT_DATA, client_data=self.client_data)
        mesh_axes(self.mesh)
        between(0, 2**32, seed=self.seed)
        between(0, 2**64, noise_seed=self.noise_seed)
        if not (self.client_chunk == "auto" or _is_count(self.client_chunk)):
            raise InputError(
                f"Expected client_chunk to be auto or a number >= 1, got {self.client_chunk!r}."
            )

    def replace(self, **changes) -> "Experiment":
        """Returns a copy with settings changed; dotted names as ``**{"privacy.epsilon": 3}``."""
        whole: dict[str, Any] = {}
        parts: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            table, _, setting = name.rpartition(".")
            known = _fields(getattr(self, table, None) if table else self)
            if setting not in known:
                raise InputError(
                    f"No setting {name!r}.{nearest(setting, known)} `ffalora init` shows them all."
                )
            (parts.setdefault(table, {}) if table else whole)[setting] = value
        # A table's settings together: each alone might not go with the others as they were.
        for table, some in parts.items():
            whole[table] = dataclasses.replace(whole.get(table, getattr(self, table)), **some)
        return dataclasses.replace(self, **whole)

    def resolved(self) -> "Experiment":
        """Returns a copy in which what was left open stands as it was used."""
        if not self.privacy.is_private:
            return self
        return self.replace(**{"privacy.epsilon": self.privacy.budget})


def mesh_axes(setting: str) -> dict[str, int]:
    """Reads ``clients=4,model=2``; empty for ``auto``.

    Raises:
        InputError: another form.
    """
    if setting == "auto":
        return {}
    found = re.findall(r"(?:^|,)\s*(clients|model)\s*=\s*(\d+)\s*(?=,|$)", setting)
    sizes = {name: int(count) for name, count in found}
    if not sizes or len(sizes) != setting.count("=") or min(sizes.values()) < 1:
        raise InputError(f"Expected mesh to be auto or like clients=4,model=2, got {setting!r}.")
    return sizes


def _fields(config) -> list[str]:
    return [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) >= 1
