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
from ffalora_jax.chunking import GIB, bytes_per_client, choose
from ffalora_jax.devices import Device, device_of
from ffalora_jax.engine import Engine
from ffalora_jax.errors import InputError
from ffalora_jax.evaluate import make_predictor
from ffalora_jax.memory import free_bytes
from ffalora_jax.mesh import num_shards
from ffalora_jax.prepare import HOST_BYTES, Prepared
from ffalora_jax.round import Keys
from ffalora_jax.run_facts import message_bytes

EFFICIENCY = 0.35
"""Share of a named device's dense peak that a round is assumed to reach."""
FILLED = 0.85
"""Share of the packed tokens that are real, for plans on paper."""
MEASURED_CLIENTS = 2
MEASURED_EXAMPLES = 256


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
        model_bytes=leaves.nbytes((run.frozen, run.state.adapters)),
        personal_bytes=leaves.nbytes(run.state.personal) // len(run.plan.clients) * num_clients,
    )


def measured(run: Prepared, rounds: int = 2) -> Timing:
    """Times a compiled round of at most ``MEASURED_CLIENTS`` a device, and an evaluation."""
    shards = num_shards(run.mesh)
    clients = min(run.settings.slots(1), MEASURED_CLIENTS * shards)
    settings = run.settings._replace(
        cohort_size=clients, cohort_sampling="fixed", chunk=min(run.settings.chunk, clients)
    )
    if run.settings.chunk > 1:  # all at once: time a whole chunk
        settings = run.settings
        clients = settings.slots(1)
    begin = time.perf_counter()
    engine = Engine(run._replace(settings=settings._replace(rounds_per_call=1)))
    compiling = time.perf_counter() - begin
    keys = Keys(rng.public_root(run.experiment.seed), rng.secret_root(0))
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        jax.block_until_ready(engine(keys, run.state, 1))
        seconds.append(time.perf_counter() - begin)
    round_seconds = float(np.median(seconds[1:]))
    return Timing(
        round_seconds / (clients * run.experiment.local_steps), _per_example(run), compiling, True
    )


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
    here = device == "cpu"
    named = None if here else device_of(device)
    total = num_clients or len(run.plan.clients)
    if cohort is not None and cohort > total:
        raise InputError(f"Expected --cohort <= {total} clients, got {cohort}.")
    full = run.settings.cohort_size == run.settings.num_clients
    slots = min(total, cohort or (total if full else run.settings.slots(1)))
    work = work_of(run, total, slots)
    timing = None
    if named is not None:
        timing = on_paper(run, work, named)
    elif measure:
        timing = measured(run)
    experiment, settings = run.experiment, run.settings
    chips = num_shards(run.mesh) if named is None else min(named.chips, slots)
    free = free_bytes() if named is None else int(named.gib * GIB)
    on_host = _deals(experiment.client_data, slots < total, work.data_bytes)
    resident = work.model_bytes + (work.cohort_bytes if on_host else work.data_bytes)
    if named is None:
        chunk, reason = settings.chunk, run.chunk_reason
    else:
        chunk, reason = choose(
            experiment.client_chunk,
            -(-slots // chips),
            run.frozen.backbone,
            lambda: work.per_client_bytes,
            "gpu",
            max(0, free - resident),
        )
    needed = resident + chunk * work.per_client_bytes
    up, down = message_bytes(run)
    client_steps = slots * experiment.local_steps
    facts = {
        "name": experiment.name,
        "device": jax.devices()[0].device_kind if here else device,
        "clients": total,
        "clients_in_a_round": slots,
        "rounds": experiment.rounds,
        "parameters": {
            "backbone": sum(leaf.size for leaf in jax.tree.leaves(run.frozen.backbone)),
            "sent_by_a_client": up // 4,
        },
        "flops": {
            "client_step": work.flops_per_step,
            "round": work.flops_per_step * client_steps,
            "run": work.flops_per_step * client_steps * experiment.rounds,
        },
        "tokens_per_client_step": work.tokens_per_step,
        "bytes": {
            "up_per_round": up * slots,
            "down_per_round": down * slots,
            "run": (up + down) * slots * experiment.rounds,
        },
        "memory": {
            "model": work.model_bytes,
            "data": work.data_bytes,
            "moved_per_round": work.cohort_bytes if on_host else 0,
            "per_client_at_once": work.per_client_bytes,
            "personal_leaves_on_host" if on_host else "personal_leaves": work.personal_bytes,
            "total": needed,
            "free": free,
            "fits": needed <= free,
        },
        "client_data": "host" if on_host else "device",
        "client_chunk": chunk,
        "client_chunk_reason": reason,
        "mesh": f"clients={chips}",
        "prefix_cache": run.prefix_note,
        "privacy": _privacy(run),
        "seconds": None,
        "measured": bool(timing and timing.measured),
    }
    if timing is not None:
        facts["seconds"] = _seconds(run, timing, client_steps, chips if named else 1)
    return facts


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
    examples = validated * evaluations + sum(len(rows) for rows in owners.test)
    evaluating = examples * timing.evaluated_example / chips
    return {
        "client_step": timing.client_step,
        "round": a_round,
        "training": a_round * experiment.rounds,
        "evaluating": evaluating,
        "compiling": timing.compiling,
        "run": a_round * experiment.rounds + evaluating + timing.compiling,
    }
