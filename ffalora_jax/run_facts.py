"""The facts that a run folder holds, as plain dicts: environment, privacy, traffic, who has what.

Outside scripts rely on the field names here.
"""

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ffalora_jax._version import __version__
from ffalora_jax.messages import bytes_of, what_is_counted
from ffalora_jax.partition import MOST_LISTED, class_table
from ffalora_jax.prepare import Prepared
from ffalora_jax.run_log import PACKAGES
from ffalora_jax.warm_start import started_from

NOT_PROTECTED = (
    "the number of examples of each client",
    "how many examples of each class a client has (partition.json, and the figure for guessing)",
    "which clients took part in which round",
    "the names of the classes and of the clients",
    "settings chosen by looking at results: tuning of hyper-parameters spends privacy that is not counted",
    "held-out data: accuracies are computed on it without noise",
    "fields of metrics.jsonl marked as not private, warnings in partition.json, and pictures of these",
)
NOT_PROTECTED_CLIENTS = (
    "who the clients are and what they hold: every file of the run folder but adapter/ names or counts "
    "them, and personal/ holds leaves without noise",
    *NOT_PROTECTED[3:],
)
"""Where a whole client is protected, and it may not show that it was there."""
THEIRS_ALONE = (
    " But for the leaves that stay at the clients, which get no noise: they are theirs alone."
)
OF_CLIENTS = (
    "participants",
    "late",
    "client_update_norms",
    "bytes_up",
    "bytes_down",
    "simulated_seconds",
    "slowest",
)
NOT_PRIVATE_FIELDS = (
    "loss",
    "seconds",
    "clipped_share",
    "gradient_norm",
    "drawn",
    "broken",
    "signal_to_noise",
    "accuracy",
    "accuracy_per_client",
    "validation_loss",
    "test_accuracy",
    "test_accuracy_per_client",
    "test_loss",
    "test_metrics",
    "members",
    "majority_accuracy",
)


def environment(run: Prepared, given_noise_seed: bool, compiled_bytes: int) -> dict[str, Any]:
    """Versions, devices and sources: what one needs to know to repeat the run. No secrets."""
    return {
        "ffalora_jax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "git": _git_commit(),
        "mesh": None if run.mesh is None else dict(run.mesh.shape),
        "client_data": "host" if run.settings.by_slot else "device",
        "client_chunk": run.settings.chunk,
        "client_chunk_reason": run.chunk_reason,
        "compiled_bytes": compiled_bytes,
        "block_size": run.blocks.size,
        "packing": None if run.packing is None else run.packing._asdict(),
        "prefix_cache": run.prefix_note,
        "model_source": run.loaded.source,
        "weights_sha256": run.loaded.weights_sha256,
        "backbone": run.loaded.fingerprint,
        "data_source": run.dataset.source,
        "data_kind": run.dataset.kind,
        "data_pairs": "text_pair" in run.dataset.inputs,
        "reproducible": given_noise_seed,
        "layers": sorted(run.model.shapes),
        "trained_parameters": run.num_trained,
    }


