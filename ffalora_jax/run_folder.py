"""What a run leaves behind: one folder, every file written whole or not at all.

The layout is in CONTRIBUTING.md; outside scripts rely on the names and fields here.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ffalora_jax import registry
from ffalora_jax.cache import from_json, write_atomically
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import load_experiment, to_toml


class RunFolder:
    """A run's folder and the names in it."""

    def __init__(self, path: Path):
        self.path = path
        self.experiment_file = path / "experiment.toml"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.report = path / "report.html"

    @classmethod
    def create(cls, path: Path, experiment: Experiment) -> "RunFolder":
        """Makes the folder.

        Raises:
            InputError: it exists, or cannot be made.
        """
        folder = cls(path)
        check_free(path)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"Cannot make folder {str(path)!r}: {error.strerror}.") from None
        write_atomically(folder.experiment_file, experiment_text(experiment))
        folder.metrics_file.touch()
        return folder

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Opens the folder of an earlier run.

        Raises:
            InputError: it is none.
        """
        folder = cls(Path(path))
        if (folder.path / "sweep.toml").is_file():
            raise InputError(
                f"{str(path)!r} is a search: its runs are the folders {path}/runs/TRIAL-REPEAT, its figures "
                "stand in results.csv and summary.json."
            )
        if not folder.experiment_file.is_file():
            raise InputError(
                f"No run in {str(path)!r}: expected a folder with experiment.toml in it."
            )
        return folder

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from writing here meanwhile; nothing is written for that.

        The system lets go of the lock when the process ends, however it ends, so a killed run leaves none.
        A file system without locks gives none.

        Raises:
            InputError: another process is at this run.
        """
        with locked(self.experiment_file):
            yield

    def tidy(self) -> None:
        """Removes what writes left that were killed."""
        for left in self.path.glob(".*"):
            if re.fullmatch(r"\.\w+\.(toml|json|jsonl|html)\.[a-z0-9_]{8}", left.name):
                left.unlink(missing_ok=True)

    def experiment(self) -> Experiment:
        """Reads the resolved experiment."""
        return load_experiment(self.experiment_file)

    def experiment_hash(self) -> str:
        """Hash of experiment.toml: a checkpoint belongs to one experiment."""
        return hashlib.sha256(self.experiment_file.read_bytes()).hexdigest()

    def metrics(self) -> list[dict[str, Any]]:
        """Reads metrics.jsonl; a last line that was cut off belongs to a round that was not saved."""
        return lines_of(self.metrics_file)

    def released(self) -> int:
        """Returns how many rounds were given out, as far as the folder's files know."""
        told = [line["round_index"] + 1 for line in self.metrics() if "round_index" in line]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told.append(int(self.read_json("privacy.json")["rounds"]))
        return max(told, default=0)

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replaces metrics.jsonl."""
        write_atomically(self.metrics_file, metrics_text(lines))

    def append_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Adds lines to metrics.jsonl."""
        with self.metrics_file.open("a") as file:
            file.write(metrics_text(lines))
            file.flush()
            os.fsync(file.fileno())

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes one JSON file."""
        write_atomically(self.path / name, json.dumps(plain(value), indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads one JSON file of the run.

        Raises:
            InputError: it holds no JSON object.
        """
        file = self.path / name
        try:
            return dict(from_json(file.read_bytes()))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{file} is not a JSON object ({error}): put it back from a copy."
            ) from None


class Busy(InputError):
    """Another process is there."""


@contextlib.contextmanager
def locked(name: Path) -> Iterator[None]:
    """Holds a lock on a file that is there.

    Raises:
        Busy: another process has it.
    """
    with contextlib.ExitStack() as stack:
        try:  # over NFS a lock needs a file that is open for writing
            file = stack.enter_context(name.open("r+"))
        except OSError:
            file = stack.enter_context(name.open())
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"Another process is at the run in {str(name.parent)!r}: wait for it, or stop it."
            ) from None
        except OSError as error:
            logging.getLogger(__name__).warning("No lock on %s: %s.", name.parent, error.strerror)
        yield


def experiment_text(experiment: Experiment) -> str:
    """Returns what a run's experiment.toml says: everything but the secret, with absolute paths."""
    return to_toml(_anywhere(experiment.resolved().replace(noise_seed=None)))


def keep_secret(file: Path, kept: dict[str, Any]) -> None:
    """Writes a file that its owner alone may read.

    Raises:
        FileExistsError: it is there.
    """
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as opened:
        opened.write(json.dumps(kept) + "\n")


def check_free(path: Path) -> None:
    """Raises InputError unless a run folder can be made there."""
    if (path / "experiment.toml").is_file():
        raise InputError(
            f"Folder {str(path)!r} exists: give another with --out, or go on with `ffalora resume {path}`."
        )
    if path.exists():
        raise InputError(f"{str(path)!r} exists and is no run: give another folder with --out.")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"Cannot make folder {str(path)!r}: {str(above)!r} cannot hold one.")


def _anywhere(experiment: Experiment) -> Experiment:
    """Returns the experiment with absolute paths: the run is used from other folders, too."""
    places = {"data.path": experiment.data.path, "method.start": experiment.method.start}
    if experiment.model.name not in registry.available("models"):
        places["model.name"] = experiment.model.name
    found = {name: place for name, place in places.items() if place and Path(place).exists()}
    return experiment.replace(
        **{name: str(Path(place).absolute()) for name, place in found.items()}
    )


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Reads a file of a JSON object a line; a last line that was cut off is left out.

    Raises:
        InputError: it cannot be read.
    """
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text: put it back from a copy.") from None
    except OSError as error:
        raise InputError(
            f"Cannot read {file} ({error.strerror}): put it back from a copy."
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(dict(from_json(line)))
        except (ValueError, TypeError):
            if number < len(lines):
                raise InputError(f"Line {number} of {file} is not JSON.") from None
    return found


def metrics_text(lines: list[dict[str, Any]]) -> str:
    """Returns the lines of metrics.jsonl."""
    return "".join(json.dumps(plain(line)) + "\n" for line in lines)


def plain(value: Any) -> Any:
    """Turns arrays, tuples and non-finite numbers into what JSON has."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | jax.Array):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
