"""The figures of a run as it goes on: lines of metrics.jsonl, privacy.json, communication.json."""

from typing import Any

import jax
import numpy as np

from ffalora_jax import lint
from ffalora_jax.checkpoint import Ledger
from ffalora_jax.errors import InputError
from ffalora_jax.prepare import Prepared
from ffalora_jax.presence import times_of
from ffalora_jax.round import RoundInfo
from ffalora_jax.run_facts import (
    Traffic,
    communication,
    message_bytes,
    partition_table,
    privacy,
)
from ffalora_jax.run_folder import RunFolder, metrics_text

FINAL_FIELDS = (
    "test_accuracy",
    "test_accuracy_per_client",
    "majority_accuracy",
    "test_loss",
    "test_metrics",
    "members",
)
"""What only the last line of metrics.jsonl has."""

UNNOISED_FIELDS = ("loss", "clipped_share", "gradient_norm", "drawn", "broken")
"""What ``monitor.private`` leaves out."""


class Book:
    """Keeps count of participations and bytes; on a run that goes on, drops what was not saved."""

    def __init__(self, run: Prepared, folder: RunFolder, epsilons, ledger: Ledger):
        self.run, self.folder, self.epsilons = run, folder, epsilons
        self.given_seed = folder.read_json("environment.json")["reproducible"]
        self.planned = ledger.planned_rounds
        # After a fall back to an older checkpoint: those rounds were given out, whatever is made again.
        self._released = folder.released()
        # Both look at all examples: once.
        self._before = lint.before(run)
        self._partition = partition_table(run)
        self.kept = [x for x in folder.metrics() if x["round_index"] < ledger.rounds_done]
        if len(self.kept) < ledger.rounds_done:
            raise InputError(
                f"{folder.metrics_file} has {len(self.kept)} lines, expected one for each of the "
                f"{ledger.rounds_done} rounds of the oldest checkpoint: put the file back as it was."
            )
        for line in self.kept:
            for name in FINAL_FIELDS:
                line.pop(name, None)
        # Else (a torn line, lines of rounds that were not saved) it is written anew, with the first new ones.
        self._stands = folder.metrics_file.read_text() == metrics_text(self.kept)
        self.traffic = Traffic.none(len(run.plan.clients))
        self._last = np.full(len(run.plan.clients), -1)
        self._uploads = [0]  # in all, before each round
        for line in self.kept:
            there = line["participants"], line.get("late", [])
            self._sent(line["round_index"], *(np.asarray(one, np.int64) for one in there))
        self._clipped_shares = [line["clipped_share"] for line in self.kept]

    @property
    def bytes_total(self) -> int:
        """Bytes of all messages so far, both ways."""
        return int(self.traffic.up.sum() + self.traffic.down.sum())

    def lines(
        self, infos: RoundInfo, done: int, count: int, seconds: float
    ) -> list[dict[str, Any]]:
        """Returns one line of metrics.jsonl for each round of a call."""
        infos = jax.tree.map(np.asarray, infos)
        found = []
        for index in range(count):
            there = infos.took_part[index]
            slots = np.flatnonzero(there)
            slots = slots[np.argsort(infos.clients[index][slots])]
            took_part = np.asarray(infos.clients[index][slots])
            late = np.flatnonzero(infos.late[index]) if infos.late is not None else slots[:0]
            late = np.asarray(infos.clients[index][late])
            (sent, received), (up, down) = self._sent(done + index, took_part, late)
            found.append(
                {
                    "round_index": done + index,
                    "accuracy": None,
                    **self._unnoised(infos, index, slots, done + index),
                    "epsilon": self.epsilons[done + index + 1],
                    "bytes_up": sent,
                    "bytes_down": received,
                    "seconds": seconds,
                    **simulated(self.run, took_part, up, down, late),
                    "participants": took_part.tolist(),
                    **({} if infos.late is None else {"late": late.tolist()}),
                    "update_norm": float(infos.update_norm[index]),
                    "client_update_norms": self._norms(infos, index, slots),
                    **self._clip_norm(infos, index),
                    **_watched(infos, index),
                }
            )
        return found

    def _sent(self, round_index: int, took_part: np.ndarray, late: np.ndarray):
        """Counts a round's messages; returns their bytes in all, and those of each who was there (client,).

        Whoever was away is sent all that changed since.
        """
        there, method = np.concatenate([took_part, late]), self.run.method
        missed = np.maximum(round_index - np.maximum(self._last, 0), 1)
        if len(method.parts) == 1 and "residual" not in method.kept:
            missed = np.ones_like(missed)  # every round changes the same leaves
        up, down = (np.zeros(len(missed), np.int64) for _ in range(2))
        for rounds in set(missed[there].tolist()):
            who = missed == rounds
            came = self._uploads[round_index] - self._uploads[max(round_index - rounds, 0)]
            each = message_bytes(self.run, round_index, rounds, came)
            up[who], down[who] = (np.broadcast_to(one, len(who))[who] for one in each)
        self._last[there] = round_index
        self._uploads.append(self._uploads[-1] + len(there))
        return self.traffic.add(there, up, down), (up, down)

    def _unnoised(
        self, infos: RoundInfo, index: int, slots: np.ndarray, round_index: int
    ) -> dict[str, Any]:
        """Figures that look at training data without noise; all None where they are to be left out."""
        if self.run.experiment.monitor.private:
            return dict.fromkeys(UNNOISED_FIELDS)
        clip = jax.tree.map(lambda leaf: float(leaf[index][slots].sum()), infos.facts.clip)
        drawn, whole = clip.num_real, clip.num_real - clip.num_broken
        share = clip.num_clipped / drawn if drawn else None
        if self.run.plan.unit == "client":
            norms = np.asarray(infos.facts.update_norm[index][slots])
            share = self._clipped(norms, self._bound(infos, index, round_index))
        return {
            "loss": clip.loss_sum / whole / self.run.model.members if whole else None,
            "clipped_share": share,
            "gradient_norm": clip.norm_sum / whole if whole else None,
            "drawn": int(clip.num_real),
            "broken": int(clip.num_broken),
            **_signal_to_noise(infos, index, slots),
        }

    def _norms(self, infos: RoundInfo, index: int, slots: np.ndarray) -> list[float]:
        """Each upload's norm; none where it is that of an upload before its noise, and to be left out."""
        if self.run.experiment.monitor.private and self.run.mechanism.hides_uploads:
            return []
        return infos.facts.update_norm[index][slots].tolist()

    def _clip_norm(self, infos: RoundInfo, index: int) -> dict[str, float]:
        """The round's clip norm, where it adapts."""
        if infos.clip_factor is None:
            return {}
        norm = self.run.experiment.privacy.clip_norm
        return {"clip_norm": norm * float(np.asarray(infos.clip_factor)[index])}

    def _clipped(self, norms: np.ndarray, bound: float) -> float | None:
        """Share of a round's uploads that were above the clip norm."""
        return float(np.mean(norms > bound)) if norms.size else None

    def _bound(self, infos: RoundInfo, index: int, round_index: int) -> float:
        """The clip norm of a round, schedules included."""
        bound = self._clip_norm(infos, index).get(
            "clip_norm", self.run.experiment.privacy.clip_norm
        )
        rates = self.run.frozen.rates
        return bound if rates is None else bound * float(rates.at(round_index).clip_norm)

    def warnings(self, from_data: bool | None = None) -> list[str]:
        """Returns what must not be overlooked; what the figures say comes with them.

        Args:
            from_data: only what looks at private data without noise, or only what does not; None: both.
        """
        found = self._before + lint.after(self.run, self._clipped_shares)
        said = [one for one in found if one.level == "warning"]
        return [one.text for one in said if from_data in (None, one.from_data)]

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines to metrics.jsonl; of a file that did not stand as saved, the rest is written anew."""
        if self._stands:
            self.folder.append_metrics(lines)
        else:
            self.folder.write_metrics(self.kept + lines)
        self._clipped_shares += [line["clipped_share"] for line in lines]
        self.kept, self._stands = lines[-1:], True  # the file has the others: memory does not grow

    def complete(self, figures: dict[str, Any]) -> None:
        """Gives the last line its final figures, where a stop came before they were written."""
        self.kept[-1] |= figures
        self.folder.write_metrics(self.kept)

    def spent(self, done: int) -> float | None:
        """Epsilon after so many rounds, the largest over the clients; None without privacy."""
        plan = self.run.plan
        return None if plan.unit is None else plan.largest_spent(done)

    def write(self, done: int) -> None:
        """Writes privacy.json and communication.json as they stand after ``done`` rounds.

        **Guarantee:** the epsilon of privacy.json never goes back. A round that is made again has the same
        noise key and the same settings (both are checked), so it is the same release and counts once; on
        another mesh, or in other chunks, the same up to the rounding of its sum.
        """
        self._released = max(done, self._released)
        facts = self.run, self._released, self.planned, self.given_seed, self.warnings(False)
        self.folder.write_json("privacy.json", privacy(*facts))
        table = self._partition | {"warnings": self.warnings(True)}  # neither is private
        self.folder.write_json("partition.json", table)
        self.folder.write_json("communication.json", communication(self.run, self.traffic))


def _signal_to_noise(infos: RoundInfo, index: int, slots: np.ndarray) -> dict[str, Any]:
    """Norm of a step's clipped sum over that of its noise, layer by layer, where it is watched."""
    if infos.facts.heard is None:
        return {}
    ratios = {}
    for layer, both in infos.facts.heard.items():
        signal, noise = (float(np.sum(leaf[index][slots])) for leaf in both)
        ratios[layer] = (signal / noise) ** 0.5 if noise > 0 else None
    return {"signal_to_noise": ratios}


