"""Settings of what a run tells and of members side by side. See ``config``."""

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import Doc

from ffalora_jax.errors import one_of, positive

CLIPS = ("joint", "separate")


@dataclass(frozen=True)
class MonitorConfig:
    """What a round tells beside its figures."""

    on: Annotated[
        bool,
        Doc(
            "how far the clients drift apart, what averaging factors loses, how A turns, how many directions "
            "B uses (all from what is private already), and signal to noise layer by layer (not private)"
        ),
    ] = False
    private: Annotated[
        bool,
        Doc(
            "leave out what looks at training data without noise: loss, clipped share, gradient norm, sizes "
            "of draws, signal to noise, norms of uploads before their noise; who took part stays"
        ),
    ] = False


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
