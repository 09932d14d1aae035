"""Raw examples to arrays, once: tokenised or decoded, and kept on disk by what they were made from.

A kept file is found by the hash of the texts, the tokenizer's files and version, and the length. It is
written whole or not at all, and names that hash itself: a stale, half-written or misplaced one is never used.
"""

import contextlib
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
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
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",  # says which tokenizer where there is only a vocabulary, and which ids begin and end
    "generation_config.json",
)
"""Files of a checkpoint that may change what a text becomes."""
FORM = 2
"""Raised when the same texts become other arrays, or are kept in another form."""


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
    columns = {"text": texts} if pairs is None else {"text": texts, "text_pair": pairs}
    return _kept_or_made(
        directory, columns, max_tokens, lambda: tokenizer(texts, pairs, max_tokens)
    )


def encode_instructions(
    dataset: Dataset, codec: TextCodec, max_tokens: int, directory: Path | None = None
) -> Encoded:
    """Tokenises prompts with their responses; ``response_mask`` says what is to be learnt.

    Args:
        dataset: prompts (texts or chats) and responses.
        codec: the model's.
        max_tokens: width of the arrays.
        directory: the checkpoint's folder, as in ``encode_text``.
    """
    prompts, responses = dataset.inputs["prompt"], dataset.inputs["response"]
    columns = {"prompt": prompts, "response": responses}

    def make():
        return codecs.encode_instructions(codec, prompts, responses, max_tokens)

    return _kept_or_made(directory, columns, max_tokens, make)


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


def _kept_or_made(
    directory: Path | None,
    columns: dict[str, Sequence],
    max_tokens: int,
    make: Callable[[], Encoded],
) -> Encoded:
    if directory is None:
        return make()
    name, rows = _name(directory, columns, max_tokens), len(next(iter(columns.values())))
    encoded = _kept(name, rows, max_tokens)
    if encoded is None:
        encoded = make()
        _keep(name, encoded)
    return encoded


def _name(directory: Path, columns: dict[str, Sequence], max_tokens: int) -> str:
    """Returns the hash of all that the arrays depend on; every part with its length, so none runs on."""
    digest = hashlib.sha256()

    def add(part: str | bytes) -> None:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)

    add(f"{FORM} {max_tokens} {version('tokenizers')} {version('transformers')}")
    for file in WORD_FILES:
        if (directory / file).is_file():
            add(file)
            add((directory / file).read_bytes())
    for column, texts in columns.items():
        add(f"{column} {len(texts)}")
        for text in texts:  # a chat is a list of messages
            add(f"text {text}" if isinstance(text, str) else f"chat {json.dumps(text)}")
    return digest.hexdigest()


def _kept(name: str, rows: int, max_tokens: int) -> Encoded | None:
    """Returns what is kept under a name, or None if there is nothing whole that was made for it."""
    broken = OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error
    with contextlib.suppress(*broken, NotImplementedError):
        path = cache.folder("tokens") / f"{name}.npz"
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}  # every member's checksum is checked
        made_for, lengths = str(arrays.pop("name")), arrays.pop("lengths")
        shapes = {leaf.shape for leaf in arrays.values()}
        if made_for == name and lengths.shape == (rows,) and shapes == {(rows, max_tokens)}:
            return Encoded(arrays, lengths)
    return None


def _keep(name: str, encoded: Encoded) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"lengths": encoded.lengths, **encoded.inputs}
    np.savez_compressed(buffer, name=np.array(name), **arrays)
    with contextlib.suppress(OSError):
        cache.write_atomically(cache.folder("tokens") / f"{name}.npz", buffer.getvalue())
