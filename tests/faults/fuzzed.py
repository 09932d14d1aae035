"""What ``fuzz`` feeds: good files of every kind, and what reads them."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax import fetch, peft_io, pretrained, registry, weights
from ffalora_jax.config import Experiment
from ffalora_jax.experiment_file import load_experiment, to_toml
from ffalora_jax.images import ImageSettings, load_images
from ffalora_jax.load import load_dataset
from ffalora_jax.loaded_run import load_run
from ffalora_jax.text import load_tokenizer
from tests.bad_files import FILES
from tests.peft_files import write


class Target(NamedTuple):
    """One kind of file."""

    seeds: list[bytes]
    call: Callable[[bytes], object]
    weight: float = 1.0
    """Share of the inputs."""


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
