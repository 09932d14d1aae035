"""Which clients take part in a round, and which examples a local step draws; all inside jit.

The data stays on the device as one flat set of rows; a client is a row of indices into it. Draws are
Poisson with a static capacity: every example of the client is included with probability q on its own;
if more than ``capacity`` are, a uniformly random ``capacity`` of them stay. The accountant is told
(``accounting.capped_event``).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from ffalora_jax import rng
from ffalora_jax.rng import Keys
from ffalora_jax.types import Leaf


class Prefix(NamedTuple):
    """What the blocks below the lowest adapter give every example, its tokens one after another."""

    hidden: Leaf
    """(token, feature)."""
    starts: Leaf
    """Where an example's tokens begin (example,), int32."""
    counts: Leaf
    """How many it has (example,), int32."""
    places: Leaf
    """0, 1, ... (token,) up to the most that an example has: only its shape matters."""


class ClientData(NamedTuple):
    """Training examples on the device (or the host), and who owns which."""

    inputs: dict[str, Leaf]
    """Leaves (example, ...), e.g. input_ids and attention_mask (N, T)."""
    labels: Leaf
    """(example,), int32."""
    lengths: Leaf
    """Number of real tokens of an example (example,)."""
    members: Leaf
    """Rows owned by a client (client, slot); slots from ``sizes`` on are padding."""
    sizes: Leaf
    """(client,)."""
    prefix: Prefix | None = None
    """Where it is not computed anew in every step."""
    names: Leaf | None = None
    """Number of each among all, where a part of them lies here."""


class Cohort(NamedTuple):
    """The clients of one round."""

    clients: Leaf
    """(slot,), int32."""
    is_real: Leaf
    """(slot,); False where nobody takes part."""
    late: Leaf | None = None
    """(slot,); who was asked and is there, and comes too late to take part; None: nobody can."""


class Batch(NamedTuple):
    """Rows of one draw; the real ones come first."""

    rows: Int[Array, "*lead slot"]
    is_real: Bool[Array, "*lead slot"]


def client_data(inputs, labels, lengths, owners: Sequence[np.ndarray]) -> ClientData:
    """Puts the training examples on the device; ``owners[k]`` are client k's rows."""
    return jax.tree.map(jnp.asarray, host_data(inputs, labels, lengths, owners))


def host_data(inputs, labels, lengths, owners: Sequence[np.ndarray]) -> ClientData:
    """Does ``client_data`` on the host (NumPy)."""
    width = max(len(rows) for rows in owners)
    members = np.zeros((len(owners), width), np.int32)
    for client, rows in enumerate(owners):
        members[client, : len(rows)] = rows
    return ClientData(
        inputs={name: np.asarray(leaf) for name, leaf in inputs.items()},
        labels=np.asarray(labels, np.int32),
        # A text without a token counts as one of padding: packed, it needs a place of its own.
        lengths=np.maximum(np.asarray(lengths, np.int32), 1),
        members=members,
        sizes=np.asarray([len(rows) for rows in owners], np.int32),
    )


class Presence(NamedTuple):
    """Who of a draw is there and in time; public."""

    available: np.ndarray
    """Probability of being there (round of the cycle, client)."""
    sticky: int
    """Rounds that what was drawn lasts."""
    seconds: np.ndarray
    """When an upload would arrive (phase of the method, client)."""
    phase_at: Callable
    deadline: float
    wanted: int | None
    """Of those who are there and in time, so many are taken, the first to come; None: all."""
    late_weight: float = 0.0
    """Of uploads that come within twice the deadline, in the next round; 0: they are dropped."""


