"""Settings of what a run tells. See ``config``."""

from dataclasses import dataclass
from typing import Annotated

from typing_extensions import Doc


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
