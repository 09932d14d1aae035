"""Mutated files of every kind that a user can feed in: our error or a result, never anything else.

Claim: no crash that is not an InputError, no hang (10 s an input), memory bounded (4 GiB over the start).
Run: python -m tests.faults.fuzz [--inputs 20000] [--seed 0] [--only NAME]     Time: 20 minutes on one core
"""

import argparse
import io
import json
import os
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ffalora_jax import fetch, peft_io, pretrained, registry, weights
from ffalora_jax.config import Experiment
from ffalora_jax.errors import InputError
from ffalora_jax.experiment_file import load_experiment, to_toml
from ffalora_jax.images import ImageSettings, load_images
from ffalora_jax.load import load_dataset
from ffalora_jax.loaded_run import load_run
from ffalora_jax.text import load_tokenizer
from tests.bad_files import FILES
from tests.peft_files import write

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


class Target(NamedTuple):
    """One kind of file."""

    seeds: list[bytes]
    call: Callable[[bytes], object]
    weight: float = 1.0
    """Share of the inputs."""


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


def targets(place: Path) -> dict[str, Target]:
    """What is fed, and what it is fed to."""
    return {**settings_and_data(place), **archives(place), **models(place), **runs(place)}


def settings_and_data(place: Path) -> dict[str, Target]:
    """TOML, CSV, JSONL, Parquet."""

    def file(name: str, then: Callable[[Path], object]) -> Callable[[bytes], object]:
        def call(data: bytes) -> object:
            (place / name).write_bytes(data)
            return then(place / name)

        return call

    def read(kind: str) -> Callable[[Path], object]:
        base = Experiment().replace(**{"data.name": kind, "partition.name": "iid"})
        return lambda path: load_dataset(base.replace(**{"data.path": str(path)}))

    tables = [FILES[name].encode() for name in ("good.csv", "sites.csv", "other.csv", "tabs.csv")]
    lines = [
        b'{"text": "fine", "label": "pos", "n": 1}\n{"text": "bad", "label": "neg", "n": 2}\n' * 20
    ]
    chats = [b'{"prompt": "what is one", "response": "two"}\n' * 20]
    chats.append(
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        * 9
    )
    text = to_toml(Experiment()).encode()
    return {
        "experiment.toml": Target(
            [
                text,
                to_toml(Experiment(), comments=True).encode(),
                b"rounds = 3\n[sites]\nup = '1, 2'\n",
            ],
            file("e.toml", load_experiment),
            3,
        ),
        "csv": Target(tables, file("d.csv", read("csv")), 2),
        "jsonl": Target(lines, file("d.jsonl", read("jsonl"))),
        "instructions": Target(chats, file("i.jsonl", read("instructions"))),
        "parquet": Target([table()], file("d.parquet", read("parquet"))),
    }


def table() -> bytes:
    """A Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"text": [f"text {n}" for n in range(30)], "label": [n % 2 for n in range(30)]}
    buffer = io.BytesIO()
    pq.write_table(pa.table(rows), buffer)
    return buffer.getvalue()


def archives(place: Path) -> dict[str, Target]:
    """Zips of images, and what is fetched from package indexes."""
    from PIL import Image

    def zipped(method: int) -> bytes:
        buffer, picture = io.BytesIO(), io.BytesIO()
        Image.new("RGB", (5, 5), (9, 90, 0)).save(picture, "PNG")
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for number in range(12):
                archive.writestr(f"{['ash', 'oak'][number % 2]}/{number}.png", picture.getvalue())
        return buffer.getvalue()

    def images(data: bytes) -> None:
        (place / "i.zip").write_bytes(data)
        base = Experiment().replace(**{"data.name": "images", "data.path": str(place / "i.zip")})
        found = load_dataset(base.replace(**{"partition.name": "iid"}))
        load_images(found.inputs["image"], ImageSettings(size=(8, 8)))

    seeds = [zipped(zipfile.ZIP_STORED), zipped(zipfile.ZIP_DEFLATED)]
    return {"images.zip": Target(seeds, images, 2), "a wheel": Target(seeds, fetch.read_zip)}


def models(place: Path) -> dict[str, Target]:
    """Checkpoints and adapters: headers, configs, indexes, tokenizers."""
    folder = write(place / "bert", "bert")
    config = (folder / "config.json").read_bytes()
    whole = (folder / weights.WEIGHTS).read_bytes()
    words = (folder / "tokenizer.json").read_bytes()
    family = registry.lookup("models", "bert")()
    wanted = weights.flatten(shapes_of(folder))

    def tensors(data: bytes) -> object:
        (place / "w.safetensors").write_bytes(data)
        return weights.read_weights([place / "w.safetensors"], family, wanted, "float32")

    def configured(data: bytes) -> object:
        (folder / "config.json").write_bytes(data)
        return pretrained.load_pretrained(folder, num_classes=3)

    def index(data: bytes) -> object:
        (place / weights.INDEX).write_bytes(data)
        return weights.shard_names(place / weights.INDEX)

    def tokenizer(data: bytes) -> object:
        (folder / "tokenizer.json").write_bytes(data)
        return load_tokenizer(folder)(["a fine film"], None, 16)

    adapter = place / "adapter"
    adapter.mkdir()
    facts = json.dumps(
        {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], "bias": "none"}
    ).encode()
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_{}.weight"
    from safetensors.numpy import save

    b = save({name.format("A"): np.zeros((2, 32), "f"), name.format("B"): np.zeros((32, 2), "f")})

    def adapter_with(file: str) -> Callable[[bytes], object]:
        def call(data: bytes) -> object:
            (adapter / "adapter_config.json").write_bytes(facts)
            (adapter / "adapter_model.safetensors").write_bytes(b)
            (adapter / file).write_bytes(data)
            return peft_io.read_peft(adapter)

        return call

    return {
        "safetensors": Target([whole[:3000], whole], tensors, 2),
        "config.json": Target([config], configured, 1),
        "index": Target([b'{"weight_map": {"a": "m-1.safetensors"}}'], index, 0.5),
        "tokenizer.json": Target([words], tokenizer, 0.5),
        "adapter_config.json": Target([facts], adapter_with("adapter_config.json"), 2),
        "adapter tensors": Target([b], adapter_with("adapter_model.safetensors")),
    }


def shapes_of(folder: Path) -> Any:
    """The places of a checkpoint's model."""
    from flax import nnx

    return nnx.to_pure_dict(nnx.state(pretrained.load_pretrained(folder, num_classes=3), nnx.Param))


def runs(place: Path) -> dict[str, Target]:
    """Files of a run that somebody else made."""
    import ffalora_jax as ffa
    from tests.tiny_runs import tiny

    run = ffa.simulate(tiny(rounds=1), out=place / "run").path

    def with_file(name: str) -> Target:
        whole = (run / name).read_bytes()

        def call(data: bytes) -> object:
            (run / name).write_bytes(data)
            try:
                return load_run(run).predict(["a fine film"])
            finally:
                (run / name).write_bytes(whole)

        return Target([whole], call, 0.2)

    names = (
        "metrics.jsonl",
        "privacy.json",
        "communication.json",
        "environment.json",
        "adapter/run.json",
    )
    return {f"a run's {name}": with_file(name) for name in names}


def virtual() -> int:
    """Bytes of address space that the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