class RoundSettings(NamedTuple):
    """Static facts of a round."""

    num_clients: int
    cohort_size: int
    cohort_sampling: str
    chunk: int
    weights: str
    rounds_per_call: int
    secret_cohort: bool = False
    """Who takes part is drawn from the secret key, and is what the mechanism paid for."""
    by_slot: bool = False
    """Data, numbers and personal leaves hold the cohort's slots only, in their order (``deal``)."""
    monitor: bool = False
    """Whether rounds say what their uploads show (``monitor``)."""
    presence: Presence | None = None
    """None: everybody that is drawn takes part."""

    @property
    def late_weight(self) -> float:
        """Weight of late uploads in the next round; 0: they are dropped, or nobody is late."""
        return 0.0 if self.presence is None else self.presence.late_weight

    @property
    def changes(self) -> bool:
        """Whether another round has other clients."""
        part_only = self.cohort_size < self.num_clients or self.presence is not None
        return self.cohort_sampling == "poisson" or part_only

    def slots(self, shards: int) -> int:
        """Returns the static number of client slots, a multiple of the devices that share them."""
        count = cohort_capacity(self.num_clients, self.cohort_size, self.cohort_sampling)
        return -(-count // shards) * shards


def draw_cohort(
    key: Array, num_clients: int, cohort_size: int, sampling: str, capacity: int
) -> Cohort:
    """Draws the clients of a round: exactly ``cohort_size``, or each with cohort_size / num_clients.

    The server sees who takes part, so nothing is amplified by this draw and its key is public; only a
    mechanism whose server is trusted draws in secret (``draw_cohort_of``).
    """
    if sampling == "fixed" and cohort_size == num_clients:
        return Cohort(jnp.arange(num_clients), jnp.ones(num_clients, bool))
    order = jax.random.uniform(key, (num_clients,))
    if sampling == "fixed":
        return Cohort(jnp.argsort(order)[:cohort_size], jnp.ones(cohort_size, bool))
    included = order < cohort_size / num_clients
    clients = jnp.argsort(jnp.where(included, order, jnp.inf))[:capacity]
    return Cohort(clients, included[clients])


def cohort_capacity(num_clients: int, cohort_size: int, sampling: str) -> int:
    """Returns the static number of client slots in a round: mean + 4 stddev for Poisson cohorts."""
    if sampling == "fixed":
        return cohort_size
    return min(num_clients, int(np.ceil(cohort_size + 4 * np.sqrt(cohort_size))))


def threshold(probability: float) -> np.uint32:
    """Returns the number of 32-bit words, out of 2^32, that include an example: never more than asked for.

    A float32 would do so in steps of 2^-23 and round up: at a probability of 1e-6, 7 % too often.
    """
    return np.uint32(min(int(probability * 2**32), 2**32 - 1))


def draw_cohort_of(settings: RoundSettings, keys: Keys, round_index) -> Cohort:
    """Draws the clients of a round, in secret where the mechanism needs it so; those who are there stay."""
    count, size = settings.num_clients, settings.cohort_size
    if settings.secret_cohort and size < count:
        key = rng.stream(keys.secret, rng.Purpose.SECRET_COHORT, round_index)
        limit = jnp.asarray(threshold(size / count))
        drawn = draw_batch(key, jnp.arange(count), jnp.int32(count), limit, settings.slots(1))
        cohort = Cohort(*drawn)
    else:
        key = rng.stream(keys.public, rng.Purpose.COHORT, round_index)
        cohort = draw_cohort(key, count, size, settings.cohort_sampling, settings.slots(1))
    if settings.presence is None:
        return cohort
    return _those_present(settings.presence, keys.public, round_index, cohort)


def _those_present(presence: Presence, public: Array, round_index, cohort: Cohort) -> Cohort:
    """Leaves out who is not there, late, or after the last one wanted; depends on no example."""
    key = rng.stream(public, rng.Purpose.PRESENCE, round_index // presence.sticky)
    chance = jnp.asarray(presence.available, jnp.float32)
    chance = chance[round_index % chance.shape[0]]
    there = jax.random.uniform(key, chance.shape) < chance
    arrival = jnp.asarray(presence.seconds, jnp.float32)[presence.phase_at(round_index)]
    arrival = arrival[cohort.clients]
    asked = cohort.is_real & there[cohort.clients]
    kept = asked & (arrival <= presence.deadline)
    if presence.wanted is not None:
        place = jnp.argsort(jnp.argsort(jnp.where(kept, arrival, jnp.inf)))
        kept &= place < presence.wanted
    late = asked & ~kept
    if presence.late_weight:
        late &= arrival <= 2 * presence.deadline
    return Cohort(cohort.clients, kept, late)


def draw_batch(
    key: Array,
    members: Int[Array, " slot"],
    size: Int[Array, ""],
    limit: UInt32[Array, ""],
    capacity: int,
    group: tuple[Array, int] | None = None,
) -> Batch:
    """Draws a client's examples for one step.

    Guarantee: every one of the first ``size`` members is included independently with probability
    limit / 2^32 (``threshold``); of more than ``capacity`` included ones a uniformly random subset of that
    size remains, since the slots are filled in the order of the same random words. With ``group`` (i, b) that
    holds for the members whose place is i modulo b, and no other is drawn.
    """
    (count,) = members.shape
    words, place = jax.random.bits(key, (count,), "uint32"), jnp.arange(count)
    included = (words < limit) & (place < size)
    if group is not None:
        included &= place % group[1] == group[0]
    last = jnp.uint32(jnp.iinfo(jnp.uint32).max)  # above every included word: words < limit <= last
    slots = jnp.argsort(jnp.where(included, words, last))[: min(capacity, count)]
    return Batch(members[slots], included[slots])


def draw_local_batches(
    key: Array,
    round_index,
    client,
    data: ClientData,
    place,
    limit,
    local_steps: int,
    capacity: int,
    own_steps=None,
    bands: int = 1,
) -> Batch:
    """Draws all steps of one client in one round: leaves (step, slot).

    ``place``: its row of members; ``own_steps``: after so many of its own it draws nothing; None: all;
    ``bands``: groups of its members that take turns over all steps of the run.
    """

    def one(step):
        return draw_batch(
            rng.stream(key, rng.Purpose.BATCH, round_index, client, step),
            data.members[place],
            data.sizes[place],
            limit if own_steps is None else jnp.where(step < own_steps, limit, jnp.uint32(0)),
            capacity,
            None if bands == 1 else ((round_index * local_steps + step) % bands, bands),
        )

    return jax.lax.map(one, jnp.arange(local_steps))


def longest_first(batch: Batch, lengths: Int[Array, " example"]) -> Batch:
    """Orders a draw by length, real examples first, so that neighbours need the same width."""
    order = jnp.argsort(jnp.where(batch.is_real, -lengths[batch.rows], 1))
    return Batch(batch.rows[order], batch.is_real[order])


class Examples(NamedTuple):
    """Some rows with what they hold; leading axis: example."""

    inputs: dict[str, Array]
    labels: Int[Array, "*example"]
    rows: Int[Array, "*example"]


def take(data: ClientData, rows: Int[Array, " slot"], width: int | None = None) -> Examples:
    """Returns the examples of some rows; leaves with a token axis are cut to ``width``."""

    def rows_of(leaf):
        return leaf[rows] if width is None or leaf.ndim == 1 else leaf[rows, :width]

    inputs = {name: rows_of(leaf) for name, leaf in data.inputs.items()}
    if data.prefix is not None:
        places = data.prefix.places[None, :width]
        seen = places < data.prefix.counts[rows, None]
        inputs["hidden"] = hidden_of(data.prefix, rows[:, None], places, seen)
    return Examples(inputs, data.labels[rows], rows if data.names is None else data.names[rows])


def hidden_of(prefix: Prefix, rows: Array, places: Array, seen: Array) -> Array:
    """Returns the kept states of some tokens of some examples (..., feature); zero where not ``seen``."""
    token = jnp.where(seen, prefix.starts[rows] + places, 0)
    return jnp.where(seen[..., None], prefix.hidden[token], 0)
