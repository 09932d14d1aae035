"""TinyStories 260K (Karpathy 2023, llama2.c; data: Eldan & Li 2023, arXiv:2305.07759): a LLaMA for tests.

264,128 parameters in 5 layers that tell fluent stories. Its files, ``stories260K.bin`` and ``tok512.bin``,
are no part of this package: they are read from ``$FFALORA_SHARED/data/stories260k`` (default: ``shared``
beside the checkout) or a folder given by ``--model.name``. Format: llama2.c, version 0, little-endian: int32
dim, hidden, layers, heads, kv_heads, vocab (negative: untied head), seq; then float32 arrays.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax.cache import shared_folder
from ffalora_jax.errors import InputError
from ffalora_jax.models import Model, OwnFiles
from ffalora_jax.models._score_bpe import read_pieces, score_codec

WEIGHTS, PIECES = "stories260K.bin", "tok512.bin"
MOST = {"dim": 2**15, "hidden": 2**17, "layers": 2**9, "heads": 2**10, "kv_heads": 2**10}
MOST |= {"vocab": 2**20, "seq": 2**20}


class Header(NamedTuple):
    """Sizes of a model."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    seq: int
    tied: bool


def build() -> Model:
    """The preset: LLaMA's family, files of its own format."""
    return Model(family="llama", files=(WEIGHTS, PIECES), read=read)


def read(directory: Path | None = None) -> OwnFiles:
    """Reads both files; every size is checked against the file before anything is made of it.

    Raises:
        InputError: no such files, sizes that cannot be or do not fit the file.
    """
    directory = _usual_place() if directory is None else directory
    data, words = (_bytes_of(directory / name) for name in (WEIGHTS, PIECES))
    header = read_header(data, str(directory / WEIGHTS))
    arrays = _arrays(data, header, str(directory / WEIGHTS))
    codec = score_codec(read_pieces(words, header.vocab, str(directory / PIECES)))
    digest = hashlib.sha256(data).hexdigest()
    return OwnFiles(_config(header), _by_path(arrays, header), codec, digest)


def read_header(data: bytes, name: str) -> Header:
    """Returns the sizes at the beginning of a file.

    Raises:
        InputError: a file that ends there, sizes below one, absurdly large, or that do not divide.
    """
    if len(data) < 28:
        raise InputError(f"{name} has {len(data)} bytes, expected a header of 28 and weights.")
    values = np.frombuffer(data, "<i4", count=7).tolist()
    vocab = values[5]
    values[5] = abs(vocab)
    for (size, most), value in zip(MOST.items(), values, strict=True):
        if not 1 <= value <= most:
            raise InputError(
                f"Expected 1 <= {size} <= {most} in the header of {name}, got {value}: it is not a version-0 "
                "file of llama2.c."
            )
    header = Header(*values, tied=vocab > 0)
    if header.dim % (2 * header.heads) or header.heads % header.kv_heads:
        raise InputError(
            f"Header of {name}: dim {header.dim}, heads {header.heads} and kv_heads {header.kv_heads} do not "
            "divide: expected an even dim / heads, and heads a multiple of kv_heads."
        )
    return header


def _usual_place() -> Path:
    place = "data", "stories260k"
    return shared_folder(*place) or Path(os.environ.get("FFALORA_SHARED", "../shared"), *place)


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(
            f"Cannot read {file} ({error.strerror}): put {WEIGHTS} and {PIECES} of karpathy/tinyllamas "
            "into a folder and give --model.name FOLDER, or set FFALORA_SHARED."
        ) from None


def _arrays(data: bytes, header: Header, name: str) -> dict[str, np.ndarray]:
    """Cuts the file into its arrays, in its order; dense layers are (out, in) there."""
    h, per_head = header, header.dim // header.heads
    shared, turns = h.kv_heads * per_head, (h.seq, per_head // 2)
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (h.vocab, h.dim),
        "attention_norm": (h.layers, h.dim),
        "q_proj": (h.layers, h.dim, h.dim),
        "k_proj": (h.layers, shared, h.dim),
        "v_proj": (h.layers, shared, h.dim),
        "o_proj": (h.layers, h.dim, h.dim),
        "mlp_norm": (h.layers, h.dim),
        "gate_proj": (h.layers, h.hidden, h.dim),
        "down_proj": (h.layers, h.dim, h.hidden),
        "up_proj": (h.layers, h.hidden, h.dim),
        "norm": (h.dim,),
        "cosines": turns,
        "sines": turns,
    }
    if not h.tied:
        shapes["head"] = (h.vocab, h.dim)
    expected = 28 + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(data) != expected:
        raise InputError(f"{name} has {len(data)} bytes, expected {expected} by its header.")
    found, place = {}, 28
    for part, shape in shapes.items():
        count = int(np.prod(shape))
        values = np.frombuffer(data, "<f4", count=count, offset=place)
        found[part] = values.astype(np.float32).reshape(shape)
        place += 4 * count
    return found


def _by_path(arrays: dict[str, np.ndarray], header: Header) -> dict[tuple, np.ndarray]:
    """Returns the arrays by their places in the module, dense layers as (in, out)."""
    found: dict[tuple, np.ndarray] = {("embed", "embedding"): arrays["embed"]}
    found["norm", "scale"] = arrays["norm"]
    if not header.tied:
        found["head", "kernel"] = arrays["head"].T
    for layer in range(header.layers):
        at = ("layers", layer)
        for norm in ("attention_norm", "mlp_norm"):
            found[*at, norm, "scale"] = arrays[norm][layer]
        for name, heads in (("q_proj", header.heads), ("k_proj", header.kv_heads)):
            halves = _neighbours_to_halves(arrays[name][layer], heads)
            found[*at, "attention", name, "kernel"] = halves.T
        for name in ("v_proj", "o_proj"):
            found[*at, "attention", name, "kernel"] = arrays[name][layer].T
        for name in ("gate_proj", "up_proj", "down_proj"):
            found[*at, "mlp", name, "kernel"] = arrays[name][layer].T
    return found


def _neighbours_to_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders a head's outputs from the pairs (2i, 2i + 1) to (i, i + half), which turn together here.

    Queries and keys are reordered alike, so their products stay what they were.
    """
    outputs, inputs = weight.shape
    pairs = weight.reshape(heads, outputs // heads // 2, 2, inputs)
    return pairs.swapaxes(1, 2).reshape(outputs, inputs)


def _config(header: Header) -> dict[str, Any]:
    """Returns the sizes as a config.json of LLaMA; the format fixes epsilon and theta."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": header.dim,
        "intermediate_size": header.hidden,
        "num_hidden_layers": header.layers,
        "num_attention_heads": header.heads,
        "num_key_value_heads": header.kv_heads,
        "vocab_size": header.vocab,
        "max_position_embeddings": header.seq,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": header.tied,
    }
