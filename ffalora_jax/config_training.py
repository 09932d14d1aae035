"""Settings of the training: model, method, optimiser, privacy. See ``config``."""

from dataclasses import dataclass, field
from typing import Annotated

from typing_extensions import Doc

from ffalora_jax.errors import InputError, between, one_of, positive

HEADS = ("frozen", "trained", "personal")
DTYPES = ("float32", "bfloat16")
CLIPS = ("joint", "separate")
ACCOUNTANTS = ("pld", "rdp")
DEFAULT_EPSILON = 6.0


@dataclass(frozen=True)
class ModelConfig:
    """Which backbone, and its head."""

    name: Annotated[
        str, Doc("a name from `ffalora list models`, a directory, or a hub name like org/model")
    ] = "minilm"
    max_tokens: Annotated[int, Doc("longer texts are cut, in tokens")] = 48
    max_new_tokens: Annotated[
        int, Doc("instructions: most tokens generated for an answer, in evaluation and predict")
    ] = 128
    head: Annotated[
        str, Doc("frozen (random, from the seed), trained (sent and averaged) or personal (stays)")
    ] = "trained"
    dtype: Annotated[
        str, Doc("type of the backbone's weights: float32, or bfloat16 (half the memory)")
    ] = "float32"
    remat: Annotated[
        bool,
        Doc(
            "compute activations again in the backward pass: less memory, a third more time "
            "(on a CPU only together with scan_layers)"
        ),
    ] = False
    scan_layers: Annotated[
        bool, Doc("stack the blocks and scan over them: compiles faster, whatever the depth")
    ] = False

    def __post_init__(self):
        one_of(HEADS, **{"model.head": self.head})
        one_of(DTYPES, **{"model.dtype": self.dtype})
        positive(**{"model.max_new_tokens": self.max_new_tokens})
        between(4, 1_000_000, **{"model.max_tokens": self.max_tokens})


@dataclass(frozen=True)
class MethodConfig:
    """How LoRA is federated."""

    name: Annotated[str, Doc("a name from `ffalora list methods`, or module:function")] = "ffa_lora"
    rank: Annotated[int, Doc("rank r of A (in, r) and B (r, out)")] = 8
    lora_alpha: Annotated[float, Doc("scaling = lora_alpha / rank")] = 8.0
    init: Annotated[str, Doc("initialiser of A, from `ffalora list inits`")] = "kaiming"
    use_rslora: Annotated[bool, Doc("scaling = lora_alpha / sqrt(rank) instead")] = False
    targets: Annotated[
        str,
        Doc(
            "layers that get adapters: qv or qkvo (the paper's placements), layer names like "
            "query,value (a layer's last names), or a regular expression over whole paths"
        ),
    ] = "qv"
    exclude: Annotated[str, Doc("layers that get none all the same, written like targets")] = ""
    layers: Annotated[str, Doc("blocks that get adapters: all, or e.g. 4-5 or 0,2,4")] = "all"
    rank_pattern: Annotated[
        dict[str, float], Doc("other ranks by layer name or regular expression, e.g. value = 4")
    ] = field(default_factory=dict)
    alpha_pattern: Annotated[
        dict[str, float], Doc("other lora_alphas by layer name or regular expression")
    ] = field(default_factory=dict)
    freeze: Annotated[
        str,
        Doc(
            "none; with fedavg_lora: ffa_from ROUND (A is frozen from that round on) or alternate ROUNDS (B "
            "so many rounds, then A); with ffa_lora: thaw SHARE rank or thaw SHARE layers (that much of A "
            "is trained too)"
        ),
    ] = "none"
    dropout: Annotated[
        float, Doc("share of a layer's inputs that the adapter does not see in a training step")
    ] = 0.0
    start: Annotated[
        str | None,
        Doc(
            "folder of a PEFT adapter to start from, in place of a random A and B = 0; it is taken as "
            "public, and the settings above must be its own"
        ),
    ] = None

    def __post_init__(self):
        positive(**{"method.rank": self.rank, "method.lora_alpha": self.lora_alpha})
        positive(**{f"method.rank_pattern.{key}": v for key, v in self.rank_pattern.items()})
        positive(**{f"method.alpha_pattern.{key}": v for key, v in self.alpha_pattern.items()})
        between(0, 1, **{"method.dropout": self.dropout})
        for key, rank in self.rank_pattern.items():
            if rank != int(rank):
                raise InputError(
                    f"Expected a whole number for method.rank_pattern.{key}, got {rank}."
                )