def _watched(infos: RoundInfo, index: int) -> dict[str, float]:
    """What the round showed, where it was watched."""
    return {name: float(np.asarray(leaf)[index]) for name, leaf in (infos.monitor or {}).items()}


def simulated(run: Prepared, took_part: np.ndarray, up, down, late: np.ndarray) -> dict[str, Any]:
    """Returns what the round took on the sites' machines and links, and who came last, too late or not.

    A round in which somebody who was asked is missing lasts until the deadline (told for cohorts of a fixed
    size; of a Poisson draw nobody knows here who was asked).
    """
    if run.sites is None:
        return {}
    each = times_of(run.sites, run.step_flops, up, down).total
    total, waited_for = each[took_part], np.concatenate([took_part, late])
    deadline, settings = run.experiment.sites.deadline, run.settings
    wanted = settings.cohort_size if settings.cohort_sampling == "fixed" else 0
    if settings.presence is not None and settings.presence.wanted is not None:
        wanted = settings.presence.wanted
    waited = len(took_part) < wanted
    seconds = float(total.max()) if total.size else 0.0
    if deadline is not None and waited:
        seconds = deadline  # somebody was still expected
    slowest = int(waited_for[each[waited_for].argmax()]) if waited_for.size else None
    return {"simulated_seconds": seconds, "slowest": slowest}


def largest_epsilons(run: Prepared, rounds: int) -> list[float | None]:
    """Epsilon after each round, the largest over the clients; None without privacy."""
    if run.plan.unit is None:
        return [None] * (rounds + 1)
    return list(run.plan.largest_epsilons(rounds))
