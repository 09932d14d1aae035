"""Broken files and disks that fail: what was saved last stands, and one line says what happened.

Claim: a broken newest checkpoint falls back to the one before and the run ends in the same bits; a disk that
refuses ends the run with one line and code 1, and it goes on from the last good state once there is room.
Run: python -m tests.faults.storage      Time: 8 minutes on two cores; mounting needs root, else these skip
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.runs import child, copied, differences

CHANGES = {"rounds": 6, "evaluate_every": 2}


def main() -> int:
    """Breaks everything in turn; the exit code says whether all of it was borne."""
    wrong, count, begin = 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="storage-") as place:
        whole = Path(place, "whole")
        cut = stopped(Path(place, "cut"))
        first = child(whole, CHANGES)
        assert first.code == 0, first.said
        cases = [(name, lambda f=f: broken(cut, whole, f)) for name, f in breakages(cut).items()]
        cases += [(name, lambda f=f: f(cut, whole)) for name, f in FAILURES.items()]
        for name, case in cases:
            found = case()
            count, wrong = count + 1, wrong + bool(found)
            print(f"{name}: {found or 'borne'}", flush=True)
    print(f"{count} faults, {wrong} not borne, {(time.perf_counter() - begin) / 60:.0f} minutes")
    return 1 if wrong else 0


def stopped(path: Path) -> Path:
    """Returns a run that was killed in its last save, with checkpoints of the rounds before."""
    outcome = child(path, CHANGES, "adapter", 0.0)
    assert outcome.killed, outcome.said
    return path


def newest(run: Path) -> Path:
    """Returns the folder of the newest checkpoint."""
    return max((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


def breakages(cut: Path) -> dict[str, Callable[[Path], object]]:
    """Ways to break the newest checkpoint, one for each of its files among them."""
    files = sorted(p.relative_to(newest(cut)) for p in newest(cut).rglob("*") if p.is_file())
    data = max(files, key=lambda file: (newest(cut) / file).stat().st_size)
    found: dict[str, Callable[[Path], object]] = {
        "cut in half": lambda step: os.truncate(step / data, (step / data).stat().st_size // 2),
        "empty": lambda step: os.truncate(step / data, 0),
        "of zeros": lambda step: (step / data).write_bytes(bytes((step / data).stat().st_size)),
        "one bit turned": lambda step: turn(step / data),
        "an empty step folder": lambda step: [p.unlink() for p in step.rglob("*") if p.is_file()],
    }
    for file in files:
        if "metadata" not in file.name.lower() or file.parent == Path():
            found[f"without {file}"] = lambda step, file=file: (step / file).unlink()
    return found


def turn(file: Path) -> None:
    """Turns one bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def broken(cut: Path, whole: Path, harm: Callable[[Path], object]) -> str:
    """Breaks the newest checkpoint of a copy, resumes, compares: it ends alike."""
    run = copied(cut, cut.with_name("broken"))
    harm(newest(run))
    outcome = child(run, CHANGES)
    if outcome.code:
        return outcome.said[-300:]
    return "; ".join(differences(whole, run))


def all_broken(cut: Path, whole: Path) -> str:
    """No checkpoint is whole: refused in words, and nothing is lost that was there."""
    run = copied(cut, cut.with_name("broken"))
    for step in (run / "checkpoints").glob("[0-9]*"):
        for file in step.rglob("*"):
            if file.is_file():
                os.truncate(file, 0)
    outcome = command("resume", run)
    return "" if outcome.returncode == 2 and "is whole" in outcome.stderr else outcome.stderr[-300:]


def torn_metrics(cut: Path, whole: Path) -> str:
    """The last line of metrics.jsonl is cut off."""
    run = copied(cut, cut.with_name("broken"))
    os.truncate(run / "metrics.jsonl", (run / "metrics.jsonl").stat().st_size - 40)
    outcome = child(run, CHANGES)
    return outcome.said[-300:] if outcome.code else "; ".join(differences(whole, run))


