"""Local training of one client: ``local_steps`` private steps on its own data (Sun et al. 2024, section 3).

Comes after ``cohort`` (which draws the batches) and before ``aggregation`` (which averages the uploads).
Written for a single client without a client axis; ``round`` names that axis.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32

from ffalora_jax import adapters as leaves
from ffalora_jax import controls, rng
from ffalora_jax.clipping import Blocks, ClipFacts, clipped_sum_in_blocks
from ffalora_jax.cohort import Batch, ClientData, Examples, draw_local_batches
from ffalora_jax.lora import LoraModel
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.methods import Method
from ffalora_jax.probes import Packing, packed_clipped_sum
from ffalora_jax.schedules import Rates
from ffalora_jax.tasks import Task
from ffalora_jax.types import HEAD_LEAVES, Adapters, Tree


class Frozen(NamedTuple):
    """What no client trains: the same for all, unbatched, an argument of the compiled round."""

    backbone: Tree
    adapters: Adapters
    """The frozen factor, e.g. ``lora_a`` in FFA-LoRA."""
    rates: Rates | None = None
    """Schedules by round; None: all settings stay as they are."""
    clip_factor: Float[Array, ""] | None = None
    """Clip norm of the round (at its begin) in units of the one that was set; None: it does not adapt."""
    control: Adapters | None = None
    """The server's control variate of the leaves that are trained and sent (``controls``); None: without."""


class Memory(NamedTuple):
    """What a client keeps from round to round beside its leaves; of all clients: leaves (client, ...)."""

    control: Adapters | None = None
    """Its own control variate: the mean of its private gradients in the last round that it was in."""
    noise: Tree | None = None
    """Its last noise, where later noise depends on it (``mechanisms.Correlated``)."""


class Participant(NamedTuple):
    """What is one client's own in a round."""

    client: Int[Array, ""]
    place: Int[Array, ""]
    """Its row in ``ClientData.members``."""
    start: Adapters
    """Trained leaves at the start: the server's, and its personal ones."""
    threshold: UInt32[Array, ""]
    noise_multiplier: Float[Array, ""]
    local_steps: Int[Array, ""] | None
    """Its own number of steps, the others being left out; None: all."""
    rank: Int[Array, ""] | None
    """Its own rank; None: that of the factors."""
    batch_size: Int[Array, ""] | None
    """Its own expected draw, which its sums are divided by; None: the mechanism's."""
    batches: Batch | None
    """Given draws (step, slot); None: drawn here."""
    memory: Memory = Memory()


class ClientFacts(NamedTuple):
    """Summed over a client's steps, except the norm. Not private."""

    clip: ClipFacts
    update_norm: Float[Array, ""]
    """L2 norm of what the round changed at the client: of noised steps, and so private, under example-level
    privacy; before the noise where the server adds it. Not finite: the client diverged, and moved nothing."""
    clip_factor: Float[Array, ""] | None = None
    """What its clip norm came to, where it adapts here."""
    heard: dict[str, tuple[Array, Array]] | None = None
    """By layer: squared norm of the clipped sums and expected one of their noise, where that is watched."""


