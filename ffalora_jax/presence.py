"""What a round takes at unequal sites in simulated seconds, and who is there and in time for it.

All of it is public: who is there and who is late depends on no example. A round's clients are those of the
draw that are there and in time; each pays for privacy as if it came to every round.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax import registry
from ffalora_jax.cohort import Presence
from ffalora_jax.compression import compression_of
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.messages import bytes_of
from ffalora_jax.methods import Method
from ffalora_jax.network import Sites
from ffalora_jax.types import Adapters


class Times(NamedTuple):
    """Simulated seconds of a round at each site; arrays (..., client)."""

    compute: np.ndarray
    upload: np.ndarray
    download: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """From the server's message to the arrival of the upload."""
        return self.compute + self.upload + self.download


def times_of(sites: Sites, flops_per_step: float, up, down) -> Times:
    """Returns the seconds of a round at each site.

    A message of b bytes takes latency + 8 b / (10^6 rate (1 - loss)); a step flops / speed, in proportion to
    the site's batch.

    Args:
        sites: all of them.
        flops_per_step: operations of one local step with the experiment's batch.
        up: bytes that a site sends, a number or (..., client).
        down: bytes that it receives.
    """
    kept = 1e6 * (1 - sites.loss)
    return Times(
        compute=sites.local_steps * sites.work * flops_per_step / (1e9 * sites.speed),
        upload=sites.latency + 8 * np.asarray(up) / (kept * sites.up),
        download=sites.latency + 8 * np.asarray(down) / (kept * sites.down),
    )


def in_time(sites: Sites, flops_per_step: float, up, down, deadline: float) -> Sites:
    """Returns the sites with as many local steps as each can finish, from 1 to its own number."""
    steps = np.clip(_fitting(sites, flops_per_step, up, down, deadline), 1, None)
    return sites._replace(local_steps=steps.astype(np.int32))


def _fitting(sites: Sites, flops_per_step: float, up, down, deadline: float) -> np.ndarray:
    """Returns how many local steps each can finish, at most its own number; below 1 if none."""
    times = times_of(sites, flops_per_step, up, down)
    left = deadline - times.upload - times.download
    fits = np.floor(left * 1e9 * sites.speed / (sites.work * flops_per_step))
    return np.minimum(fits, sites.local_steps)


class _Messages(NamedTuple):
    """What a method's messages take, given the sites' ranks."""

    method: Method
    adapters: Adapters
    slots: int
    rounds: list[int]
    """One of every phase."""
    experiment: Experiment

    def sizes(self, rank: np.ndarray | None) -> list[tuple]:
        """Returns (up, down) of every phase, in bytes."""
        form = compression_of(self.experiment.compression)
        if form is not None and rank is not None:
            raise InputError(
                "Expected compression = 'none' with sites of different ranks: a lower rank is the "
                "compression there."
            )
        more = rank, form, self.experiment.optimizer.control_variates
        return [
            bytes_of(self.method, self.adapters, self.slots, index, *more) for index in self.rounds
        ]

    def largest(self, rank: np.ndarray | None) -> tuple[Any, Any]:
        """Returns the largest of them over the phases."""
        sizes = self.sizes(rank)
        up, down = (np.asarray([size[way] for size in sizes]).max(0) for way in (0, 1))
        return up, down


def presence_of(
    experiment: Experiment,
    method: Method,
    sites: Sites,
    flops_per_step: float,
    adapters: Adapters,
    slots: int,
) -> tuple[Sites, Presence]:
    """Returns the sites, adapted to the deadline where that is asked for, and who is there and in time.

    Raises:
        InputError: ranks that the method cannot mix; a deadline that nobody can keep.
    """
    config, whole = experiment.sites, experiment.method.rank

    def own_ranks(sites):
        return sites.rank if (sites.rank < whole).any() else None

    if own_ranks(sites) is not None and not method.mixed_ranks:
        raise InputError(
            f"method.name {experiment.method.name!r} needs one rank at all sites, and sites.rank differs "
            "from method.rank: take hetlora, flexlora or flora, or leave sites.rank out."
        )
    rounds = _round_of_each_phase(method, experiment.rounds)
    messages = _Messages(method, adapters, slots, rounds, experiment)
    if config.adapt == "deadline":
        assert config.deadline is not None
        if method.mixed_ranks:
            sites = _of_lower_rank(sites, flops_per_step, messages, config.deadline)
        sent = messages.largest(own_ranks(sites))
        sites = in_time(sites, flops_per_step, *sent, config.deadline)
    least = len(method.local_parts)
    if (sites.local_steps < least).any():
        raise InputError(
            f"Expected at least {least} local steps at every site with method.name "
            f"{experiment.method.name!r}, got {int(sites.local_steps.min())}."
        )
    ranks = own_ranks(sites)
    if ranks is not None and registry.lookup("inits", experiment.method.init)().draw is None:
        raise InputError(
            f"method.init {experiment.method.init!r} takes both factors out of W, so that a site of lower "
            "rank would begin without a part of W: take kaiming, gaussian, orthogonal or orthonormal with "
            "sites.rank or sites.adapt."
        )
    sizes = messages.sizes(ranks)
    seconds = np.stack([times_of(sites, flops_per_step, up, down).total for up, down in sizes])
    deadline = math.inf if config.deadline is None else config.deadline
    if seconds.min() > deadline:
        raise InputError(
            f"No site can finish a round by sites.deadline = {deadline:g} s: the fastest takes "
            f"{seconds.min():.3g} s. Raise it, or set --sites.adapt deadline."
        )
    wanted = None  # who comes keeps nobody out: else one client more would move a sum by two
    if config.over_select > 1:
        wanted = experiment.cohort_size or len(sites.speed)
    facts = sites.available, config.sticky, seconds, method.phase_at, deadline, wanted
    return sites, Presence(*facts, config.late_weight)


def _of_lower_rank(
    sites: Sites, flops_per_step: float, messages: _Messages, deadline: float
) -> Sites:
    """Halves the rank of sites whose messages leave them less than half of their local steps.

    Down to rank 1: shorter messages first, then fewer steps (``in_time``), so that all finish together.
    """
    while True:
        fits = _fitting(sites, flops_per_step, *messages.largest(sites.rank), deadline)
        slow = (2 * fits < sites.local_steps) & (sites.rank > 1)
        if not slow.any():
            return sites
        sites = sites._replace(rank=np.where(slow, sites.rank // 2, sites.rank))


def own_numbers(sites: Sites | None, experiment: Experiment) -> tuple[np.ndarray | None, ...]:
    """Returns the clients' own local steps, ranks and batches, each None where all have the experiment's."""
    if sites is None:
        return None, None, None
    limits = experiment.local_steps, experiment.method.rank, experiment.batch_size
    own = sites.local_steps, sites.rank, sites.batch_size
    return tuple(
        each if (each < most).any() else None for each, most in zip(own, limits, strict=True)
    )


def num_asked(experiment: Experiment, cohort_size: int, num_clients: int) -> int:
    """Returns how many clients are drawn for a round of which ``cohort_size`` are wanted."""
    return min(num_clients, math.ceil(cohort_size * experiment.sites.over_select))


def _round_of_each_phase(method: Method, rounds: int) -> list[int]:
    """Returns a late round of every phase, whose messages are those of the run once it goes."""
    last = {int(method.phase_at(index)): index for index in range(rounds)}
    return [last.get(phase, 0) for phase in range(len(method.parts))]
