"""Files that a user could bring and should not, for ``tests/bad_input.toml``; tiny, made on the spot."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from tests.peft_files import write

FILES = {
    "good.csv": "text,label\n" + "a good film,pos\na bad film,neg\n" * 40,
    "no_label.csv": "text,stars\n" + "a good film,5\na bad film,1\n" * 40,
    "empty.csv": "",
    "header.csv": "text,label\n",
    "one_class.csv": "text,label\n" + "a good film,pos\n" * 80,
    "sites.csv": "text,label,site\n"
    + "fine,pos,north\nbad,neg,north\n" * 40
    + "fine,pos,tiny_site\n",
    "tabs.csv": "text\tlabel\n" + "fine\tpos\n" * 40,
    "semicolons.csv": "text;label\n" + "fine;pos\n" * 40,
    "other.csv": "text,label\n" + "".join(f"text {n},text {n}\n" for n in range(40)),
    "strange.csv": "text,label\nfine,wonderful\nbad,negative\n",
    "broken.jsonl": '{"text": "fine", "label": "pos"}\n{"text": \n',
    "other.jsonl": '{"words": "fine", "label": "pos"}\n' * 40,
    "good.toml": "rounds = 3\n",
    "broken.toml": "rounds = 3\nseed = = 4\n",
    "table.toml": "[privat]\nepsilon = 3\n",
    "type.toml": 'rounds = "three"\n',
}
"""Texts by the file's name."""


def make(folder: Path) -> None:
    """Writes all of them into a folder."""
    for name, content in {**FILES, "empty.txt": ""}.items():
        (folder / name).write_text(content)
    for name, content in BYTES.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "outside.zip", "w") as archive:
        archive.writestr("../../evil/1.png", b"x")
    with zipfile.ZipFile(folder / "no_images.zip", "w") as archive:
        archive.writestr("a/1.txt", b"x")
        archive.writestr("b/1.txt", b"x")
    with zipfile.ZipFile(folder / "not_pictures.zip", "w") as archive:
        for number in range(40):
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", b"not a picture")
    (folder / "nothing").mkdir()
    models(folder)
    adapters(folder)


def models(folder: Path) -> None:
    """Checkpoint folders, each broken in one way."""
    for kind in ("cut", "pickled", "unknown", "no_config", "bad_config"):
        write(folder / f"model_{kind}", "bert")
    weights = folder / "model_cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    (folder / "model_pickled" / "model.safetensors").rename(
        folder / "model_pickled" / "pytorch_model.bin"
    )
    config = folder / "model_unknown" / "config.json"
    facts = {**json.loads(config.read_text()), "model_type": "mamba", "architectures": ["Mamba"]}
    config.write_text(json.dumps(facts))
    (folder / "model_no_config" / "config.json").unlink()
    (folder / "model_bad_config" / "config.json").write_text("{")


def adapters(folder: Path) -> None:
    """PEFT adapter folders, each broken in one way."""
    good = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"]}
    tensor = {"base_model.model.x.lora_A.weight": np.zeros((2, 4), np.float32)}
    for kind in ("pickled", "bad_config", "other_layers", "huge_header"):
        place = folder / f"adapter_{kind}"
        place.mkdir()
        (place / "adapter_config.json").write_text(
            "[" if kind == "bad_config" else json.dumps(good)
        )
        name = "adapter_model.bin" if kind == "pickled" else "adapter_model.safetensors"
        (place / name).write_bytes(save(tensor))
    (folder / "adapter_huge_header" / "adapter_model.safetensors").write_bytes(b"\xff" * 64)


def _zeros_in_a_row() -> bytes:
    """A Parquet file's first and last bytes, and zeros between."""
    file = io.BytesIO(b"PAR1")
    file.seek(0, io.SEEK_END)
    file.write(bytes(400) + b"PAR1")
    return file.getvalue()


BYTES = {
    "archive.csv": b"PK\x03\x04\xff\xff",
    "latin.csv": "text,label\ncaf\xe9,pos\n".encode("latin-1"),
    "nul.csv": b"text,label\n" + b"a\x00b,pos\nc,neg\n" * 40,
    "nul.toml": b"rounds = 3\x00\n",
    "bom.toml": "rounds = 0\n".encode("utf-8-sig"),
    "cut.parquet": b"PAR1" + bytes(10),
    "zeros.parquet": _zeros_in_a_row(),
    "long_line.csv": b"text,label\n" + b"x" * 10_000_000 + b"\n",
    "utf16.csv": "text,label\nfine,pos\n".encode("utf-16"),
}
"""Files that are no UTF-8 text, or hardly."""
