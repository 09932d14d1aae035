"""Mutated files of every kind that a user can feed in: our error or a result, never anything else.

Claim: no crash that is not an InputError, no hang (10 s an input), memory bounded (4 GiB over the start).
Run: python -m tests.faults.fuzz [--inputs 20000] [--seed 0] [--only NAME]     Time: 20 minutes on one core
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ffalora_jax.errors import InputError
from tests.faults.fuzzed import Target, targets

SECONDS, ROOM = 10, 4 * 2**30
NASTY = [
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r\n",
        b"\r",
        b"\n",
        b'"',
        b",",
        b"\t",
        b"{",
        b"]",
        b"=",
    ),
    *(b"nan", b"1e999", b"-1", b"9" * 40, b"true", b"null", b"[" * 3000, b"../", b"a" * 70_000),
    *("\u202eabc".encode(), "🙂".encode(), "é".encode("latin-1"), b"%s%n", b"{{7*7}}", b"<script>"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


class Hang(BaseException):
    """An input took too long."""


def main() -> int:
    """Fuzzes all targets; the exit code says whether anything but our error came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind")
    asked = parser.parse_args()
    wrong, begin, total = 0, time.perf_counter(), 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        os.chdir(place)
        found = targets(Path(place))
        soft = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + virtual() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
        whole = sum(target.weight for target in found.values())
        for name, target in found.items():
            if asked.only in (None, name):
                count = (
                    round(asked.inputs * target.weight / whole)
                    if asked.only is None
                    else asked.inputs
                )
                tried, failed = fuzz(target, count, asked.seed)
                total, wrong = total + tried, wrong + bool(failed)
                print(f"{name}: {tried} inputs; {failed or 'ours or a result'}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    minutes = (time.perf_counter() - begin) / 60
    print(
        f"{total} inputs, {wrong} kinds with a defect, peak {peak:.1f} GiB, {minutes:.0f} minutes"
    )
    return 1 if wrong else 0


def fuzz(target: Target, count: int, number: int) -> tuple[int, str]:
    """Feeds mutations of the seeds in; returns how many, and the smallest input that broke something."""
    tried, broke = 0, ""

    def late(signum: int, frame: Any) -> None:
        raise Hang(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(mutations(target.seeds))
    def attempt(data: bytes) -> None:
        nonlocal tried, broke
        tried += 1
        signal.alarm(SECONDS)
        try:
            target.call(data)
        except InputError:
            pass
        except BaseException as error:
            broke = (
                f"{type(error).__name__}: {str(error)[:300]} on {data[:200]!r} ({len(data)} bytes)"
            )
            raise
        finally:
            signal.alarm(0)

    try:
        attempt()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return tried, broke or repr(error)[:300]
    return tried, ""


@st.composite
def mutations(draw, seeds: list[bytes]) -> bytes:
    """A seed with a few edits: cut, overwritten, filled with something nasty, doubled; or JSON anew."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        place = int(draw(st.floats(0, 1)) * len(data))
        length = draw(st.integers(0, 40))
        kind = draw(st.integers(0, 6))
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + draw(st.sampled_from(NASTY)) + data[place:]
        elif kind == 2:
            data = data[:place] + data[place + length :]
        elif kind == 3:
            data = data[:place] + draw(st.binary(max_size=12)) + data[place + length :]
        elif kind == 4 and len(data) < 100_000:
            data = data + data[place : place + 400]
        elif kind == 5:
            data = edited_json(draw, data)
        else:
            data = data[:place] + draw(st.sampled_from(NASTY)) + data[place + length :]
    return data


def edited_json(draw, data: bytes) -> bytes:
    """Puts another value in some place of a JSON document; other data stays."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    here = document
    while isinstance(here, dict | list) and here:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = draw(st.sampled_from(keys))
        if draw(st.booleans()) or not isinstance(here[key], dict | list):
            here[key] = draw(JSON)
            break
        here = here[key]
    return json.dumps(document).encode()


def virtual() -> int:
    """Bytes of address space that the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