def privacy(
    run: Prepared,
    rounds_done: int,
    planned_rounds: int,
    given_noise_seed: bool,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of privacy.json after so many rounds."""
    settings, plan = run.experiment.privacy, run.plan
    spent = plan.largest_spent(rounds_done) if plan.unit else None
    start = started_from(run.experiment, plan.unit, spent, settings.delta)
    why_not = start["no_sum"] if start else ""
    clients, sizes = {}, np.asarray(run.data.sizes)
    for (sampling, noise_multiplier, local_steps), alike in plan.kinds.items():
        epsilon = None if plan.unit is None else plan.spent(alike[0], rounds_done)
        paid = plan.clients[alike[0]].priced or sampling
        facts = {
            "num_examples": sampling.num_examples,
            "sampling_probability": paid.probability,
            "capacity": paid.capacity,
            "noise_multiplier": noise_multiplier,
            "steps": rounds_done * local_steps,
            "epsilon": epsilon,
        }
        if run.mechanism.correlated is not None:
            bands = run.mechanism.correlated.bands
            priced_steps = -(-facts["steps"] // bands)
            facts |= {"bands": bands, "group_size": paid.num_examples, "priced_steps": priced_steps}
        clients |= {client: facts | {"num_examples": int(sizes[client])} for client in alike}
    return {
        "unit": plan.unit,
        "neighbours": plan.neighbours,
        "trust_model": _trust_model(run),
        "statement": run.mechanism.statement + (THEIRS_ALONE if run.keeps_unnoised else ""),
        "mechanism": settings.mechanism,
        "accountant": settings.accountant if plan.unit else None,
        "delta": settings.delta if plan.unit else None,
        "epsilon": spent,
        "started_from": start,
        "budget": settings.budget if plan.unit else None,
        "clip_norm": settings.clip_norm if plan.unit else None,
        "schedules": {
            "clip_norm": settings.clip_schedule,
            "noise_multiplier": settings.noise_schedule,
        },
        "rounds": rounds_done,
        "planned_rounds": planned_rounds,
        "stopped_at_budget": plan.rounds_within_budget <= rounds_done < planned_rounds,
        "num_clients": len(plan.clients),
        "clients": listed(run.train_names, [clients[k] for k in range(len(plan.clients))]),
        "releasable": bool(plan.unit) and not given_noise_seed and not why_not,
        "release_note": _release_note(plan.unit, given_noise_seed, why_not),
        "not_protected": [
            *(NOT_PROTECTED if plan.unit != "client" else NOT_PROTECTED_CLIENTS),
            *(["the examples of partition.public_site"] if len(run.owners.public) else []),
        ],
        "not_private_fields": [*NOT_PRIVATE_FIELDS, *_of_single_clients(run)],
        "sampler": "floating-point Gaussian: for simulation, a release needs a secure sampler",
        "warnings": list(warnings),
    }


def _of_single_clients(run: Prepared) -> tuple[str, ...]:
    """Fields that show a single client, where it or its upload is to be hidden."""
    if run.plan.unit == "client":
        return OF_CLIENTS
    return ("client_update_norms",) if run.mechanism.hides_uploads else ()


def _trust_model(run: Prepared) -> str:
    if run.method.pooled and run.plan.unit:
        return (
            "everyone who sees the model; the one place that holds all the data is trusted with it"
        )
    return run.mechanism.trust_model


class Traffic(NamedTuple):
    """What each client took part in and what that moved, in bytes; leaves (client,)."""

    participations: np.ndarray
    up: np.ndarray
    down: np.ndarray

    @classmethod
    def none(cls, num_clients: int) -> "Traffic":
        """Returns that of a run before its first round."""
        return cls(*(np.zeros(num_clients, np.int64) for _ in range(3)))

    def add(self, clients: Sequence[int] | np.ndarray, up, down) -> tuple[int, int]:
        """Counts one round of some clients, given the bytes of each or of all; returns those of the round."""
        here = np.asarray(clients, np.int64)
        each = [np.broadcast_to(one, self.up.shape)[here] for one in (1, up, down)]
        for total, one in zip(self, each, strict=True):
            total[here] += one
        return int(each[1].sum()), int(each[2].sum())


def communication(run: Prepared, traffic: Traffic) -> dict[str, Any]:
    """Bytes up and down after some rounds."""
    count, up, down = (int(leaf.sum()) for leaf in traffic)
    each = (up / count, down / count) if count else map(np.mean, message_bytes(run))
    each = [round(float(one)) for one in each]
    return {
        "bytes_up_per_participation": each[0],
        "bytes_down_per_participation": each[1],
        "num_clients": len(traffic.participations),
        "clients": listed(
            run.train_names,
            [
                {"participations": n, "bytes_up": u, "bytes_down": d}
                for n, u, d in zip(*(leaf.tolist() for leaf in traffic), strict=True)
            ],
        ),
        "bytes_up": up,
        "bytes_down": down,
        "bytes_total": up + down,
        "note": what_is_counted(run.method, run.experiment.compression),
    }


def listed(names: Sequence[str], facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns a line a client; of more than ``MOST_LISTED``, one for all that are alike, with their count."""
    if len(names) <= MOST_LISTED:
        return [{"name": name, **one} for name, one in zip(names, facts, strict=True)]
    alike: dict[tuple, list[int]] = {}
    for index, one in enumerate(facts):
        alike.setdefault(tuple(one.values()), []).append(index)
    lines = []
    for places in alike.values():
        more = f" and {len(places) - 1:,} more" if len(places) > 1 else ""
        name = names[places[0]] + more
        lines.append({"name": name, "count": len(places), **facts[places[0]]})
    return lines


def partition_table(run: Prepared) -> dict[str, Any]:
    """Examples per class at the first ``MOST_LISTED`` sites, for the report's picture; not private."""
    owners = run.owners
    parts = [each[:MOST_LISTED] for each in owners[:4]]
    owned = [np.concatenate(mine) for mine in zip(*parts[1:], strict=True)]
    table = class_table(run.dataset, owned)
    clients = [
        {
            "name": name,
            "examples_per_class": row.tolist(),
            "train": len(a),
            "validation": len(b),
            "test": len(c),
        }
        for name, row, a, b, c in zip(parts[0], table, *parts[1:], strict=True)
    ]
    return {
        "not_private": True,
        "class_names": list(run.dataset.class_names),
        "num_clients": len(owners.names),
        "clients": clients,
        "public": len(owners.public),
    }


def message_bytes(run: Prepared, round_index: int = 0, missed: int = 1, uploads: int | None = None):
    """Returns the bytes that a client sends and receives in a round; arrays (client,) where ranks differ.

    Args:
        run: says what is sent.
        round_index: 0-based.
        missed: rounds since the client came last.
        uploads: that came in these; None: as many as there are places.
    """
    rank = run.numbers.rank
    ranks = None if rank is None else np.asarray(rank)
    uploads = run.settings.slots(1) * missed if uploads is None else uploads
    facts = run.method, run.state.adapters, uploads, round_index, ranks
    controls = run.experiment.optimizer.control_variates
    return bytes_of(*facts, run.server.compression, controls, missed)


def _release_note(unit: str | None, given_noise_seed: bool, why_not: str = "") -> str:
    if unit is None:
        return "no privacy is claimed: treat the adapter like the data"
    if why_not:
        return f"{why_not}: there is no epsilon for the adapter as a whole; treat it like the data"
    if given_noise_seed:
        return (
            "reproducible, not releasable: the noise seed was given by hand, and whoever knows it can take "
            "the noise away; run again without noise_seed before anything leaves the house"
        )
    files = "adapter/ alone" if unit == "client" else "adapter/ and privacy.json alone"
    return f"the noise is fresh entropy, kept only in checkpoints/: hand on {files}"


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return None
    return done.stdout.strip() or None
