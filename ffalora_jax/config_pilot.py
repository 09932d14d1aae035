"""The table ``[pilot]``: how long a pilot may take, what traffic costs, the language of its page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from unicodedata import category

from typing_extensions import Doc

from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError, one_of, positive
from ffalora_jax.experiment_file import build, from_table, read_table

LANGUAGES = ("en", "ja")
QUICK_MINUTES = 4.5


@dataclass(frozen=True)
class PilotConfig:
    """A small study before a decision."""

    minutes: Annotated[
        float,
        Doc(
            "time it may take; what is in the middle then is ended, and the page is of what there is"
        ),
    ] = 20.0
    quick: Annotated[
        bool,
        Doc(
            "at most 4.5 minutes: adapters in the upper blocks alone, 300 test examples a site, one learning "
            "rate, no look at initialisers, rank, clip norm and share"
        ),
    ] = False
    language: Annotated[str, Doc("of the page: en or ja")] = "en"
    price_per_gb: Annotated[
        float | None,
        Doc("what a gigabyte (10^9 bytes) sent or received costs a site; unset: no money"),
    ] = None
    currency: Annotated[str, Doc("in which it costs that")] = "USD"
    trainings_per_month: Annotated[
        float, Doc("how often the model is trained anew, for traffic by month")
    ] = 4.0
    canaries: Annotated[
        int, Doc("of the audit at the end (extra `audit`); 0 leaves it out, as quick does")
    ] = 200

    def __post_init__(self):
        positive(
            **{
                "pilot.minutes": self.minutes,
                "pilot.trainings_per_month": self.trainings_per_month,
            }
        )
        one_of(LANGUAGES, **{"pilot.language": self.language})
        if self.price_per_gb is not None and not 0 <= self.price_per_gb < float("inf"):
            raise InputError(f"Expected pilot.price_per_gb >= 0, got {self.price_per_gb}.")
        if not any(letter.isalpha() or category(letter) == "Sc" for letter in self.currency):
            raise InputError(
                f"Expected pilot.currency as a code or a sign (EUR, €), got {self.currency!r}."
            )
        if self.canaries < 0:
            raise InputError(f"Expected pilot.canaries >= 0, got {self.canaries}.")

    @property
    def seconds(self) -> float:
        """Time that it may take."""
        return 60 * (min(self.minutes, QUICK_MINUTES) if self.quick else self.minutes)


def load_pilot(path: str | Path) -> tuple[Experiment, PilotConfig]:
    """Reads an experiment file with a table [pilot], which may be left out.

    Raises:
        InputError: as ``load_experiment``.
    """
    table = read_table(path)
    asked = table.pop("pilot", {})
    if not isinstance(asked, dict):
        raise InputError(f"Expected a table [pilot] in {path}, got {asked!r}.")
    return from_table(table, str(path)), build(PilotConfig, asked, str(path), "pilot.")


def default_experiment() -> Experiment:
    """Returns what a pilot is of where no experiment is given: that of `make demo`, with noise of its own."""
    return Experiment(name="pilot").replace(
        **{
            "rounds": 9,
            "local_steps": 3,
            "batch_size": 32,
            "max_validation": 200,
            "data.name": "vader",
            "partition.name": "natural",
            "partition.validation_share": 0.1,
            "partition.test_share": 0.2,
            "model.name": "minilm",
            "model.max_tokens": 48,
            "model.head": "trained",
            "method.name": "ffa_lora",
            "method.rank": 8,
            "method.lora_alpha": 32.0,
            "optimizer.name": "sgd",
            "optimizer.learning_rate": 1.0,
            "privacy.mechanism": "dp_sgd",
            "privacy.epsilon": 6.0,
            "privacy.delta": 1e-5,
            "privacy.clip_norm": 1.0,
        }
    )
