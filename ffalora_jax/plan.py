"""What a run will cost, before it starts: operations, memory, bytes, privacy and time.

Everything but the time follows from the prepared run itself: the same shapes, the same noise, the same
messages. The time on this machine is measured on a round of one client or two; of another device it is
operations over an assumed share of its makers' figures.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from ffalora_jax import adapters as leaves
from ffalora_jax import flops, rng
from ffalora_jax.chunking import GIB, Choice, bytes_per_client, choose
from ffalora_jax.deal import HOST_BYTES
from ffalora_jax.devices import Device, device_of
from ffalora_jax.engine import Engine
from ffalora_jax.errors import InputError
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.held_out import scored_rows
from ffalora_jax.memory import free_bytes
from ffalora_jax.mesh import num_shards
from ffalora_jax.packing import FILLED
from ffalora_jax.prepare import Prepared
from ffalora_jax.rng import Keys
from ffalora_jax.run_facts import message_bytes

EFFICIENCY = 0.35
"""Share of a named device's dense peak that a round is assumed to reach."""
MEASURED_CLIENTS = 2
MEASURED_EXAMPLES = 256
LEAST_SECONDS = 0.5
"""Of a measured round: less says little about one of all clients."""


class Work(NamedTuple):
    """Operations and sizes, the same on every device."""

    flops_per_step: float
    """Of one local step of one client, with the tokens that are really computed."""
    tokens_per_step: float
    per_client_bytes: int
    data_bytes: int
    """All training examples."""
    cohort_bytes: int
    """Those of one round's clients, on average."""
    model_bytes: int
    personal_bytes: int
    """Of all clients."""


class Timing(NamedTuple):
    """Seconds."""

    client_step: float
    evaluated_example: float
    compiling: float
    measured: bool


def work_of(run: Prepared, num_clients: int, slots: int) -> Work:
    """Counts what a run with so many clients of the run's sizes takes, so many of them in a round."""
    experiment, lengths = run.experiment, np.asarray(run.data.lengths)
    trained = leaves.merge(
        run.state.adapters, jax.tree.map(lambda leaf: leaf[0], run.state.personal)
    )
    facts = run.model, run.task, run.frozen, trained
    one = flops.of_example(*facts, run.data)
    width = run.encoded.widths[-1]
    rows = np.concatenate(run.owners.train)
    mean_length = np.mean([lengths[mine].mean() for mine in run.owners.train])
    expected = experiment.batch_size * (len(run.owners.train) if run.method.pooled else 1)
    if run.packing is not None:
        tokens = expected * float(mean_length) / FILLED
    elif experiment.packing and run.blocks.size < run.plan.capacity:
        tokens = expected * width
    else:
        tokens = run.plan.capacity * width
    at_once = run.blocks.size if run.packing is None else run.packing.rows
    data = leaves.nbytes((run.data.inputs, run.data.labels, run.data.lengths, run.data.prefix))
    each = data * len(rows) / len(lengths) / len(run.plan.clients)
    return Work(
        flops_per_step=one / width * tokens,
        tokens_per_step=tokens,
        per_client_bytes=bytes_per_client(*facts, run.encoded, at_once),
        data_bytes=int(each * num_clients),
        cohort_bytes=int(each * min(slots, num_clients)),
        model_bytes=leaves.nbytes((run.frozen, run.state.adapters, run.state.control)),
        personal_bytes=leaves.nbytes((run.state.personal, run.state.memory))
        // len(run.plan.clients)
        * num_clients,
    )


def measured(run: Prepared) -> Timing:
    """Times a compiled round of a few clients on every device, and an evaluation.

    ``MEASURED_CLIENTS`` of them; all, where so few take no time, or where they are computed at once.
    """
    slots = run.settings.slots(1)
    clients = min(slots, MEASURED_CLIENTS * num_shards(run.mesh))
    if run.settings.chunk > 1:
        clients = slots
    seconds, compiling = _timed(run, clients)
    if seconds < LEAST_SECONDS and clients < slots:
        clients = slots
        seconds, compiling = _timed(run, clients)
    step = seconds / (clients * run.experiment.local_steps)
    return Timing(step, _per_example(run), compiling, True)


def _timed(run: Prepared, clients: int, rounds: int = 2) -> tuple[float, float]:
    """Returns the seconds of a round of so many clients, and of compiling it."""
    settings = run.settings._replace(rounds_per_call=1)
    if clients < settings.slots(1):
        settings = settings._replace(cohort_size=clients, cohort_sampling="fixed")
    begin = time.perf_counter()
    engine = Engine(run._replace(settings=settings))
    compiling = time.perf_counter() - begin
    keys = Keys(rng.public_root(run.experiment.seed), rng.secret_root(0))
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        jax.block_until_ready(engine(keys, run.state, 1))
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[1:])), compiling


def _per_example(run: Prepared) -> float:
    held = np.concatenate([*run.owners.validation, *run.owners.test])[:MEASURED_EXAMPLES]
    if len(held) == 0:
        return 0.0
    predict = make_predictor(run.model, run.task, run.mesh)
    mine = leaves.merge(run.state.adapters, jax.tree.map(lambda leaf: leaf[0], run.state.personal))
    seconds = []
    for _ in range(2):  # the first one compiles
        begin = time.perf_counter()
        predict(run.frozen, mine, run.encoded, held)
        seconds.append(time.perf_counter() - begin)
    return seconds[-1] / len(held)


def on_paper(run: Prepared, work: Work, device: Device) -> Timing:
    """Estimates the time on a device from its makers' figures."""
    peak = device.bfloat16 if run.experiment.model.dtype == "bfloat16" else device.float32
    rate = peak * 1e12 * EFFICIENCY
    example = work.flops_per_step / work.tokens_per_step * float(run.encoded.lengths.mean())
    return Timing(work.flops_per_step / rate, example / rate / 2, 60.0, False)