def make_local_update(
    model: LoraModel,
    task: Task,
    mechanism: Mechanism,
    method: Method,
    optimizer: optax.GradientTransformation,
    local_steps: int,
    capacity: int,
    blocks: Blocks,
    packing: Packing | None = None,
    proximal: float = 0.0,
    expected: int = 1,
    watch: bool = False,
    separate: int = 1,
) -> Callable:
    """Builds ``(noise_key, round_index, frozen, data, participant) -> (end, Memory, ClientFacts)``.

    Where the mechanism sums integers, what moved is given in place of the end.

    Guarantee: every number that leaves or stays, personal leaves included, depends on the examples only
    through ``mechanism.private_grad`` of sums whose sensitivity is ``mechanism.clip_norm``. An empty draw
    still adds noise. The optimiser's state starts anew in every round.
    """
    parts = method.local_parts or (None,)
    adapt = mechanism.adapt if mechanism.private_update is None else None
    correlated, bound = mechanism.correlated, mechanism.clip_norm
    watch = watch and mechanism.private_update is None and correlated is None
    on_grid = mechanism.sums_integers

    def local_update(noise_key, round_index, frozen: Frozen, data: ClientData, me: Participant):
        begin = _within(me.start, me.rank)

        def example_loss(trained, example: Examples, held, index):
            adapters = leaves.merge(held, trained)
            place = (round_index, me.client, index, example.rows)
            key = rng.stream(noise_key, rng.Purpose.DROPOUT, *place) if model.dropout else None

            def loss(adapters):
                forward = partial(model.apply_training, frozen.backbone, adapters, key)
                return task.loss(forward, example.inputs, example.labels)

            return loss(adapters) if model.members == 1 else jnp.sum(jax.vmap(loss)(adapters))

        def clipped(trained, held, batch, index, clip_norm):
            if packing is None:
                loss = partial(example_loss, held=held, index=index)
                where = trained, data, batch, clip_norm, blocks, separate
                return clipped_sum_in_blocks(loss, *where)
            where = frozen.backbone, held, trained
            return packed_clipped_sum(model, task, *where, data, batch, clip_norm, packing)

        def advance(number, carry, index, batch):
            """One step on the leaves of a part; the others are as if frozen."""
            everything, states, factor, sums, past = carry
            now = _in_effect(frozen, mechanism, me, round_index, factor)
            trained, held = _split(everything, parts[number])
            total, facts = clipped(
                trained, leaves.merge(frozen.adapters, held), batch, index, now.clip_norm
            )
            key = rng.stream(noise_key, rng.Purpose.NOISE, round_index, me.client, index)
            if correlated is None:
                gradient = mechanism.private_grad(key, total, now.noise_multiplier)
            else:
                gradient, past = correlated.private_grad(key, total, now.noise_multiplier, past)
            if me.batch_size is not None:  # the mechanism divided by the experiment's
                own = expected / me.batch_size
                gradient = jax.tree.map(lambda leaf: own * leaf, gradient)
            gradient = _within(method.filtered(gradient), me.rank)
            if frozen.control is not None and me.memory.control is not None:
                sums = controls.added(sums, gradient)
                gradient = controls.corrected(gradient, frozen.control, me.memory.control)
            if proximal:  # of private numbers alone (Li et al. 2020, arXiv:1812.06127, equation 2)
                start = leaves.select(begin, leaves.names(trained))
                gradient = jax.tree.map(
                    lambda g, w, w0: g + proximal * (w - w0), gradient, trained, start
                )
            change, mine = cast(Any, optimizer.update(gradient, states[number], trained))
            if now.learning_rate is not None:  # in a round one number, last factor of any change
                change = jax.tree.map(lambda leaf: now.learning_rate * leaf, change)
            after = leaves.merge(held, jax.tree.map(jnp.add, trained, change))
            if adapt is not None:
                key = rng.stream(noise_key, rng.Purpose.COUNT_NOISE, round_index, me.client, index)
                factor = adapt(key, factor, centred(facts))
            after = after, (*states[:number], mine, *states[number + 1 :]), factor, sums, past
            if me.local_steps is not None:  # what is left out changes nothing, and drew nothing
                after = jax.tree.map(partial(jnp.where, index < me.local_steps), after, carry)
            moved = leaves.merge(jax.tree.map(jnp.zeros_like, held), change) if on_grid else None
            heard = _heard(total, now.noise_multiplier * bound) if watch else None
            return after, (facts, heard, moved)

        def step(carry, here):
            index, batch = here
            if len(parts) == 1:
                return advance(0, carry, index, batch)
            branches = [partial(advance, number) for number in range(len(parts))]
            return jax.lax.switch(index % len(parts), branches, carry, index, batch)

        batches = me.batches
        if batches is None:
            batches = draw_local_batches(
                noise_key,
                round_index,
                me.client,
                data,
                me.place,
                me.threshold,
                local_steps,
                capacity,
                me.local_steps,
                1 if correlated is None else correlated.bands,
            )
        states = tuple(optimizer.init(_split(begin, part)[0]) for part in parts)
        sums = controls.at_zero(frozen.control or {})
        carry = begin, states, frozen.clip_factor, sums, me.memory.noise
        carry, told = jax.lax.scan(step, carry, (jnp.arange(local_steps), batches))
        facts, heard, moved = told
        end, _, factor, sums, past = carry
        if on_grid:  # a difference of two ends is rounded as they are, and off the grid
            end = jax.tree.map(lambda leaf: jnp.sum(leaf, 0), moved)
            begin = jax.tree.map(jnp.zeros_like, end)
        memory = Memory(noise=past)
        if frozen.control is not None:
            steps = local_steps if me.local_steps is None else me.local_steps
            memory = memory._replace(control=controls.mean(sums, steps, parts))
        update_norm = optax.tree.norm(jax.tree.map(jnp.subtract, end, begin))
        # Who diverged moved nothing. That follows from the end: where it is private, so is this; and where
        # the server bounds what moved, nothing is within every bound.
        end, control = jax.tree.map(
            partial(jnp.where, jnp.isfinite(update_norm)),
            (end, memory.control),
            (begin, me.memory.control),
        )
        memory = memory._replace(control=control)
        facts, heard = jax.tree.map(jnp.sum, (facts, heard))
        facts = ClientFacts(facts, update_norm, None if adapt is None else factor, heard)
        return end, memory, facts

    return local_update


