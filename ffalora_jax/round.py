"""One federated round, compiled once: vmap of the clients in chunks, then one mean (Sun et al. 2024, alg. 1).

``(keys, state, frozen, data, plan, num_rounds) -> (state, info)``: several rounds run in one call, so the
host is not in the loop; how many is a value, not a shape, so nothing compiles again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from ffalora_jax import adapters as leaves
from ffalora_jax import controls, monitor, rng
from ffalora_jax.aggregation import Late, ring, weighted_sum, with_late
from ffalora_jax.client import ClientFacts, Frozen, Memory, Participant
from ffalora_jax.cohort import Batch, ClientData, Cohort, RoundSettings, draw_cohort_of
from ffalora_jax.mesh import kept_dealt, kept_whole, num_shards, over_devices
from ffalora_jax.rng import Keys
from ffalora_jax.server import Server
from ffalora_jax.slots import (
    fill_up,
    inverse_losses,
    keep,
    not_under_way,
    of_clients,
    of_those_there,
    over_clients,
)
from ffalora_jax.types import Adapters, Leaf, Tree
from ffalora_jax.uploads import clip_factor, next_clip_factor, noise_factor, on_the_way


@struct.dataclass
class RoundState:
    """What the next round needs, and nothing else."""

    adapters: Adapters
    """The server's trained leaves."""
    personal: Tree
    """Leaves that stay at their client, with a leading axis of all clients (or of the slots, as the data)."""
    round_index: Leaf
    """0-based, int32 scalar."""
    server: Tree = ()
    """State of the server's optimiser, phase by phase."""
    clip_factor: Leaf | None = None
    """Clip norm in units of the one that was set, where it adapts."""
    control: Adapters | None = None
    """The server's control variate, where there is one (``controls``)."""
    memory: Memory = Memory()
    """What the clients keep beside their leaves (client, ...)."""
    late: Late | None = None
    """Uploads that are under way, where they count in the next round."""


class ClientNumbers(NamedTuple):
    """The plan's per-client numbers as arrays (client,), or (slot,) as the data."""

    threshold: Leaf
    """Probability of an example in a draw, in units of 2^-32 (``cohort.threshold``)."""
    noise_multiplier: Leaf
    """Noise stddev on a sum, in units of the clip norm."""
    local_steps: Leaf | None = None
    """Where they differ."""
    rank: Leaf | None = None
    """Where they differ."""
    batch_size: Leaf | None = None
    """Expected examples of a draw, where they differ."""


class RoundInfo(NamedTuple):
    """What a round tells the host; leading axis: rounds of the call."""

    clients: Int[Array, "*round slot"]
    """Who was in the slots of the cohort."""
    took_part: Bool[Array, "*round slot"]
    """False for slots that stayed empty."""
    update_norm: Float[Array, "*round"]
    """L2 norm of the mean update."""
    facts: ClientFacts
    """Per slot. Not private."""
    late: Bool[Array, "*round slot"] | None = None
    """Who came too late."""
    clip_factor: Float[Array, "*round"] | None = None
    """Of the round, where the clip norm adapts; private."""
    monitor: dict[str, Array] | None = None
    """What ``monitor`` sees, where it is asked for; private."""


def make_round(
    local_update: Callable, server: Server, settings: RoundSettings, mesh: Mesh | None = None
) -> Callable:
    """Builds the pure function of one round.

    ``round_step(keys, state, frozen, data, numbers, batches=None, cohort=None) -> (state, info)``;
    ``batches`` (cohort slot, step, slot) and ``cohort`` replace the draws. With a mesh every device has a
    share of the slots; an empty slot draws nothing, and its upload is masked.

    A method of several phases is as many programs in one, of which a round runs that of its phase: what is
    not trained in it is frozen, out of the clipped vector, and not sent.
    """
    method = server.method
    phases = [
        _make_phase(local_update, server, phase, settings, mesh)
        for phase in range(len(method.parts))
    ]
    if len(phases) == 1:
        return phases[0]

    def round_step(keys, state, frozen, data, numbers, batches=None, cohort=None):
        given = keys, state, frozen, data, numbers, batches, cohort
        branches = [lambda given, phase=phase: phase(*given) for phase in phases]
        return jax.lax.switch(method.phase_at(state.round_index), branches, given)

    return round_step