def plan(
    run: Prepared,
    device: str = "cpu",
    num_clients: int | None = None,
    cohort: int | None = None,
    measure: bool = True,
) -> dict[str, Any]:
    """Returns what a run will cost, as one table of plain values.

    Args:
        run: prepared, not run.
        device: ``cpu`` (this machine, whatever it is) or a name of ``devices``.
        num_clients: clients instead of the data's, each with as many examples; on paper only.
        cohort: clients in a round instead of the run's; on paper only.
        measure: time a round of this machine; else operations over the other device's figures.

    Raises:
        InputError: an unknown device, a cohort larger than all clients.
    """
    named = None if device == "cpu" else device_of(device)
    settings, total = run.settings, num_clients or len(run.plan.clients)
    if cohort is not None and cohort > total:
        raise InputError(f"Expected --cohort <= {total} clients, got {cohort}.")
    full = settings.cohort_size == settings.num_clients
    slots = min(total, cohort or (total if full else settings.slots(1)))
    work = work_of(run, total, slots)
    chips = num_shards(run.mesh) if named is None else min(named.chips, slots)
    on_host = _deals(run.experiment.client_data, slots < total, work.data_bytes)
    memory, choice = _memory(run, work, named, on_host, -(-slots // chips))
    timing = None
    if named is not None:
        timing = on_paper(run, work, named)
    elif measure:
        timing = measured(run)
    steps = slots * run.experiment.local_steps
    # Where whole clients are protected, noise and epsilon follow from how many there are.
    asks_others = run.plan.unit == "client" and (num_clients is not None or cohort is not None)
    return {
        "name": run.experiment.name,
        "answers": sum(map(len, scored_rows(run))) if run.dataset.metric == "exact_match" else 0,
        "device": jax.devices()[0].device_kind if named is None else device,
        "clients": total,
        "clients_in_a_round": slots,
        "rounds": run.experiment.rounds,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.frozen.backbone)),
        "flops": {
            "client_step": work.flops_per_step,
            "round": work.flops_per_step * steps,
            "run": work.flops_per_step * steps * run.experiment.rounds,
        },
        "tokens_per_client_step": work.tokens_per_step,
        "bytes": _bytes(run, slots),
        "memory": memory,
        "client_data": "host" if on_host else "device",
        "client_chunk": choice.chunk,
        "client_chunk_reason": choice.reason,
        "mesh": f"clients={chips}",
        "prefix_cache": run.prefix_note,
        "privacy": None if asks_others else _privacy(run),
        "privacy_unknown": asks_others,
        "seconds": timing and _seconds(run, timing, steps, chips if named else 1),
        "measured": bool(timing and timing.measured),
    }


def _memory(
    run: Prepared, work: Work, device: Device | None, on_host: bool, slots: int
) -> tuple[dict[str, Any], Choice]:
    """Returns what lies on one device beside what it has, and how many of its clients run at once."""
    free = free_bytes() if device is None else int(device.gib * GIB)
    resident = work.model_bytes + (work.cohort_bytes if on_host else work.data_bytes)
    choice = Choice(run.settings.chunk, run.chunk_reason)
    if device is not None:
        left = max(0, free - resident)
        setting, needed = run.experiment.client_chunk, lambda: work.per_client_bytes
        choice = choose(setting, slots, run.frozen.backbone, needed, "gpu", left)
    total = resident + choice.chunk * work.per_client_bytes
    return {
        "model": work.model_bytes,
        "data": work.data_bytes,
        "moved_per_round": work.cohort_bytes if on_host else 0,
        "per_client_at_once": work.per_client_bytes,
        "personal_leaves": work.personal_bytes,
        "total": total,
        "free": free,
        "fits": total <= free,
    }, choice


def _bytes(run: Prepared, slots: int) -> dict[str, int]:
    up, down = (float(np.mean(one)) for one in message_bytes(run))
    each_round = (up + down) * slots
    return {
        "up_per_round": round(up * slots),
        "down_per_round": round(down * slots),
        "run": round(each_round * run.experiment.rounds),
    }


def _deals(setting: str, part_only: bool, data_bytes: int) -> bool:
    return setting == "host" or (setting == "auto" and part_only and data_bytes > HOST_BYTES)


def _privacy(run: Prepared) -> dict[str, Any] | None:
    if run.plan.unit is None:
        return None
    last = min(run.experiment.rounds, run.plan.rounds_within_budget)
    noise = [client.noise_multiplier for client in run.plan.clients]
    return {
        "epsilon": run.plan.largest_spent(last),
        "delta": run.experiment.privacy.delta,
        "noise_multiplier": [min(noise), max(noise)],
        "rounds_within_budget": last,
    }


def _seconds(run: Prepared, timing: Timing, client_steps: int, chips: int) -> dict[str, float]:
    experiment, owners = run.experiment, run.owners
    a_round = timing.client_step * client_steps / chips
    most = experiment.max_validation
    validated = sum(min(len(rows), most) for rows in owners.validation)
    evaluations = -(-experiment.rounds // experiment.evaluate_every)
    examples = validated * evaluations + sum(map(len, scored_rows(run)))
    evaluating = examples * timing.evaluated_example / chips
    return {
        "client_step": timing.client_step,
        "round": a_round,
        "training": a_round * experiment.rounds,
        "evaluating": evaluating,
        "compiling": timing.compiling,
        "run": a_round * experiment.rounds + evaluating + timing.compiling,
    }
