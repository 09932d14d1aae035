"""Saving and restoring a run with orbax: state, secret key, round and ledger. Owner-only files.

Backbone and frozen factor are not saved: they follow from the experiment and are checked by hash.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from ffalora_jax.cohort import ClientData
from ffalora_jax.errors import InputError
from ffalora_jax.round import RoundState
from ffalora_jax.types import Tree

KEPT = 3
FORMAT = 2
"""Raised when the files of a run change so that older versions would read them wrongly."""


class Ledger(NamedTuple):
    """What must survive besides the arrays."""

    rounds_done: int
    planned_rounds: int
    budget: float | None
    """Epsilon that may be spent; None without one."""
    noise_multipliers: tuple[float, ...]
    epsilon: float | None
    """Largest over the clients, spent so far."""
    noise_seed: int
    """Secret: never leaves the checkpoint."""
    experiment: str
    """Hash of experiment.toml."""
    weights: str
    """Hash of the backbone's file."""
    data: str
    """Hash of the training examples and their owners: the noise keys belong to them."""
    state: str = ""
    """Hash of the saved arrays; empty of runs before format 2."""
    format: int = FORMAT


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path):
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = folder.absolute()
        with _owner_only():
            self.folder.mkdir(exist_ok=True)
            alone = _alone()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=KEPT,
                create=False,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
            )
            handlers = {
                "state": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                "ledger": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            }
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers
            )

    def save(self, state: RoundState, ledger: Ledger) -> None:
        """Saves a step; whole or not at all.

        Raises:
            OSError: the disk refused.
        """
        tree = _as_tree(state)
        ledger = ledger._replace(state=_digest(tree), format=FORMAT)
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(tree), ledger=ocp.args.JsonSave(ledger._asdict())
        )
        what = f"the checkpoint of round {ledger.rounds_done} was not saved"
        with _owner_only():
            try:
                saved = self._manager.save(ledger.rounds_done, args=arguments, force=True)
                self._manager.wait_until_finished()
            except OSError:
                raise
            except Exception as error:  # tensorstore's, which names every setting of its own
                full = "No space left" in str(error) or shutil.disk_usage(self.folder).free < 2**20
                number = errno.ENOSPC if full else errno.EIO
                raise OSError(number, f"{os.strerror(number)}: {what}", str(self.folder)) from error
        if not saved:
            raise OSError(errno.EIO, what, str(self.folder))

    def steps(self) -> list[int]:
        """Rounds of which there is a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def newest(
        self, say: Callable[[str], None] = lambda text: None, lines: int | None = None
    ) -> Ledger | None:
        """Returns the ledger of the newest checkpoint that is whole; newer, broken ones are set aside.

        They would be in the way of the rounds that are made again.

        Args:
            say: told what is set aside.
            lines: rounds whose figures there are; of more rounds than that a checkpoint is not taken, where
                there is an older one.

        Raises:
            InputError: a newer version of ffalora_jax saved it.
        """
        steps = self.steps()
        for step in steps:
            ledger = self._readable(step)
            lacks = lines is not None and step > lines >= min(steps)
            if ledger is not None and not lacks:
                return ledger
            places = (self.folder / f"broken-{step}{end}" for end in ("", *range(-1, -1000, -1)))
            aside = next(place for place in places if not place.exists())
            os.replace(self.folder / str(step), aside)
            why = "is broken" if ledger is None else "has no line in metrics.jsonl"
            say(f"the checkpoint of round {step} {why}, and was moved to {aside}")
            self._manager.reload()
        return None

    def _readable(self, step: int) -> Ledger | None:
        """Returns the ledger of a step whose arrays are those that were saved, bit for bit."""
        try:
            arguments = ocp.args.Composite(ledger=ocp.args.JsonRestore())
            found = dict(self._manager.restore(step, args=arguments)["ledger"])
            if found.get("format", 1) > FORMAT:
                raise InputError(
                    f"The run in {self.folder.parent} was saved by a newer version of ffalora_jax (format "
                    f"{found['format']}, this one reads up to {FORMAT}): go on with that version."
                )
            ledger = _ledger(found)
            if not ledger.state:
                return ledger if self._shapes(step) is not None else None
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore())
            tree = self._manager.restore(step, args=arguments)["state"]
            return ledger if _digest(jax.tree.map(np.asarray, tree)) == ledger.state else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (InputError, MemoryError, OSError):  # the machine's failure says nothing of the file
            raise
        except Exception:  # whatever a broken file makes orbax say
            return None

    def restore(self, like: RoundState, ledger: Ledger) -> RoundState:
        """Restores the arrays of a ledger's round (NumPy), into the structure of ``like``.

        Raises:
            InputError: the checkpoint holds another tree or other shapes.
        """
        target = _as_tree(like)
        # Compared before anything is read: a read that fails half-way leaves orbax's others pending.
        if self._shapes(ledger.rounds_done) != _shapes_of(target):
            raise InputError(
                f"The checkpoint of round {ledger.rounds_done} in {self.folder} does not fit this "
                "experiment (other leaves or shapes): it comes from another one."
            )
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        tree = self._manager.restore(ledger.rounds_done, args=arguments)["state"]
        server = [tree["server"][name] for name in _numbered(like.server)]
        parts = {"memory": like.memory, "late": like.late}
        own = [
            (one, [tree[name][number] for number in _numbered(one)]) for name, one in parts.items()
        ]
        return RoundState(
            tree["adapters"],
            tree["personal"],
            tree["round_index"],
            jax.tree.unflatten(jax.tree.structure(like.server), server),
            tree.get("clip_factor"),
            tree.get("control"),
            *(jax.tree.unflatten(jax.tree.structure(one), part) for one, part in own),
        )

    def _shapes(self, step: int) -> dict[str, Any] | None:
        """Returns shape and dtype of every saved leaf, from the checkpoint's metadata alone."""
        try:
            return _shapes_of(self._manager.item_metadata(step)["state"].tree)
        except (ValueError, KeyError, AttributeError, FileNotFoundError):
            return None

    def close(self) -> None:
        """Releases orbax's threads."""
        self._manager.close()


