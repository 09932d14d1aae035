"""A round's clients only: their examples moved from the host to the devices that compute them.

For more data than a device holds, for a cohort of hundreds out of a million, and for several processes.
What is moved does not grow with the clients that do not take part.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from ffalora_jax.cohort import ClientData, Cohort, Prefix, RoundSettings
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.mesh import dealt, gathered, my_shards, num_shards
from ffalora_jax.round import ClientNumbers
from ffalora_jax.types import Tree

HOST_BYTES = 2**30
"""Of training examples, above which only those of a round's clients are moved to the device."""


class Hand(NamedTuple):
    """What a round needs of its clients, leaves (slot, ...) in the order of the cohort's slots."""

    cohort: Cohort
    """On the host."""
    data: ClientData
    numbers: ClientNumbers


class Dealer:
    """Holds all clients' leaves on the host and deals out those of a cohort, in static shapes.

    Of a device with S slots the S largest clients always fit; where slots hold smaller ones, the rest of
    the rows is padding that no ``members`` names.
    """

    def __init__(
        self, data: ClientData, numbers: ClientNumbers, settings: RoundSettings, mesh: Mesh | None
    ):
        self.data, self.numbers = jax.tree.map(np.asarray, (data, numbers))
        self.mesh, shards = mesh, num_shards(mesh)
        self.keeps_late = settings.late_weight > 0
        self.slots = settings.slots(shards)
        self.per_shard = self.slots // shards
        self.rows = int(np.sort(self.data.sizes)[-self.per_shard :].sum())
        self.tokens = 0
        if self.data.prefix is not None:
            counts = self.data.prefix.counts
            of_clients = [
                counts[m[:n]].sum() for m, n in zip(self.data.members, self.data.sizes, strict=True)
            ]
            self.tokens = int(np.sort(of_clients)[-self.per_shard :].sum())

    def deal(self, cohort: Cohort) -> Hand:
        """Moves a cohort's examples and numbers to the devices."""
        missing = self.slots - cohort.clients.shape[0]
        cohort = jax.tree.map(lambda leaf: np.pad(np.asarray(leaf), (0, missing)), cohort)
        clients = np.asarray(cohort.clients)
        shards = [self._shard(clients[self._slots(k)]) for k in my_shards(self.mesh)]
        data = jax.tree.map(lambda *parts: np.concatenate(parts), *shards)
        numbers = jax.tree.map(lambda leaf: leaf[self._here(clients)], self.numbers)
        return Hand(cohort, *dealt(self.mesh, (data, numbers)))

    def personal(self, cohort: Cohort, personal: Tree) -> Tree:
        """Moves a cohort's personal leaves, out of those of all clients (client, ...)."""
        here = self._here(cohort.clients)
        return dealt(self.mesh, jax.tree.map(lambda leaf: leaf[here], personal))

    def collect(self, cohort: Cohort, after: Tree, personal: Tree) -> None:
        """Writes a cohort's personal leaves back into those of all clients, in place."""
        there = np.asarray(cohort.is_real)
        if self.keeps_late and cohort.late is not None:
            # Whose last upload was under way comes back as it was.
            there = there | np.asarray(cohort.late)

        def write(whole, part):
            whole[cohort.clients[there]] = gathered(part)[there]

        jax.tree.map(write, personal, after)

    def _here(self, clients: np.ndarray) -> np.ndarray:
        """Returns the clients of this process's slots."""
        return np.concatenate([clients[self._slots(shard)] for shard in my_shards(self.mesh)])

    def _slots(self, shard: int) -> np.ndarray:
        return np.arange(shard * self.per_shard, (shard + 1) * self.per_shard)

    def _shard(self, clients: np.ndarray) -> ClientData:
        """Returns one device's data: its clients' rows one after another, members counted from the first."""
        sizes = self.data.sizes[clients]
        owned = [self.data.members[c][:n] for c, n in zip(clients, sizes, strict=True)]
        starts = np.cumsum([0, *sizes[:-1]])
        rows = np.concatenate(owned)
        # A client that stands in several (empty) slots may take more room than the largest ones: cut off.
        rows = np.pad(rows[: self.rows], (0, max(0, self.rows - len(rows))))
        within = np.arange(self.data.members.shape[1])
        members = np.where(within < sizes[:, None], starts[:, None] + within, 0)
        return ClientData(
            inputs={name: leaf[rows] for name, leaf in self.data.inputs.items()},
            labels=self.data.labels[rows],
            lengths=self.data.lengths[rows],
            members=np.minimum(members, self.rows - 1).astype(np.int32),
            sizes=sizes,
            prefix=self._prefix(rows, int(sizes.sum())),
            names=rows.astype(np.int32),
        )

    def _prefix(self, rows: np.ndarray, num_real: int) -> Prefix | None:
        """Returns the states of a device's rows, one after another; padded rows have none."""
        whole = self.data.prefix
        if whole is None:
            return None
        counts = np.where(np.arange(len(rows)) < num_real, whole.counts[rows], 0)
        ends = np.minimum(np.cumsum(counts), self.tokens)
        starts = np.concatenate([[0], ends[:-1]])
        token = np.repeat(whole.starts[rows] - starts, ends - starts) + np.arange(ends[-1])
        hidden = np.zeros((self.tokens, whole.hidden.shape[1]), whole.hidden.dtype)
        hidden[: len(token)] = whole.hidden[token]
        parts = [starts.astype(np.int32), (ends - starts).astype(np.int32), whole.places]
        return Prefix(hidden, *parts)


def where_data_lies(
    experiment: Experiment, settings: RoundSettings, data: ClientData, remembers: bool
) -> RoundSettings:
    """Says whether a round's clients are dealt from the host: then a call is one round, if they change.

    ``remembers``: whether clients keep more than leaves from round to round; that stays on the device.

    Raises:
        InputError: they do, and the data is to be dealt.
    """
    part_only = settings.slots(1) < settings.num_clients
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(data))
    by_slot = {"device": False, "host": True, "auto": part_only and nbytes > HOST_BYTES}
    if remembers and (experiment.client_data == "host" or jax.process_count() > 1):
        raise InputError(
            "Expected client_data = 'device' or 'auto' and one process where clients keep "
            "more than leaves from round to round (optimizer.control_variates, dp_sgd_banded): that lies "
            "on the device."
        )
    if remembers or not (by_slot[experiment.client_data] or jax.process_count() > 1):
        return settings
    calls = 1 if settings.changes else settings.rounds_per_call
    return settings._replace(by_slot=True, rounds_per_call=calls)
