"""How many clients and examples are computed at once, and what that takes: decided before compiling.

The estimate counts what JAX itself keeps for the backward pass of one example (the residuals of its
``vjp``), so it knows any model; XLA's own figure is held against it once the round is compiled.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ffalora_jax import adapters as leaves
from ffalora_jax.adapters import nbytes
from ffalora_jax.client import Frozen
from ffalora_jax.clipping import Blocks
from ffalora_jax.errors import InputError
from ffalora_jax.lora import LoraModel
from ffalora_jax.memory import COPIES, free_bytes
from ffalora_jax.packing import FILLED
from ffalora_jax.probes import Packing, packing_for
from ffalora_jax.tasks import Task
from ffalora_jax.text import Encoded
from ffalora_jax.types import Adapters, Tree

SHARE = 0.8
"""Of the free memory that a round may be estimated to take: XLA's own figure is known only later."""
BLOCK_SHARE = 1 / 6
"""Of an accelerator's free memory that the examples computed at once may take."""
FULLEST = 2.5
"""Standard deviations above its mean at which the fullest of a chunk's draws is expected."""
PADDING_PAYS = 0.75
"""Share of real tokens above which an accelerator computes padded examples faster than packed rows."""
CPU_BLOCK = 8
"""Examples at once on a CPU: their activations stay in cache."""
LEAST_AT_ONCE = 8
"""Examples of every client at once that a chunk on an accelerator has room for."""
TOY_SIZE = 20_000
"""Numbers in a backbone below which a CPU, too, runs all clients at once."""
GIB = 2**30


class Choice(NamedTuple):
    """How many clients at once, and why."""

    chunk: int
    reason: str


def choose(
    setting: str,
    slots: int,
    backbone: Tree,
    per_client: Callable[[], int],
    backend: str | None = None,
    free: int | None = None,
) -> Choice:
    """Decides ``client_chunk``.

    On an accelerator as many as fit, in chunks of like size. On a CPU one, since then its activations stay
    in cache; but all of a toy model's, where a step costs less than starting it.

    Args:
        setting: ``auto`` or a number.
        slots: clients of a round on one device.
        backbone: frozen leaves.
        per_client: says how many bytes one client more takes; asked where it matters.
        backend: ``cpu``, ``gpu`` or ``tpu``; None: this process's.
        free: bytes that are free on a device; None: now, on this one.
    """
    if setting != "auto":
        chunk = min(int(setting), slots)
        return Choice(chunk, f"client_chunk = {setting} was given")
    if (backend or jax.default_backend()) == "cpu":
        if sum(leaf.size for leaf in jax.tree.leaves(backbone)) < TOY_SIZE:
            return Choice(slots, "all at once: for so small a model starting a step costs the most")
        return Choice(1, "one at a time: on a CPU its activations stay in cache")
    needed, free = max(1, per_client()), free_bytes() if free is None else free
    fitting = max(1, int(SHARE * free) // needed)
    calls = -(-slots // min(fitting, slots))
    chunk = -(-slots // calls)
    return Choice(
        chunk,
        f"{chunk} of {slots}: {needed / GIB:.2f} GiB estimated for each, {free / GIB:.1f} GiB free",
    )


def bytes_per_client(
    model: LoraModel, task: Task, frozen: Frozen, trained: Adapters, encoded: Encoded, examples: int
) -> int:
    """Estimates what one more client takes on a device while its batch is computed.

        COPIES |trained| + examples (|gradient| + |residuals of one example|)

    Args:
        model: with its adapters.
        task: gives the loss.
        frozen: backbone and frozen factor.
        trained: one client's trained leaves.
        encoded: examples; only their shapes matter.
        examples: how many are computed at once.
    """
    one = nbytes(trained)
    return COPIES * one + examples * (one + residual_bytes(model, task, frozen, trained, encoded))


def residual_bytes(
    model: LoraModel, task: Task, frozen: Frozen, trained: Adapters, encoded: Encoded
) -> int:
    """Returns the bytes that one example keeps between forward and backward pass."""

    def loss(frozen, inputs, labels, trained):
        adapters = leaves.merge(frozen.adapters, trained)
        one = partial(task.loss, partial(model.apply, frozen.backbone, adapters))
        return jnp.sum(jax.vmap(one)(inputs, labels))

    def kept(count: int) -> int:
        inputs = {
            name: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
            for name, leaf in encoded.inputs.items()
        }
        given = frozen, inputs, jax.ShapeDtypeStruct((count,), jnp.int32)
        back = jax.eval_shape(lambda t, *g: jax.vjp(partial(loss, *g), t)[1], trained, *given)
        return nbytes(back)

    # What does not grow with the examples are weights, which are there anyway.
    return kept(2) - kept(1)


def arrange(
    encoded: Encoded,
    model: LoraModel,
    capacity: int,
    expected: float,
    chunk: int,
    example_bytes: Callable[[], int],
    backend: str | None = None,
    free: int | None = None,
) -> tuple[Blocks, Packing | None]:
    """Decides how a draw is computed, block after block: padded examples, or rows of packed text.

    As many blocks as the fullest draw of a chunk needs, so neither unused capacity nor, in rows, padding
    is computed. On a CPU, for one client at a time, small blocks of several widths; on an accelerator
    large ones that a full draw fills evenly, and rows only where padding would be much.

    Args:
        encoded: all examples; shapes, lengths and widths matter.
        model: with its adapters.
        capacity: slots of a draw.
        expected: examples that a draw is expected to fill.
        chunk: clients at once.
        example_bytes: says how many bytes an example at once takes; asked where it matters.
        backend: ``cpu``, ``gpu`` or ``tpu``; None: this process's.
        free: bytes that are free on a device; None: now, on this one.
    """
    *_, full = widths = encoded.widths
    if (backend or jax.default_backend()) == "cpu":
        if chunk == 1:
            return Blocks(CPU_BLOCK, widths), packing_for(model, encoded.inputs)
        return Blocks(capacity, (full,)), None
    room = BLOCK_SHARE * (free_bytes() if free is None else free)
    most = max(1, int(room) // (chunk * max(1, example_bytes())))
    fullest = min(capacity, math.ceil(expected + FULLEST * math.sqrt(expected)))
    # Under vmap every client computes the widest block of all: one width, then.
    blocks = Blocks(_even(fullest, most), (full,))
    real = float(np.mean(encoded.lengths)) / full
    rows = packing_for(model, encoded.inputs, most)
    if rows is None or real > PADDING_PAYS:
        return blocks, None
    needed = math.ceil(fullest * real * full / (rows.width * FILLED))
    return blocks, rows._replace(rows=_even(needed, rows.rows))


def _even(count: int, most: int) -> int:
    """Returns the size of as few parts as hold ``count`` in parts of like size, at most ``most``."""
    return math.ceil(count / math.ceil(count / most))


def check_fits(needed: int, free: int) -> None:
    """Refuses a round of one client at a time that needs more than there is.

    Raises:
        InputError: with the ways out.
    """
    if needed > free:
        raise InputError(
            f"A round needs {needed / GIB:.1f} GiB with one client at a time, {free / GIB:.1f} GiB are free: "
            "lower batch_size, privacy.capacity or model.max_tokens, set model.remat and model.scan_layers, "
            "or model.dtype = 'bfloat16'."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device said that its memory does not suffice."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
