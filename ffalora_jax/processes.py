"""Several processes as one run: one pinned to each share of a CPU's cores, or started by a cluster.

All of them compute the same program, each its own clients (``mesh``). The first one leads: it alone reads
and writes the run folder and decides what comes next; the others follow (``follow``).
"""

import contextlib
import os
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
LOST = 1
GRACE_SECONDS = 3.0


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
    with contextlib.ExitStack() as stack:
        if given is not None:
            index, count, port = map(int, given.split(","))
            _watch_parent()
            _join(index, count, port)
        elif setting == CLUSTER:
            _join_cluster()
        else:
            port = _free_port()
            others = [_Other(command, index, count, port) for index in range(1, count)]
            for other in others:
                stack.callback(other.end)
            _watch(others)
            _join(0, count, port)
        yield
        _leave()


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


def _leave() -> None:
    """Waits until the others are done, too."""
    import jax

    jax.distributed.shutdown()


class _Other:
    """A process that this one started; what it says goes to a file that has no name."""

    def __init__(self, command: Sequence[str], index: int, count: int, port: int):
        self.name = f"process {index} of {count}"
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

    def last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def end(self) -> None:
        if self.exit_code() is None:
            self._process.kill()
        self._process.wait()


def _watch(others: list[_Other]) -> None:
    """Ends this process when another one is lost: it would wait for it without end."""

    def watch():
        while True:
            time.sleep(0.2)
            lost = next((other for other in others if other.exit_code()), None)
            if lost is not None:
                time.sleep(
                    GRACE_SECONDS
                )  # what stops that one may stop this one, too, in its own words
                _stop(lost, others)

    threading.Thread(target=watch, daemon=True).start()


def _stop(lost: _Other, others: list[_Other]) -> None:
    code = lost.exit_code() or LOST
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    said = lost.last_words() if code > 0 else ""
    print(
        f"ffalora: {lost.name} ended {how}{f' ({said})' if said else ''}: the run stops here. What was saved "
        "goes on with `ffalora resume RUN`, with any number of --processes (fewer need less memory).",
        file=sys.stderr,
        flush=True,
    )
    for other in others:
        other.end()
    os._exit(LOST)


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