class _InEffect(NamedTuple):
    """What a client's steps use in a round, schedules included."""

    clip_norm: float | Float[Array, ""]
    noise_multiplier: Float[Array, ""]
    """On a sum, in units of the clip norm before schedules."""
    learning_rate: Float[Array, ""] | None


def _in_effect(
    frozen: Frozen, mechanism: Mechanism, me: Participant, round_index, factor: Array | None
) -> _InEffect:
    """Returns them, given the clip norm's own factor where it adapts."""
    noise, rate, clip = mechanism.beside_count(me.noise_multiplier), None, factor
    if frozen.rates is not None:
        rates = frozen.rates.at(round_index)
        noise = mechanism.beside_count(me.noise_multiplier * rates.noise)
        clip = rates.clip_norm if factor is None else factor * rates.clip_norm
        rate = rates.learning_rate
    if clip is None:
        return _InEffect(mechanism.clip_norm, noise, rate)
    return _InEffect(mechanism.clip_norm * clip, noise * clip, rate)


def centred(facts: ClipFacts) -> Float[Array, ""]:
    """Returns the sum over a draw's examples of +1/2 for those within the clip norm and -1/2 for others."""
    return facts.num_real / 2 - facts.num_clipped - facts.num_broken


def _heard(total: Adapters, stddev: Array) -> dict[str, tuple[Array, Array]]:
    """Returns each layer's squared norm of a clipped sum, and the expected one of its noise."""
    found = {}
    for layer, leaves_ in total.items():
        size = sum(leaf.size for leaf in leaves_.values())
        square = sum(jnp.sum(leaf**2) for leaf in leaves_.values())
        found[layer] = jnp.asarray(square), size * stddev**2
    return found


def _split(adapters: Adapters, part: frozenset[str] | None) -> tuple[Adapters, Adapters]:
    """Returns the leaves that a local step trains and the others; the head is always trained."""
    if part is None:
        return adapters, {}
    active = leaves.select(adapters, part | set(HEAD_LEAVES))
    return active, leaves.without(adapters, leaves.names(active))


def _within(adapters: Adapters, rank: Array | None) -> Adapters:
    """Returns factors whose columns of A and rows of B from ``rank`` on are zero.

    With both zero there, their gradients are too; what noise adds is taken off again, after the noise.
    """
    if rank is None:
        return adapters

    def cut(name, leaf):
        axis = leaves.RANK_AXIS.get(name)
        if axis is None:
            return leaf
        inside = jnp.expand_dims(jnp.arange(leaf.shape[axis]) < rank, 1 - axis)
        return jnp.where(inside, leaf, 0.0)

    return {
        layer: {name: cut(name, leaf) for name, leaf in found.items()}
        for layer, found in adapters.items()
    }