def data_hash(data: ClientData) -> str:
    """Returns a hash of all training examples, their labels and their owners."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(data._replace(prefix=None)):  # that follows from the backbone
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _as_tree(state: RoundState) -> dict[str, Any]:
    # On the host: devices of other processes are not orbax's to ask.
    state = jax.tree.map(np.asarray, state)
    return {
        "adapters": state.adapters,
        "personal": state.personal,
        "round_index": state.round_index,
        "server": _numbered(state.server),
        **({} if state.clip_factor is None else {"clip_factor": state.clip_factor}),
        **({} if state.control is None else {"control": state.control}),
        **({"memory": _numbered(state.memory)} if jax.tree.leaves(state.memory) else {}),
        **({} if state.late is None else {"late": _numbered(state.late)}),
    }


def _numbered(tree: Tree) -> dict[str, Any]:
    """Returns the leaves of an optimiser's state, whose own structure orbax does not keep, by number."""
    return {str(index): leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _alone() -> ocp.options.MultiprocessingOptions:
    """Says that one process reads and writes, whatever the others do."""
    me = jax.process_index()
    active = {me} if jax.process_count() > 1 else None
    return ocp.options.MultiprocessingOptions(me, active, "alone" if active else None)


def _shapes_of(tree: Tree) -> dict[str, Any]:
    # By path: orbax drops empty dicts from its metadata.
    leaves, _ = jax.tree.flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {jax.tree_util.keystr(path): (tuple(x.shape), str(x.dtype)) for path, x in leaves}


def _digest(tree: Tree) -> str:
    """Returns a hash of the leaves, their places, shapes and types."""
    digest = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.flatten_with_path(tree)[0]
    ):
        digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _ledger(found: dict[str, Any]) -> Ledger:
    return Ledger(**{"format": 1, **found, "noise_multipliers": tuple(found["noise_multipliers"])})


@contextlib.contextmanager
def _owner_only():
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
