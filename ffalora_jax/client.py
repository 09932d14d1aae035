"""Local training of one client: ``local_steps`` private steps on its own data (Sun et al. 2024, section 3).

Comes after ``cohort`` (which draws the batches) and before ``aggregation`` (which averages the uploads).
Written for a single client without a client axis; ``round`` names that axis.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32

from ffalora_jax import adapters as leaves
from ffalora_jax import rng
from ffalora_jax.clipping import Blocks, ClipFacts, clipped_sum_in_blocks
from ffalora_jax.cohort import Batch, ClientData, Examples, draw_local_batches
from ffalora_jax.lora import LoraModel
from ffalora_jax.mechanisms import Mechanism
from ffalora_jax.probes import Packing, packed_clipped_sum
from ffalora_jax.schedules import Rates
from ffalora_jax.tasks import Task
from ffalora_jax.types import Adapters, Tree


class Frozen(NamedTuple):
    """What no client trains: the same for all, unbatched, an argument of the compiled round."""

    backbone: Tree
    adapters: Adapters
    """The frozen factor, e.g. ``lora_a`` in FFA-LoRA."""
    rates: Rates | None = None
    """Schedules by round; None: all settings stay as they are."""


class Participant(NamedTuple):
    """What is one client's own in a round."""

    client: Int[Array, ""]
    place: Int[Array, ""]
    """Its row in ``ClientData.members``."""
    start: Adapters
    """Trained leaves at the start: the server's, and its personal ones."""
    threshold: UInt32[Array, ""]
    noise_multiplier: Float[Array, ""]
    batches: Batch | None
    """Given draws (step, slot); None: drawn here."""


class ClientFacts(NamedTuple):
    """Summed over a client's steps, except the norm. Not private."""

    clip: ClipFacts
    update_norm: Float[Array, ""]
    """L2 norm of what the round changed at the client; private, since computed from noised steps."""


def make_local_update(
    model: LoraModel,
    task: Task,
    mechanism: Mechanism,
    optimizer: optax.GradientTransformation,
    local_steps: int,
    capacity: int,
    blocks: Blocks,
    packing: Packing | None = None,
    proximal: float = 0.0,
) -> Callable:
    """Builds ``(noise_key, round_index, frozen, data, participant) -> (end, ClientFacts)``.

    Guarantee: every number that leaves or stays, personal leaves included, depends on the examples only
    through ``mechanism.private_grad`` of sums whose sensitivity is ``mechanism.clip_norm``. An empty draw
    still adds noise. The optimiser's state starts anew in every round.
    """

    def local_update(noise_key, round_index, frozen: Frozen, data: ClientData, me: Participant):
        clip_norm, noise, rate = mechanism.clip_norm, me.noise_multiplier, None
        if frozen.rates is not None:
            rates = frozen.rates.at(round_index)
            clip_norm, rate = clip_norm * rates.clip_norm, rates.learning_rate
            noise = noise * rates.noise * rates.clip_norm

        def example_loss(trained, example: Examples, index):
            adapters = leaves.merge(frozen.adapters, trained)
            place = (round_index, me.client, index, example.rows)
            key = rng.stream(noise_key, rng.Purpose.DROPOUT, *place) if model.dropout else None
            forward = partial(model.apply_training, frozen.backbone, adapters, key)
            return task.loss(forward, example.inputs, example.labels)

        def step(carry, here):
            trained, optimizer_state = carry
            index, batch = here
            if packing is None:
                loss = partial(example_loss, index=index)
                total, facts = clipped_sum_in_blocks(loss, trained, data, batch, clip_norm, blocks)
            else:
                parts = frozen.backbone, frozen.adapters, trained
                total, facts = packed_clipped_sum(
                    model, task, *parts, data, batch, clip_norm, packing
                )
            key = rng.stream(noise_key, rng.Purpose.NOISE, round_index, me.client, index)
            gradient = mechanism.private_grad(key, total, noise)
            if proximal:  # of private numbers alone (Li et al. 2020, arXiv:1812.06127, equation 2)
                gradient = jax.tree.map(
                    lambda g, w, w0: g + proximal * (w - w0), gradient, trained, me.start
                )
            change, optimizer_state = optimizer.update(gradient, optimizer_state, trained)
            if (
                rate is not None
            ):  # within a round it is one number, and the last factor of any change
                change = jax.tree.map(lambda leaf: rate * leaf, change)
            return (optax.apply_updates(trained, change), optimizer_state), facts

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
            )
        (end, _), facts = jax.lax.scan(
            step, (me.start, optimizer.init(me.start)), (jnp.arange(local_steps), batches)
        )
        update_norm = optax.tree.norm(jax.tree.map(jnp.subtract, end, me.start))
        return end, ClientFacts(jax.tree.map(jnp.sum, facts), update_norm)

    return local_update


def make_optimizer(
    name: str, learning_rate: float, options: dict[str, float], whose: str = "local"
) -> optax.GradientTransformation:
    """Returns the optax optimiser of that name.

    Raises:
        InputError: no such optimiser, arguments it does not take, one that needs more than gradients.
    """
    from ffalora_jax.errors import InputError, nearest

    known = [entry for entry in dir(optax) if entry.islower() and callable(getattr(optax, entry))]
    factory = getattr(optax, name, None) if name in known else None
    if factory is None:
        raise InputError(
            f"No optimiser {name!r} in optax: use sgd, adam, adamw, ...{nearest(name, known)}"
        )
    try:
        optimizer = factory(learning_rate=learning_rate, **options)
        sample = {"layer": {"leaf": jnp.zeros((2, 2))}}
        jax.eval_shape(lambda x: optimizer.update(x, optimizer.init(x), x), sample)
    except Exception as error:
        raise InputError(
            f"Cannot use optax.{name}(learning_rate={learning_rate}, **{options}) as a {whose} "
            f"optimiser ({str(error).splitlines()[0]}): it must take a learning rate and update from "
            "gradients alone, like sgd or adam."
        ) from None
    return optimizer
