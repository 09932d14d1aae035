"""Settings of an experiment: frozen dataclasses that check themselves. Public facts only.

The same tree is the TOML file, the command-line flags and the Python object. Every setting is
described once, in its annotation; ``ffalora run --help`` and ``ffalora init`` print that text.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated

from typing_extensions import Doc

from ffalora_jax.errors import InputError, between, one_of, positive

HEADS = ("frozen", "trained", "personal")
COHORT_SAMPLINGS = ("fixed", "poisson")
PARTITIONS = ("natural", "iid", "proportions", "dirichlet", "quantity")
ACCOUNTANTS = ("pld", "rdp")
DEFAULT_EPSILON = 6.0


@dataclass(frozen=True)
class DataConfig:
    """Which examples."""

    name: Annotated[
        str, Doc("data set: a name from `ffalora list datasets`, or module:function")
    ] = "vader"
    path: Annotated[
        str | None,
        Doc("file or directory: csv, jsonl, parquet, images, a TFDS data_dir, offline copies"),
    ] = None
    text: Annotated[str, Doc("column with the text")] = "text"
    text_pair: Annotated[str | None, Doc("column with a second text (pairs), if any")] = None
    label: Annotated[str, Doc("column with the class, as a number or a word")] = "label"
    prompt: Annotated[str, Doc("instructions: column with what the model is given")] = "prompt"
    response: Annotated[str, Doc("instructions: column with what it is to say")] = "response"
    messages: Annotated[
        str, Doc("instructions: column with chat messages, in place of prompt and response")
    ] = "messages"
    client: Annotated[
        str | None, Doc("column that says whose example it is; makes the natural partition")
    ] = None
    max_examples: Annotated[
        int | None, Doc("keep at most so many examples, drawn from the seed; unset: all")
    ] = None

    def __post_init__(self):
        positive(**{"data.max_examples": self.max_examples})


@dataclass(frozen=True)
class PartitionConfig:
    """Who owns which example, and what is held out."""

    name: Annotated[
        str, Doc("natural (by the client column), iid, proportions, dirichlet or quantity")
    ] = "natural"
    num_clients: Annotated[int, Doc("number of clients (natural: as many as the data has)")] = 4
    dirichlet_alpha: Annotated[
        float, Doc("dirichlet: concentration, small = each client sees few classes")
    ] = 0.5
    proportions: Annotated[
        str, Doc("proportions: one row of class weights a client, e.g. '.1 .9, .9 .1, .5 .5'")
    ] = ".1 .9, .9 .1, .5 .5"
    quantity_skew: Annotated[
        float, Doc("quantity: client k's size is proportional to (k+1)^-skew")
    ] = 1.0
    validation_share: Annotated[float, Doc("share of each client kept for choosing settings")] = 0.1
    test_share: Annotated[float, Doc("share of each client kept for the final figure")] = 0.2

    def __post_init__(self):
        one_of(PARTITIONS, **{"partition.name": self.name})
        positive(
            **{
                "partition.num_clients": self.num_clients,
                "partition.dirichlet_alpha": self.dirichlet_alpha,
            }
        )
        between(0, 1, **{"partition.validation_share": self.validation_share})
        between(0, 1, **{"partition.test_share": self.test_share})
        between(0, 10, **{"partition.quantity_skew": self.quantity_skew})
        if self.validation_share + self.test_share >= 1:
            raise InputError(
                "Expected partition.validation_share + partition.test_share < 1, got "
                f"{self.validation_share} + {self.test_share}: nothing would be left to train on."
            )


@dataclass(frozen=True)
class ModelConfig:
    """Which backbone, and its head."""

    name: Annotated[
        str, Doc("a name from `ffalora list models`, a directory, or a hub name like org/model")
    ] = "minilm"
    max_tokens: Annotated[int, Doc("longer texts are cut, in tokens")] = 48
    head: Annotated[
        str, Doc("frozen (random, from the seed), trained (sent and averaged) or personal (stays)")
    ] = "trained"

    def __post_init__(self):
        one_of(HEADS, **{"model.head": self.head})
        between(4, 1_000_000, **{"model.max_tokens": self.max_tokens})


@dataclass(frozen=True)
class MethodConfig:
    """How LoRA is federated."""

    name: Annotated[str, Doc("a name from `ffalora list methods`, or module:function")] = "ffa_lora"
    rank: Annotated[int, Doc("rank r of A (in, r) and B (r, out)")] = 8
    lora_alpha: Annotated[float, Doc("scaling = lora_alpha / rank")] = 8.0
    init: Annotated[str, Doc("initialiser of A, from `ffalora list inits`")] = "kaiming"
    targets: Annotated[
        str, Doc("regular expression over layer paths, matched in full; empty: the model's own")
    ] = ""
    layers: Annotated[str, Doc("blocks that get adapters: all, or e.g. 4-5 or 0,2,4")] = "all"

    def __post_init__(self):
        positive(**{"method.rank": self.rank, "method.lora_alpha": self.lora_alpha})


@dataclass(frozen=True)
class OptimizerConfig:
    """The clients' optimiser; its state starts anew each round."""

    name: Annotated[str, Doc("any optax optimiser by name: sgd, adam, adamw, ...")] = "sgd"
    learning_rate: Annotated[float, Doc("step size, constant")] = 0.5
    options: Annotated[
        dict[str, float], Doc("further arguments of the optimiser, e.g. momentum = 0.9")
    ] = field(default_factory=dict)

    def __post_init__(self):
        positive(**{"optimizer.learning_rate": self.learning_rate})


