"""Several processes as one run: one pinned to each share of a CPU's cores, or started by a cluster.

All of them compute the same program, each its own clients (``mesh``). The first one leads: it alone reads
and writes the run folder and decides what comes next; the others follow (``follow``).
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ffalora_jax.errors import InputError

CLUSTER = "cluster"
ENVIRONMENT = "FFALORA_PROCESS"
"""``index,count,port`` of a process that another one started."""
HEARTBEAT_SECONDS = 30
"""A process that is silent for so long is lost: the others stop."""
LOST, BAD_INPUT = 1, 2
GRACE_SECONDS = 4.0
TRAFFIC = re.compile("gloo|nccl|coordination|unavailable|connection|heartbeat", re.IGNORECASE)
"""What JAX's errors speak of when another process is gone."""

_parted = threading.Event()
"""Set where a run of several processes was broken off."""


def num_processes(setting: str) -> int:
    """Reads ``auto`` (one a core, on a CPU) or a number; of a cluster's, this one.

    Raises:
        InputError: neither.
    """
    if setting == CLUSTER:
        return 1
    if setting == "auto":
        return len(os.sched_getaffinity(0))
    if setting.isascii() and setting.isdigit() and 1 <= int(setting) <= 512:
        return int(setting)
    raise InputError(f"Expected --processes to be auto, a number or {CLUSTER}, got {setting!r}.")


@contextlib.contextmanager
def team(setting: str, command: Sequence[str]) -> Iterator[None]:
    """Makes this process one of several while it is open; before JAX is used for the first time.

    Args:
        setting: ``1``, ``auto``, a number (this process starts the others), or ``cluster`` (SLURM, Open MPI,
            Kubernetes or a TPU pod started them, and JAX finds out who they are).
        command: arguments of ``ffalora`` that the others are started with.

    Raises:
        InputError: another setting, no cluster, or processes for something else than a CPU.
    """
    given = os.environ.get(ENVIRONMENT)
    count = num_processes(setting)
    if given is None and setting != CLUSTER and count == 1:
        yield
        return
    others: list[_Other] = []
    leaving = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(leaving.set)
        if given is not None:
            index, count, port = map(int, given.split(","))
            _watch_parent()
            _join(index, count, port)
        elif setting == CLUSTER:
            _join_cluster()
        else:
            port = _free_port()
            others = [_Other(command, index, count, port) for index in range(1, count)]
            stack.callback(_end_all, others)
            _watch(others, leaving)
            _join(0, count, port)
        with _plain_end(others):
            yield
            _leave()


def end(code: int) -> None:
    """Ends this process; at once where a run was broken off, since JAX would wait for those that are gone."""
    if _parted.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_first() -> bool:
    """Whether this process leads: it alone reads and writes the run folder."""
    import jax

    return jax.process_index() == 0


def from_first(tree: Any) -> Any:
    """Returns what the first process gives, NumPy leaves of known shapes, in all of them."""
    import jax

    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return multihost_utils.broadcast_one_to_all(tree)


def text_from_first(text: str = "") -> str:
    """Returns the text that the first process gives, in all of them."""
    content = np.frombuffer(text.encode(), np.uint8)
    size = int(from_first(np.int32(len(content))))
    room = np.zeros(-(-size // 4096) * 4096, np.uint8)  # few shapes: each is compiled
    if is_first():
        room[:size] = content
    return from_first(room)[:size].tobytes().decode()


def _join(index: int, count: int, port: int) -> None:
    """Pins this process to its cores and meets the others."""
    cores = sorted(os.sched_getaffinity(0))
    if count <= len(cores):
        share = len(cores) // count
        os.sched_setaffinity(0, cores[index * share : (index + 1) * share])
    import jax

    jax.distributed.initialize(
        f"127.0.0.1:{port}", count, index, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
    )
    if jax.default_backend() != "cpu":
        raise InputError(
            f"--processes {count} is for CPUs, and here is {jax.default_backend()}: leave it out on one "
            f"machine (all devices are used), or give --processes {CLUSTER} on several."
        )
    _meet()


def _join_cluster() -> None:
    import jax

    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--processes {CLUSTER}: no launcher that JAX knows started this process "
            f"({str(error).splitlines()[0]}). Start it by srun, by mpirun or on every host of a TPU pod, or "
            "give a number of processes."
        ) from None
    _meet()


def _meet() -> None:
    """Waits for all processes; gloo tells standard output that it connected, which is nobody's business."""
    sys.stdout.flush()
    before = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        from_first(np.int32(0))
    finally:
        os.dup2(before, 1)
        os.close(before)


@contextlib.contextmanager
def _plain_end(others: list["_Other"]) -> Iterator[None]:
    """Ends this process with one line where an error only says that another one is gone."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        _parted.set()
        raise
    except Exception as error:
        _parted.set()
        time.sleep(GRACE_SECONDS)  # then _watch has seen what happened, and says it
        if TRAFFIC.search(str(error)) is None:
            raise
        _stop("Another process is gone", others)


def _leave() -> None:
    """Waits until the others are done, too."""
    import jax

    jax.distributed.shutdown()


class _Other:
    """A process that this one started; what it says goes to a file that has no name."""

    def __init__(self, command: Sequence[str], index: int, count: int, port: int):
        self.name = f"Process {index} of {count}"
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ffalora_jax.cli", *command],
            stdin=subprocess.PIPE,  # closes when this process ends, however it ends
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {ENVIRONMENT: f"{index},{count},{port}"},
            start_new_session=True,  # Ctrl-C is for the first one, which tells the others
        )

    def exit_code(self) -> int | None:
        return self._process.poll()

    def obituary(self) -> str:
        code = self.exit_code() or LOST
        if code < 0:
            return f"{self.name} ended by {signal.Signals(-code).name}"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "it said nothing"
        return said if code == BAD_INPUT else f"{self.name} ended with code {code} ({said})"

    def end(self) -> None:
        if self.exit_code() is None:
            self._process.kill()
        self._process.wait()


def _watch(others: list[_Other], leaving: threading.Event) -> None:
    """Ends this process when another one is lost: it would wait for it without end."""

    def watch():
        while not leaving.wait(0.2):
            lost = next((other for other in others if other.exit_code()), None)
            # What ended that one may end this one, too, in its own words.
            if lost is not None and not leaving.wait(GRACE_SECONDS / 2):
                _stop(lost.obituary(), others, lost.exit_code())

    threading.Thread(target=watch, daemon=True).start()


def _stop(why: str, others: list[_Other], code: int | None = LOST) -> None:
    """Ends the run; with the words of another process that was given what it cannot use."""
    if code != BAD_INPUT:
        why = (
            f"ffalora: {why}: the run stops here. What was saved goes on with `ffalora resume RUN`, with any "
            "number of --processes (fewer need less memory)."
        )
    print(why, file=sys.stderr, flush=True)
    _end_all(others)
    os._exit(BAD_INPUT if code == BAD_INPUT else LOST)


def _end_all(others: list[_Other]) -> None:
    for other in others:
        other.end()


def _watch_parent() -> None:
    """Ends this process when the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch():
        sys.stdin.buffer.read()
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
