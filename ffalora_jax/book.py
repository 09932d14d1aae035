"""The figures of a run as it goes on: lines of metrics.jsonl, privacy.json, communication.json."""

from typing import Any

import jax
import numpy as np

from ffalora_jax.checkpoint import Ledger
from ffalora_jax.prepare import Prepared
from ffalora_jax.round import RoundInfo
from ffalora_jax.run_folder import RunFolder, communication, message_bytes, privacy

FINAL_FIELDS = ("test_accuracy", "test_accuracy_per_client", "majority_accuracy")
"""What only the last line of metrics.jsonl has."""


class Book:
    """Keeps count of participations and bytes; on a run that goes on, drops what was not saved."""

    def __init__(
        self, run: Prepared, folder: RunFolder, epsilons, given_seed: bool, ledger: Ledger
    ):
        self.run, self.folder, self.epsilons, self.given_seed = run, folder, epsilons, given_seed
        self.planned = ledger.planned_rounds
        kept = [line for line in folder.metrics() if line["round_index"] < ledger.rounds_done]
        for line in kept:
            for name in FINAL_FIELDS:
                line.pop(name, None)
        folder.write_metrics(kept)
        count = len(run.plan.clients)
        self.participations = np.zeros(count, int)
        for line in kept:
            self.participations[line["participants"]] += 1
        self.up, self.down = message_bytes(run)

    @property
    def bytes_total(self) -> int:
        """Bytes of all messages so far, both ways."""
        return int(self.participations.sum()) * (self.up + self.down)

    def lines(
        self, infos: RoundInfo, done: int, count: int, seconds: float
    ) -> list[dict[str, Any]]:
        """Returns one line of metrics.jsonl for each round of a call."""
        infos = jax.tree.map(np.asarray, infos)
        found = []
        for index in range(count):
            took_part = np.flatnonzero(infos.took_part[index])
            clip = jax.tree.map(lambda leaf: float(leaf[index].sum()), infos.facts.clip)  # noqa: B023
            drawn = max(clip.num_real, 1.0)
            self.participations[took_part] += 1
            found.append(
                {
                    "round_index": done + index,
                    "accuracy": None,
                    "loss": clip.loss_sum / drawn,
                    "epsilon": self.epsilons[done + index + 1],
                    "bytes_up": len(took_part) * self.up,
                    "bytes_down": len(took_part) * self.down,
                    "seconds": seconds,
                    "participants": took_part.tolist(),
                    "update_norm": float(infos.update_norm[index]),
                    "client_update_norms": infos.facts.update_norm[index].tolist(),
                    "clipped_share": clip.num_clipped / drawn,
                    "gradient_norm": clip.norm_sum / drawn,
                    "drawn": int(clip.num_real),
                    "broken": int(clip.num_broken),
                }
            )
        return found

    def write(self, done: int) -> None:
        """Writes privacy.json and communication.json as they stand after ``done`` rounds."""
        self.folder.write_json(
            "privacy.json", privacy(self.run, done, self.planned, self.given_seed)
        )
        self.folder.write_json("communication.json", communication(self.run, self.participations))


def largest_epsilons(run: Prepared, rounds: int) -> list[float | None]:
    """Epsilon after each round, the largest over the clients; None without privacy."""
    if run.plan.unit is None:
        return [None] * (rounds + 1)
    curves = [run.plan.epsilons(client, rounds) for client in range(len(run.plan.clients))]
    return [max(values) for values in zip(*curves, strict=True)]