@dataclass(frozen=True)
class PrivacyConfig:
    """What is protected, and how strongly."""

    mechanism: Annotated[str, Doc("dp_sgd, or none (from `ffalora list mechanisms`)")] = "dp_sgd"
    epsilon: Annotated[
        float | None,
        Doc(
            "budget per client over the whole run; without noise_multiplier it sets the noise "
            "(unset, both: 6)"
        ),
    ] = None
    noise_multiplier: Annotated[
        float | None, Doc("noise stddev on the summed gradients, in units of clip_norm")
    ] = None
    delta: Annotated[float, Doc("probability with which the guarantee may fail, per client")] = 1e-5
    clip_norm: Annotated[float, Doc("L2 bound of one example's gradient, over all leaves")] = 1.0
    accountant: Annotated[
        str, Doc("pld; rdp does not know capped draws, only `privacy` has it")
    ] = "pld"
    capacity: Annotated[
        int | None, Doc("most examples a draw may hold; unset: batch_size + 6 sqrt(batch_size)")
    ] = None

    def __post_init__(self):
        positive(
            **{
                "privacy.epsilon": self.epsilon,
                "privacy.noise_multiplier": self.noise_multiplier,
                "privacy.delta": self.delta,
                "privacy.clip_norm": self.clip_norm,
                "privacy.capacity": self.capacity,
            }
        )
        one_of(ACCOUNTANTS, **{"privacy.accountant": self.accountant})
        if self.accountant != "pld":
            raise InputError(
                "Expected privacy.accountant = 'pld' for a run: rdp cannot account for a capped "
                "Poisson draw. For comparison use `ffalora privacy --accountant rdp`."
            )
        if self.delta >= 0.1:
            raise InputError(
                f"Expected privacy.delta < 0.1, got {self.delta}: use well below 1 / examples, "
                "for instance 1e-5."
            )

    @property
    def is_private(self) -> bool:
        """Whether anything is promised at all."""
        return self.mechanism != "none"

    @property
    def budget(self) -> float | None:
        """Epsilon that may be spent: as given; 6 if neither it nor the noise is; None for noise alone."""
        if self.epsilon is None and self.noise_multiplier is None:
            return DEFAULT_EPSILON
        return self.epsilon


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
    local_steps: Annotated[int, Doc("optimiser steps of a client in a round")] = 3
    batch_size: Annotated[int, Doc("expected number of examples in a Poisson draw")] = 32
    cohort_size: Annotated[int | None, Doc("clients in a round; unset: all of them")] = None
    cohort_sampling: Annotated[
        str, Doc("fixed (exactly cohort_size) or poisson (each client with cohort_size / clients)")
    ] = "fixed"
    client_chunk: Annotated[
        str, Doc("clients computed at once: auto, or a number (memory against speed)")
    ] = "auto"
    weighted: Annotated[
        bool, Doc("average the clients by their number of examples (reveals the sizes)")
    ] = False
    evaluate_every: Annotated[int, Doc("rounds between evaluations on the validation part")] = 3
    max_validation: Annotated[
        int, Doc("validation examples per client used in between; the test part is used whole")
    ] = 500
    data: DataConfig = field(default_factory=DataConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def __post_init__(self):
        positive(
            rounds=self.rounds,
            local_steps=self.local_steps,
            batch_size=self.batch_size,
            cohort_size=self.cohort_size,
            evaluate_every=self.evaluate_every,
            max_validation=self.max_validation,
        )
        one_of(COHORT_SAMPLINGS, cohort_sampling=self.cohort_sampling)
        between(0, 2**32, seed=self.seed)
        between(0, 2**64, noise_seed=self.noise_seed)
        if not (self.client_chunk == "auto" or _is_count(self.client_chunk)):
            raise InputError(
                f"Expected client_chunk to be auto or a number >= 1, got {self.client_chunk!r}."
            )

    def replace(self, **changes) -> "Experiment":
        """Returns a copy with settings changed; dotted names as ``**{"privacy.epsilon": 3}``."""
        result = self
        for name, value in changes.items():
            table, _, setting = name.rpartition(".")
            if table:
                value = dataclasses.replace(getattr(result, table), **{setting: value})
            result = dataclasses.replace(result, **{table or setting: value})
        return result

    def resolved(self) -> "Experiment":
        """Returns a copy in which what was left open stands as it was used."""
        if not self.privacy.is_private:
            return self
        return self.replace(**{"privacy.epsilon": self.privacy.budget})


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) >= 1