def _make_phase(
    local_update: Callable, server: Server, phase: int, settings: RoundSettings, mesh: Mesh | None
) -> Callable:
    """Does ``make_round`` for rounds in which the same leaves are trained."""
    method, by_slot = server.method, settings.by_slot
    shards = num_shards(mesh)
    late_weight = settings.late_weight

    def on_one_device(shared, apart):
        secret, round_index, frozen, active, data = shared
        clients, mine, (personal, memory), (is_real, late), weights, batches, here, around = apart
        data = here if by_slot else data
        count = is_real.shape[0]
        places = jnp.arange(count) if by_slot else clients
        start = leaves.merge(leaves.stack(active, count), personal)
        everyone = Participant(clients, places, start, *mine, batches=batches, memory=memory)
        given = secret, round_index, frozen, data
        ends, remembered, facts = over_clients(local_update, given, everyone, settings.chunk)
        sent = leaves.select(ends, leaves.names(active))
        uploads = jax.vmap(method.upload, in_axes=(None, 0), axis_size=count)(active, sent)
        if server.control_scale is not None:
            change = jax.tree.map(jnp.subtract, remembered.control, memory.control)
            uploads = controls.beside(uploads, change, server.control_scale)
        bound = clip_factor(frozen, round_index)
        sent = secret, round_index, clients, uploads, server.nothing(active), bound, around
        uploads, norms = on_the_way(server, *sent)
        if norms is not None:
            facts = facts._replace(update_norm=norms)
        stays = leaves.select(ends, leaves.names(personal))
        if settings.weights == "inverse_loss":
            weights = inverse_losses(facts)
        sums = weighted_sum(uploads, is_real, weights), None
        if late_weight:
            moved = jax.tree.map(
                lambda leaf, own: leaf - own[None], uploads, server.nothing(active)
            )
            sums = sums[0], weighted_sum(moved, late, weights)
        return (stays, remembered, uploads), facts, sums

    def round_step(
        keys: Keys,
        state: RoundState,
        frozen: Frozen,
        data: ClientData,
        numbers: ClientNumbers,
        batches: Batch | None = None,
        cohort: Cohort | None = None,
    ) -> tuple[RoundState, RoundInfo]:
        if cohort is None:
            cohort = draw_cohort_of(settings, keys, state.round_index)
        filled, batches = fill_up(cohort, batches, shards)
        filled = kept_whole(mesh, filled)
        if late_weight and state.late is not None:
            filled = not_under_way(filled, state.late.under_way)
        clients, is_real, late = filled
        busy = filled._replace(is_real=is_real | late) if late_weight else filled

        def of_slots(tree):
            return tree if by_slot else jax.tree.map(lambda leaf: leaf[clients], tree)

        active = server.active(state.adapters, phase)
        held = leaves.without(state.adapters, leaves.names(active))
        frozen = frozen._replace(
            adapters=leaves.merge(frozen.adapters, held),
            clip_factor=state.clip_factor,
            control=controls.of(state.control, active),
        )
        memory = state.memory._replace(control=controls.of(state.memory.control, active))
        own = of_slots((state.personal, memory))
        mine = of_slots(numbers)
        mine = mine._replace(threshold=jnp.where(busy.is_real, mine.threshold, jnp.uint32(0)))
        weights = of_slots(data.sizes).astype(jnp.float32) if settings.weights == "size" else None
        shared = keys.secret, state.round_index, frozen, active, None if by_slot else data
        around = None
        if server.mechanism is not None and server.mechanism.sums_integers:
            around = jnp.arange(is_real.shape[0]), ring(is_real)
        apart = (
            clients,
            mine,
            own,
            (is_real, late),
            weights,
            batches,
            data if by_slot else None,
            around,
        )
        (*stays, uploads), facts, sums = over_devices(on_one_device, mesh, shared, apart)
        sums, moved_late = sums
        if settings.weights == "inverse_loss":
            weights = inverse_losses(facts)
        if late_weight and state.late is not None:
            sums = with_late(sums, state.late, server.nothing(active), late_weight)
        after, optimizer_state, control = server.step(
            phase,
            state.adapters,
            state.server,
            state.control,
            rng.stream(keys.secret, rng.Purpose.SERVER_NOISE, state.round_index),
            noise_factor(frozen, state.round_index),
            sums,
            lambda nothing: of_those_there(uploads, nothing, weights, filled),
        )
        change = jax.tree.map(jnp.subtract, after, state.adapters)
        info = RoundInfo(
            clients,
            is_real,
            optax.tree.norm(change) if change else jnp.float32(0),
            facts,
            late,
            state.clip_factor,
            _watched(server, phase, state.adapters, after, uploads, weights, filled)
            if settings.monitor
            else None,
        )
        after = leaves.merge(after, server.redraw(keys.public, state.round_index + 1))
        personal, memory = keep((state.personal, memory), tuple(stays), busy, by_slot)
        if state.memory.control is not None:
            whole = leaves.merge(state.memory.control, memory.control)
            memory = memory._replace(control=whole)
        factor = next_clip_factor(server, keys.secret, state.round_index, frozen, facts, is_real)
        under_way = None
        if late_weight and late is not None:
            under_way = Late(moved_late, of_clients(filled, late, settings.num_clients))
        done = after, personal, state.round_index + 1, optimizer_state, factor, control, memory
        return RoundState(*done, under_way), info

    return round_step


