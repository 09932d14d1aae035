"""What one run leaves behind, from its first checkpoint to its adapter, in the order that a crash allows."""

from pathlib import Path
from typing import Any

from ffalora_jax import rng
from ffalora_jax.adapter_file import save_adapter
from ffalora_jax.book import Book
from ffalora_jax.checkpoint import Checkpoints, Ledger, data_hash
from ffalora_jax.prepare import Prepared
from ffalora_jax.round import RoundInfo, RoundState
from ffalora_jax.run_facts import environment
from ffalora_jax.run_folder import RunFolder


class Record:
    """Keeps a run's figures, ledger and checkpoints while its rounds are made."""

    def __init__(
        self, run: Prepared, folder: RunFolder, ledger: Ledger, epsilons: list[float | None]
    ):
        self.run, self.folder, self.ledger = run, folder, ledger
        self.book = Book(run, folder, epsilons, ledger)
        self._checkpoints = Checkpoints(folder.checkpoints)

    @property
    def done(self) -> int:
        """Rounds that were made."""
        return self.ledger.rounds_done

    def begin(self, state: RoundState) -> None:
        """Saves the state before the first round, if nothing is saved yet."""
        if not self._checkpoints.steps():
            self._checkpoints.save(state, self.ledger)

    def lines(self, infos: RoundInfo, count: int, seconds: float) -> list[dict[str, Any]]:
        """Counts the rounds of a call; returns their lines of metrics.jsonl."""
        lines = self.book.lines(infos, self.done, count, seconds)
        self.ledger = self.ledger._replace(rounds_done=self.done + count)
        return lines

    def save(
        self,
        lines: list[dict[str, Any]],
        figures: dict[str, Any],
        state: RoundState,
        checkpoint: bool = True,
    ) -> None:
        """Writes a call's lines, with what was scored after it, and saves the state.

        Without a checkpoint the rounds are made again after a crash, with the same keys.

        **Guarantee:** what was spent is written first: after a crash it may say too much, never too little.
        """
        lines[-1] |= figures
        self.book.append(lines)
        self.book.write(self.done)
        self.ledger = self.ledger._replace(epsilon=self.book.spent(self.done))
        if checkpoint:
            self._checkpoints.save(state, self.ledger)

    def end(self, state: RoundState) -> None:
        """Writes the adapter; nothing is saved after it."""
        self._checkpoints.close()
        self.book.write(self.done)
        spent = self.folder.read_json("privacy.json")
        save_adapter(self.folder.path / "adapter", self.run, state, spent)


def new_folder(
    path: Path, run: Prepared, compiled_bytes: int, noise_seed: int | None = None
) -> tuple[RunFolder, Ledger]:
    """Makes a run's folder; returns it with the ledger of a run before its first round.

    Args:
        path: where.
        run: whose; its chunk is the one that was compiled.
        compiled_bytes: what its program takes.
        noise_seed: secret; left out, the experiment's, which is then no secret, or a fresh one.
    """
    given = run.experiment.noise_seed
    if noise_seed is None:
        noise_seed = rng.fresh_noise_seed() if given is None else given
    folder = RunFolder.create(path, run.experiment)
    folder.write_json("environment.json", environment(run, given is not None, compiled_bytes))
    return folder, Ledger(
        rounds_done=0,
        planned_rounds=run.experiment.rounds,
        budget=run.experiment.privacy.budget if run.plan.unit else None,
        noise_multipliers=tuple(client.noise_multiplier for client in run.plan.clients),
        epsilon=0.0 if run.plan.unit else None,
        noise_seed=noise_seed,
        experiment=folder.experiment_hash(),
        weights=run.loaded.fingerprint,
        data=data_hash(run.data),
    )
