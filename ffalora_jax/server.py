"""The server's side of a round: what it makes of the mean, by the method's rule and an optimiser.

Comes after ``aggregation``, which hands over sums, and before ``round``, which calls it once a round.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ffalora_jax import adapters as leaves
from ffalora_jax.aggregation import Sums, mean_upload
from ffalora_jax.compression import Compression
from ffalora_jax.errors import InputError
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.methods import Method
from ffalora_jax.types import HEAD_LEAVES, Adapters, Tree


def _nothing(root: Array, round_index: Array) -> Adapters:
    return {}


class Server(NamedTuple):
    """How the server goes from one state to the next."""

    method: Method
    optimizer: optax.GradientTransformation | None = None
    """Takes what the mean moved, negated, as its gradient (Reddi et al. 2021, arXiv:2003.00295, algorithm 2);
    None: the mean as it is."""
    redraw: Callable[[Array, Array], Adapters] = _nothing
    """(public root key, round index) -> factors drawn anew before that round; none for most methods."""
    mechanism: Mechanism | None = None
    """One that adds its noise here; None: what comes is private already, or nothing is promised."""
    noise_multiplier: float = 0.0
    compression: Compression | None = None
    """Of uploads, on their way here."""
    clip_norm: float = 0.0
    """As it was set, in a mechanism that noises the sum."""
    clients: int = 1
    """Expected number in a round, by which such a mechanism divides."""

    def check(self, name: str) -> None:
        """Refuses an optimiser beside a method that reads more than the mean.

        Raises:
            InputError: so it is.
        """
        if self.optimizer is not None and self.method.reads_uploads:
            raise InputError(
                f"method.name {name!r} reads each client's upload and not the mean alone, so an optimiser on "
                "the mean says nothing: leave server.optimizer at average, or take ffa_lora, fedavg_lora, ..."
            )
        if self.compression is not None and self.method.wire is not None:
            raise InputError(
                f"Expected compression = 'none' with method.name {name!r}, whose messages go another way "
                "than its computation: take ffa_lora, fedavg_lora, rolora, ..."
            )
        if self.mechanism is None:
            return
        if self.compression is not None:
            raise InputError(
                "Expected compression = 'none' where the server sees sums alone: what is kept of one upload "
                "would show what is to be hidden. Take --privacy.mechanism dp_sgd."
            )
        what = ""
        if self.method.reads_uploads:
            what = "reads each client's upload, and the noise is in their sum alone"
        elif self.method.is_baseline:
            what = "is a yardstick in which no clients meet"
        elif self.mechanism.sums_integers and self.method.personal:
            what = "keeps leaves at the clients, with their share of the noise alone"
        if what:
            raise InputError(
                f"method.name {name!r} {what}: take ffa_lora, fedavg_lora, rolora, ..., or "
                "--privacy.mechanism dp_sgd."
            )

    def active(self, adapters: Adapters, phase: int) -> Adapters:
        """Returns the server's leaves that a phase trains."""
        return leaves.select(adapters, self.method.parts[phase] | set(HEAD_LEAVES))

    def begin(self, adapters: Adapters) -> Tree:
        """Returns the optimiser's state before the first round, phase by phase."""
        if self.optimizer is None:
            return ()
        active = [self.active(adapters, phase) for phase in range(len(self.method.parts))]
        return tuple(self.optimizer.init(self.method.upload(one, one)) for one in active)

    def step(
        self,
        phase: int,
        adapters: Adapters,
        memory: Tree,
        key: Array,
        noise_factor: tuple[float | Array, float | Array],
        sums: Sums,
        uploads: Callable[[Adapters], tuple[Tree, Array]],
    ) -> tuple[Adapters, Tree]:
        """Returns the server's leaves and its optimiser's state after a round.

        Args:
            phase: of the round.
            adapters: all its leaves before.
            memory: the optimiser's state before.
            key: of this round's noise, for a mechanism that adds it here.
            noise_factor: of the noise multiplier, and of the clip norm.
            sums: over the clients.
            uploads: (what an empty slot sends) -> (stacked uploads, weights), for methods that read them.
        """
        active = self.active(adapters, phase)
        nothing = self.method.upload(active, active)
        mean = self._mean(key, noise_factor, sums, nothing)
        if self.optimizer is not None:
            gradient = jax.tree.map(jnp.subtract, nothing, mean)
            change, mine = self.optimizer.update(gradient, memory[phase], nothing)
            mean = jax.tree.map(jnp.add, nothing, change)
            memory = (*memory[:phase], mine, *memory[phase + 1 :])
        return self.method.read(adapters, mean, *uploads(nothing)), memory

    def _mean(self, key: Array, noise_factor: tuple, sums: Sums, nothing: Tree) -> Tree:
        """Returns the mean upload: of what came, or what the mechanism makes of the sum of what moved."""
        if self.mechanism is None or self.mechanism.private_total is None:
            return mean_upload(sums, fallback=nothing)
        multiplier, clip = noise_factor
        noise = self.mechanism.beside_count(self.noise_multiplier * multiplier) * clip
        moved = self.mechanism.private_total(key, sums.weighted, noise, self.clients)
        return jax.tree.map(jnp.add, nothing, moved)
