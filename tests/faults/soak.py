"""Two thousand rounds in one process: memory, compilations and open files stay as they are.

Claim: memory grows by less than 1 KiB a round after warm-up, nothing compiles after the first call, open
files stay constant, and two halves with a resume give the same adapter and figures.
Run: python -m tests.faults.soak [--rounds 2000]     Time: 6 minutes on one core
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import ffalora_jax as ffa
from ffalora_jax import loop
from tests.faults.runs import differences
from tests.tiny_runs import tiny

MOST_BYTES_A_ROUND = 1024
WARM = 0.25
"""Share of the rounds before memory is looked at."""


class Sample(NamedTuple):
    """The process after some rounds."""

    rounds: int
    memory: int
    files: int
    compilations: int


def main() -> int:
    """Runs whole and in halves; the exit code says whether the claims hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    experiment = tiny(rounds=rounds, evaluate_every=50, **{"privacy.noise_multiplier": 4.0})
    begin, watch = time.perf_counter(), Watch()
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        whole, halves = Path(place, "whole"), Path(place, "halves")
        ffa.simulate(experiment, out=whole, observe=watch)
        minutes = (time.perf_counter() - begin) / 60
        try:
            ffa.simulate(experiment, out=halves, observe=stop_after(rounds // 2))
        except loop.Interrupted:
            ffa.resume(halves)
        different = differences(whole, halves)
    warm = [one for one in watch.samples if one.rounds >= WARM * rounds]
    slope = np.polyfit([one.rounds for one in warm], [one.memory for one in warm], 1)[0]
    compiled = warm[-1].compilations - warm[0].compilations
    files = {one.files for one in warm}
    print(
        f"{rounds} rounds in {minutes:.1f} minutes; {len(warm)} samples after the first {WARM:.0%}"
    )
    first, last = (warm[index].memory / 2**20 for index in (0, -1))
    print(f"memory {first:.0f} -> {last:.0f} MiB, {slope:.0f} bytes a round")
    print(f"compilations {compiled}, open files {sorted(files)}")
    print(f"in two halves: {'; '.join(different) or 'the same bits'}")
    fine = slope < MOST_BYTES_A_ROUND and not compiled and len(files) == 1 and not different
    return 0 if fine else 1


class Watch:
    """An observer that looks at the process at every evaluation."""

    def __init__(self) -> None:
        from jax import monitoring

        self.samples: list[Sample] = []
        self.compilations = 0
        monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event: str, seconds: float, **facts) -> None:
        self.compilations += event.endswith("backend_compile_duration")

    def __call__(self, event: loop.Event) -> None:
        if event.line is not None and event.line["accuracy"] is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            memory = pages * os.sysconf("SC_PAGE_SIZE")
            files = len(os.listdir("/proc/self/fd"))
            self.samples.append(Sample(event.rounds_done, memory, files, self.compilations))


def stop_after(rounds: int) -> loop.Observer:
    """Returns an observer that sends Ctrl-C once so many rounds are done."""

    def observe(event: loop.Event) -> None:
        if event.line is not None and event.rounds_done == rounds:
            os.kill(os.getpid(), signal.SIGINT)

    return observe


if __name__ == "__main__":
    sys.exit(main())
