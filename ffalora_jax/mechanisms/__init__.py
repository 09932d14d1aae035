"""Shelf of privacy mechanisms. To add one, add a file whose ``build(config)`` returns a ``Mechanism``.

A mechanism brings its own bill: sampling, noise and the events to pay for come from one ``plan``, out of
the same numbers. Nobody else computes an epsilon for a run.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ffalora_jax.accounting import Sampling, Steps


class Schedule(NamedTuple):
    """How often a client may contribute: the worst case, whatever the cohort draw."""

    rounds: int
    local_steps: int
    batch_size: int
    noise: tuple[float, ...] = (1.0,)
    """Factor on the noise multiplier by round; the last one stays."""
    client_steps: tuple[int, ...] | None = None
    """Local steps of each client, where they differ."""
    client_batches: tuple[int, ...] | None = None
    """Expected draw of each client, where they differ."""
    bands: int = 1
    """An example may be drawn in one of so many steps, and pays for that one."""

    @property
    def steps(self) -> int:
        """Noised sums of one client over the whole run."""
        return self.rounds * self.local_steps

    def steps_of(self, client: int) -> int:
        """Returns the local steps of one client in a round."""
        return self.local_steps if self.client_steps is None else self.client_steps[client]

    def batch_of(self, client: int) -> int:
        """Returns the expected number of examples in a draw of one client."""
        return self.batch_size if self.client_batches is None else self.client_batches[client]

    def sums(self, rounds: int, a_round: int) -> Steps:
        """Returns the noised sums of so many rounds, ``a_round`` in each, as accounting takes them."""
        if self.bands > 1:
            return ((self.noise[0], -(-rounds * a_round // self.bands)),)
        if len(set(self.noise)) == 1:
            return ((self.noise[0], rounds * a_round),)
        count = len(self.noise)
        return tuple((self.noise[min(index, count - 1)], a_round) for index in range(rounds))


class ClientPlan(NamedTuple):
    """What one client does and pays. Everything here is public."""

    sampling: Sampling
    noise_multiplier: float
    """Noise stddev on a sum, in units of the clip norm: on the client's, or on that over clients."""
    event: Any
    """DpEvent of one step (None where nothing is promised); a run composes it with itself."""
    local_steps: int = 1
    """Noised sums a round that it is in."""
    priced: Sampling | None = None
    """What is sampled and paid for, where that is not the draw of examples: clients."""


class Plan(NamedTuple):
    """What all clients do and pay."""

    clients: tuple[ClientPlan, ...]
    capacity: int
    """Static size of every draw."""
    unit: str | None
    """The privacy unit, ``"example"``; None without privacy."""
    epsilons: Callable[[int, int], list[float]]
    """(client, rounds) -> epsilon after each round 0..rounds."""
    spent: Callable[[int, int], float]
    """(client, rounds) -> epsilon after so many rounds: one point of ``epsilons``, at its price."""
    rounds_within_budget: int
    """Rounds after which the next one would pass the budget of some client."""
    warnings: tuple[str, ...] = ()
    neighbours: str | None = None
    """Which data sets the guarantee compares."""

    @property
    def kinds(self) -> dict[tuple[Sampling, float, int], list[int]]:
        """Clients that sample and pay alike, by how they do; one of each kind stands for all of it."""
        found: dict[tuple[Sampling, float, int], list[int]] = {}
        for index, client in enumerate(self.clients):
            kind = client.sampling, client.noise_multiplier, client.local_steps
            found.setdefault(kind, []).append(index)
        return found

    def largest_epsilons(self, rounds: int) -> list[float]:
        """Epsilon after each round 0..rounds, the largest over the clients."""
        curves = [self.epsilons(alike[0], rounds) for alike in self.kinds.values()]
        return [max(values) for values in zip(*curves, strict=True)]

    def largest_spent(self, rounds: int) -> float:
        """The last point of ``largest_epsilons``, at its price."""
        return max(self.spent(alike[0], rounds) for alike in self.kinds.values())


class Correlated(NamedTuple):
    """Noise at clients that depends on that of earlier steps."""

    bands: int
    """Step t of the run draws from the examples whose place is t modulo so many."""
    begin: Callable
    """(a client's trained leaves) -> what it remembers of its noise before the first step."""
    private_grad: Callable
    """(key, summed gradients, noise multiplier, what it remembers) -> (gradient, what it remembers)."""


class Mechanism(NamedTuple):
    """Pure functions that every private or non-private run calls in the same places."""

    plan: Callable[[Sequence[int], Schedule, Sequence[float] | None], Plan]
    """(client sizes, schedule, noise multipliers of a run that goes on, or None) -> who samples how, with
    which noise, for which epsilon."""
    private_grad: Callable
    """(key, summed gradients, noise multiplier) -> gradient that may be used and kept."""
    clip_norm: float
    """L2 bound of one example's gradient; infinity switches clipping off."""
    statement: str = ""
    """In words: what is protected, against whom."""
    trust_model: str = ""
    private_update: Callable | None = None
    """(what a client's upload moved, the round's factor on the clip norm) -> (the same within that, its norm
    before); None: what leaves a client is private already."""
    private_total: Callable | None = None
    """(key, sum of what ``private_update`` gave, noise multiplier, expected number of clients) -> their mean,
    which the server may use."""

    adapt: Callable | None = None
    """(key, clip norm in units of the first one, sum over a draw of +1/2 for what was within the norm and
    -1/2 for what was cut) -> the next one; by step at clients, by round at a server that noises sums."""
    beside_count: Callable = lambda noise_multiplier: noise_multiplier
    """Noise multiplier of the plan -> what is left of it for the sum, where a count is paid for too."""
    sums_integers: bool = False
    """Whether ``private_update`` gives integers (uint32), of which the server sees the sum modulo 2^32."""

    correlated: Correlated | None = None
    """Stands in for ``private_grad`` where the noise of steps depends on each other."""

    @property
    def hides_uploads(self) -> bool:
        """Whether the server may use the sum over the clients and no single upload.

        A method that reads single uploads cannot have such a mechanism.
        """
        return self.private_total is not None


def nothing_promised(client: int, rounds: int) -> float:
    """The last point of ``no_epsilons``."""
    return float("inf")


def no_epsilons(client: int, rounds: int) -> list[float]:
    """The bill of a mechanism that promises nothing."""
    return [float("inf")] * (rounds + 1)