@dataclass(frozen=True)
class OptimizerConfig:
    """The clients' optimiser; its state starts anew each round."""

    name: Annotated[str, Doc("any optax optimiser by name: sgd, adam, adamw, ...")] = "sgd"
    learning_rate: Annotated[float, Doc("step size")] = 0.5
    schedule: Annotated[
        str,
        Doc(
            "factor on the learning rate by round: constant, linear TO, cosine TO, exponential TO (TO: "
            "that of the last round), steps 10:0.5 20:0.1, or warmup 5 then cosine 0.1"
        ),
    ] = "constant"
    options: Annotated[
        dict[str, float], Doc("further arguments of the optimiser, e.g. momentum = 0.9")
    ] = field(default_factory=dict)

    proximal: Annotated[
        float,
        Doc(
            "pull towards the round's start: learning_rate * proximal of the way a step (FedProx's mu)"
        ),
    ] = 0.0

    control_variates: Annotated[
        bool,
        Doc(
            "steps corrected by the means of all clients' and of the own last gradients (SCAFFOLD); twice "
            "the traffic"
        ),
    ] = False

    def __post_init__(self):
        positive(**{"optimizer.learning_rate": self.learning_rate})
        between(0, 1e6, **{"optimizer.proximal": self.proximal})


@dataclass(frozen=True)
class ServerConfig:
    """The server's optimiser on the mean update, as its gradient.

    Its state lives as long as the run; where a schedule changes what is trained, each part has its own.
    """

    optimizer: Annotated[
        str,
        Doc(
            "average (the mean update as it is), or any optax optimiser: sgd with options momentum = 0.9 "
            "(FedAvgM), adam (FedAdam), yogi (FedYogi), adagrad, ..."
        ),
    ] = "average"
    learning_rate: Annotated[float, Doc("the server's step size (not for average)")] = 1.0
    options: Annotated[
        dict[str, float], Doc("further arguments of the optimiser, e.g. momentum = 0.9")
    ] = field(default_factory=dict)

    def __post_init__(self):
        positive(**{"server.learning_rate": self.learning_rate})
        if self.optimizer == "average" and (self.learning_rate != 1.0 or self.options):
            raise InputError(
                "server.optimizer = 'average' takes the mean update as it is, expected no server."
                "learning_rate and no options beside it: set server.optimizer = 'sgd'."
            )


@dataclass(frozen=True)
class PrivacyConfig:
    """What is protected, and how strongly."""

    mechanism: Annotated[
        str,
        Doc(
            "dp_sgd (an example), dp_fedavg (a whole client), none, ...: `ffalora list mechanisms`"
        ),
    ] = "dp_sgd"
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
    clip_norm: Annotated[
        float, Doc("L2 bound over all leaves: of an example's gradient, or of a client's update")
    ] = 1.0
    clip_schedule: Annotated[
        str, Doc("factor on clip_norm by round, as optimizer.schedule; the noise follows")
    ] = "constant"
    noise_schedule: Annotated[
        str,
        Doc(
            "factor on noise_multiplier by round, in at most 8 levels; every round at its own price"
        ),
    ] = "constant"
    target_quantile: Annotated[
        float, Doc("adaptive clip norms: share of the norms that is to be within it")
    ] = 0.5
    clip_learning_rate: Annotated[
        float, Doc("adaptive clip norms: how fast they follow, per step or round")
    ] = 0.2
    count_noise: Annotated[
        float | None,
        Doc(
            "adaptive clip norms: noise stddev on the count; unset: a 20th of the draw, at least 1"
        ),
    ] = None
    honest_share: Annotated[
        float, Doc("dp_sgd_secagg: share of a round's clients that is sure to add its noise")
    ] = 0.5
    bands: Annotated[
        int,
        Doc(
            "dp_sgd_banded: steps between two draws of an example, and over which noise is correlated"
        ),
    ] = 4
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
                "privacy.bands": self.bands,
                "privacy.count_noise": self.count_noise,
                "privacy.clip_learning_rate": self.clip_learning_rate,
            }
        )
        between(0, 1, **{"privacy.target_quantile": self.target_quantile})
        if not 0 < self.honest_share <= 1:
            raise InputError(
                f"Expected 0 < privacy.honest_share <= 1, got {self.honest_share}: with nobody honest no "
                "noise is sure to be there."
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
class EnsembleConfig:
    """Several initialisations trained side by side; predictions by the mean of their logits."""

    members: Annotated[
        int, Doc("number of initialisations; the first is that of a run without others")
    ] = 1
    clip: Annotated[
        str,
        Doc(
            "joint (all members' gradients as one vector) or separate (each to clip_norm / sqrt(members)); "
            "the same bill"
        ),
    ] = "joint"

    def __post_init__(self):
        positive(**{"ensemble.members": self.members})
        one_of(CLIPS, **{"ensemble.clip": self.clip})
