"""Texts to token ids: tokenise, pair, truncate, pad."""

import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax.errors import InputError


class Encoded(NamedTuple):
    """Some examples as arrays, as the models take them."""

    inputs: dict[str, np.ndarray]
    """input_ids, attention_mask, for pairs token_type_ids and for instructions response_mask:
    (example, token); or images (example, height, width, 3) uint8."""
    lengths: np.ndarray
    """Real tokens of an example; 1 for images."""
    may_be_cut: bool = True
    """Whether rows may be cut behind their last token: only for models that never look at padding."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Token widths that a block of rows may be cut to, the full one last; (1,) for images."""
        full = self.inputs["input_ids"].shape[1] if "input_ids" in self.inputs else 1
        return block_widths(full) if self.may_be_cut else (full,)


Tokenizer = Callable[[Sequence[str], Sequence[str] | None, int], Encoded]
"""(texts, second texts, most tokens) -> Encoded."""


def block_widths(full: int) -> tuple[int, ...]:
    """Returns the token widths to compile: a half, two thirds and all, in multiples of 8.

    Up to 24 tokens only the full width: each one compiles the model again, and little is left to save.
    """
    if full <= 24:
        return (full,)
    widths = {-8 * (-full * share // 48) for share in (3, 4)}
    return (*sorted(width for width in widths if width < full), full)


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Returns the tokenizer of a Hugging Face directory.

    Raises:
        InputError: the directory has no tokenizer files.
    """
    return _from_fast(read_tokenizer(Path(directory)))


def read_tokenizer(directory: Path) -> Any:
    """Returns the ``tokenizers.Tokenizer`` of a Hugging Face directory; errors as ``load_tokenizer``."""
    file = directory / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer as Fast

        try:
            return Fast.from_file(str(file))
        except Exception as error:
            raise InputError(f"Cannot read {file} ({error}).") from None
    if any((directory / name).is_file() for name in ("vocab.txt", "vocab.json", "tokenizer.model")):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(directory)).backend_tokenizer
    raise InputError(
        f"No tokenizer.json or vocabulary in {directory}: give a complete checkpoint folder."
    )


def hash_tokenizer(vocab_size: int) -> Tokenizer:
    """Returns a tokenizer that hashes lower-cased words to ids: no vocabulary, so nothing learnt."""
    start, separator, first = 1, 2, 3

    def ids_of(text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        return [first + zlib.crc32(word.encode()) % (vocab_size - first) for word in words]

    def tokenise(texts, pairs, max_tokens):
        rows, types = [], []
        for index, text in enumerate(texts):
            first, second = ids_of(text), [] if pairs is None else ids_of(pairs[index])
            room = max_tokens - (2 if pairs is None else 3)
            if len(first) + len(second) > room:  # the longer one is cut first
                first = first[: max(room - len(second), room - room // 2)]
                second = second[: room - len(first)]
            head = [start, *first, separator]
            tail = [] if pairs is None else [*second, separator]
            rows.append(head + tail)
            types.append([0] * len(head) + [1] * len(tail))
        return padded(rows, None if pairs is None else types, max_tokens)

    return tokenise


def _from_fast(tokenizer) -> Tokenizer:
    def tokenise(texts, pairs, max_tokens):
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        batch = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encoded = tokenizer.encode_batch(batch)
        types = None if pairs is None else [one.type_ids for one in encoded]
        return padded([one.ids for one in encoded], types, max_tokens)

    return tokenise


def padded(rows: list[list[int]], types: list[list[int]] | None, max_tokens: int) -> Encoded:
    """Returns rows of ids (and token types) as arrays, padded at the right."""
    lengths = np.array([len(row) for row in rows], np.int32)
    mask = np.arange(max_tokens) < lengths[:, None]

    def dense(lists):
        array = np.zeros((len(lists), max_tokens), np.int32)
        array[mask] = np.fromiter((item for row in lists for item in row), np.int32, mask.sum())
        return array

    inputs = {"input_ids": dense(rows), "attention_mask": mask}
    if types is not None:
        inputs["token_type_ids"] = dense(types)
    return Encoded(inputs, lengths)