def _watched(server: Server, phase: int, before, after, uploads, weights, cohort: Cohort):
    """Returns what the server's leaves show, and single uploads if those may be looked at."""
    found = monitor.of_server(before, after)
    if server.mechanism is None:
        active = server.active(before, phase)
        nothing = server.method.upload(active, active)
        sent = leaves.select(uploads, leaves.names(nothing))
        there = of_those_there(sent, nothing, weights, cohort)
        found |= monitor.of_clients(nothing, *there)
    return found


def make_rounds(
    round_step: Callable, settings: RoundSettings, mesh: Mesh | None = None
) -> Callable:
    """Returns the jitted ``(keys, state, frozen, data, numbers, num_rounds, cohort=None) -> (state, infos)``.

    Up to ``settings.rounds_per_call`` rounds by ``lax.scan``; rounds from ``num_rounds`` on are skipped,
    so a last, shorter call is the same program. A given ``cohort`` is that of all of them.
    """
    step = jax.jit(round_step)  # traced once: for its shapes, and to be run

    @jax.jit
    def run_rounds(keys, state, frozen, data, numbers, num_rounds, cohort=None):
        one = lambda state: step(keys, state, frozen, data, numbers, None, cohort)  # noqa: E731
        nothing = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, state)[1]
        )

        def body(state, index):
            return jax.lax.cond(index < num_rounds, one, lambda state: (state, nothing), state)

        after, infos = jax.lax.scan(body, state, jnp.arange(settings.rounds_per_call))
        # Where the next call expects them: as they came.
        keep = kept_dealt if settings.by_slot else kept_whole
        here = RoundState(
            kept_whole(mesh, after.adapters),
            keep(mesh, after.personal),
            kept_whole(mesh, after.round_index),
            kept_whole(mesh, after.server),
            kept_whole(mesh, after.clip_factor),
            kept_whole(mesh, after.control),
            keep(mesh, after.memory),
            kept_whole(mesh, after.late),
        )
        return here, kept_whole(mesh, infos)

    return run_rounds
