"""Raw examples to arrays, once: tokenised or decoded, and kept on disk by what they were made from.

A kept file is found by the hash of the texts, the tokenizer's files and the length, and written whole or not
at all; so a stale or half-written one is never used.
"""

import contextlib
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ffalora_jax import cache
from ffalora_jax import codec as codecs
from ffalora_jax.codec import TextCodec
from ffalora_jax.data import Dataset
from ffalora_jax.errors import InputError
from ffalora_jax.images import ImageSettings, load_images
from ffalora_jax.text import Encoded, Tokenizer

WORD_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)


def encode_text(
    dataset: Dataset, tokenizer: Tokenizer | None, max_tokens: int, directory: Path | None
) -> Encoded:
    """Tokenises texts or pairs of texts.

    Args:
        dataset: texts.
        tokenizer: the model's; None is refused.
        max_tokens: longer ones are cut, of a pair the longer text first.
        directory: the checkpoint's folder, whose tokenizer files name the kept copy; None keeps none.

    Raises:
        InputError: no tokenizer.
    """
    if tokenizer is None:
        raise InputError(
            "The model has no tokenizer, and the data is text: give a checkpoint folder with tokenizer.json, "
            "or data of the kind that the model reads."
        )
    texts, pairs = dataset.inputs["text"], dataset.inputs.get("text_pair")
    name = None if directory is None else _name(directory, [texts, pairs or ()], max_tokens)
    kept = None if name is None else _kept(name)
    if kept is None:
        kept = tokenizer(texts, pairs, max_tokens)
        if name is not None:
            _keep(name, kept)
    return kept


def encode_instructions(dataset: Dataset, codec: TextCodec, max_tokens: int) -> Encoded:
    """Tokenises prompts with their responses; ``response_mask`` says what is to be learnt."""
    return codecs.encode_instructions(
        codec, dataset.inputs["prompt"], dataset.inputs["response"], max_tokens
    )


def encode_images(dataset: Dataset, settings: ImageSettings) -> Encoded:
    """Decodes and resizes images; they stay uint8 until the model normalises them."""
    images = load_images(dataset.inputs["image"], settings)
    return Encoded({"images": images}, np.ones(len(images), np.int32))


def check_vocabulary(encoded: Encoded, vocabulary: int | None) -> None:
    """Raises InputError if a token id lies outside the model's embedding: JAX would clip it silently."""
    ids = encoded.inputs.get("input_ids")
    if ids is not None and vocabulary is not None and ids.max() >= vocabulary:
        raise InputError(
            f"The tokenizer gives id {ids.max()}, the model's embedding has {vocabulary} rows: they "
            "belong to different checkpoints."
        )


def _name(directory: Path, columns: list, max_tokens: int) -> str:
    digest = hashlib.sha256(f"1 {max_tokens} {len(columns[0])}".encode())
    for file in WORD_FILES:
        if (directory / file).is_file():
            digest.update(file.encode() + (directory / file).read_bytes())
    for column in columns:
        for text in column:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _kept(name: str) -> Encoded | None:
    with contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        with np.load(cache.folder("tokens") / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}  # every member's checksum is checked
        return Encoded(arrays, arrays.pop("lengths"))
    return None


def _keep(name: str, encoded: Encoded) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"lengths": encoded.lengths, **encoded.inputs}
    np.savez_compressed(buffer, **arrays)
    with contextlib.suppress(OSError):
        cache.write_atomically(cache.folder("tokens") / f"{name}.npz", buffer.getvalue())