def full_disk(cut: Path, whole: Path) -> str:
    """The disk is full at some moment: each size is another moment."""
    for kib in (160, 240, 320, 480):
        with mounted(f"size={kib}k") as disk:
            if disk is None:
                return ""
            run = disk / "run"
            outcome = command("run", *FLAGS, "--out", run)
            if outcome.returncode == 0:
                continue  # there was room
            if outcome.returncode != 1 or len(outcome.stderr.strip().splitlines()[-1]) > 300:
                return f"{kib} KiB: code {outcome.returncode}: {outcome.stderr[-300:]}"
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            if not (run / "checkpoints" / "0").exists():
                continue  # it had not begun
            again = child(run, CHANGES)
            if again.code:
                return f"{kib} KiB, then room: {again.said[-300:]}"
            if found := differences(whole, run):
                return f"{kib} KiB: {found}"
    return ""


def read_only(cut: Path, whole: Path) -> str:
    """The folder became read-only: nothing changes in it."""
    with mounted("size=64m") as disk:
        if disk is None:
            return ""
        run = copied(cut, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
        resumed, begun = command("resume", run), command("run", *FLAGS, "--out", disk / "new")
        if {p: p.stat().st_mtime_ns for p in run.rglob("*")} != before:
            return "something changed"
        said = [resumed.stderr.strip(), begun.stderr.strip()]
        fine = all(len(text.splitlines()) and "Traceback" not in text for text in said)
        codes = resumed.returncode, begun.returncode
        return "" if fine and codes == (1, 2) else f"{codes}: {said}"


def quota(cut: Path, whole: Path) -> str:
    """No file may grow beyond 8 KiB."""
    run = copied(cut, cut.with_name("broken"))
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # noqa: E731
    outcome = command("resume", run, preexec_fn=limit)
    if outcome.returncode not in (1, 2) or "Traceback" in outcome.stderr:
        return f"code {outcome.returncode}: {outcome.stderr[-300:]}"
    again = child(run, CHANGES)
    return again.said[-300:] if again.code else "; ".join(differences(whole, run))


SLOW = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>
ssize_t write(int file, const void *data, size_t size) {
  ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
  struct stat facts;
  if (fstat(file, &facts) == 0 && S_ISREG(facts.st_mode)) {
    usleep(20000);
    if (size > 4096) size = 4096;
  }
  return real(file, data, size);
}
"""
"""A disk of 200 kB a second that takes 4 KiB at a time, as `write` may: whoever writes has to ask again."""


def slow_disk(cut: Path, whole: Path) -> str:
    """Every write takes its time and takes a part: the same bits, also if killed in a save that lasts."""
    library = cut.with_name("slow.so")
    compiler = shutil.which("cc")
    if compiler is None:
        print("  (skipped: needs a C compiler)")
        return ""
    built = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(built, input=SLOW, text=True, check=True)
    slow = {**os.environ, "LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}
    for moment in [(), ("metrics", 0.2), ("metrics", 0.8)]:
        run = cut.with_name(f"slow-{len(moment) and moment[1]}")
        outcome = child(run, CHANGES, *moment, env=slow)
        if outcome.killed is not bool(moment):
            return f"{moment}: code {outcome.code}: {outcome.said[-300:]}"
        again = child(run, CHANGES, env=slow) if moment else outcome
        found = again.said[-300:] if again.code else "; ".join(differences(whole, run))
        if found:
            return f"{moment}: {found}"
    return ""


FLAGS = (
    "--model.name tiny --model.max-tokens 12 --data.name synthetic --data.max-examples 240 --rounds 6 "
    "--local-steps 2 --batch-size 8 --noise-seed 11 --evaluate-every 2 --method.rank 2 "
    "--privacy.noise-multiplier 1"
).split()
"""``tests.tiny_runs.TINY`` on the command line."""

FAILURES = {
    "all checkpoints empty": all_broken,
    "metrics.jsonl torn": torn_metrics,
    "disk full": full_disk,
    "read-only disk": read_only,
    "files limited in size": quota,
    "slow disk": slow_disk,
}


def command(*words: object, **more) -> subprocess.CompletedProcess[str]:
    """Runs ``ffalora`` in a process of its own."""
    whole = [sys.executable, "-m", "ffalora_jax.cli", *map(str, words)]
    return subprocess.run(whole, capture_output=True, text=True, timeout=300, **more)


@contextlib.contextmanager
def mounted(options: str) -> Iterator[Path | None]:
    """A small disk in memory; None, said so, where this user may not mount one."""
    with tempfile.TemporaryDirectory(prefix="disk-") as place:
        asked = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
        if os.geteuid() or subprocess.run(asked, capture_output=True).returncode:
            print("  (skipped: needs the right to mount)")
            yield None
            return
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


if __name__ == "__main__":
    sys.exit(main())
