"""Byte-pair encoding by scores, as llama2.c's tokenizer files hold it (the form of SentencePiece's BPE).

File: int32 longest piece; then for each piece float32 score, int32 length, bytes (little-endian). Pieces 0
to 2 are unknown, begin and end; 3 to 258 are the bytes; a leading space stands for SentencePiece's mark.
"""

import functools
import itertools
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from ffalora_jax.codec import TextCodec
from ffalora_jax.errors import InputError

BEGIN, FIRST_BYTE, SPECIAL = 1, 3, 259
LONGEST_PIECE = 1024


def read_pieces(data: bytes, count: int, name: str) -> list[tuple[bytes, float]]:
    """Returns ``(piece, score)`` by id; every length is checked against what is left of the file.

    Raises:
        InputError: not a file of ``count`` pieces.
    """
    pieces, place = [], 4
    while place < len(data):
        if place + 8 > len(data):
            raise InputError(f"{name} ends inside piece {len(pieces)}: expected score and length.")
        score, length = struct.unpack_from("<fi", data, place)
        place += 8
        if not 0 <= length <= min(LONGEST_PIECE, len(data) - place):
            raise InputError(
                f"Piece {len(pieces)} of {name} has length {length}, expected 0 to "
                f"{min(LONGEST_PIECE, len(data) - place)}: it is not a tokenizer of llama2.c."
            )
        pieces.append((data[place : place + length], score))
        place += length
    if len(pieces) != count or count < SPECIAL:
        raise InputError(
            f"{name} has {len(pieces)} pieces, expected the model's vocabulary of {count} (at least "
            f"{SPECIAL}: three special ones and the bytes)."
        )
    return pieces


def score_codec(pieces: Sequence[tuple[bytes, float]]) -> TextCodec:
    """Returns the codec of some pieces.

    Text is cut into characters (unknown ones into bytes), after a space in front; then the neighbours whose
    joint piece has the highest score are joined, the leftmost first, until no two of them make a piece.
    Texts begin with the begin token, and it also ends them: so these models are trained.
    """
    ids = {piece: index for index, (piece, _) in reversed(list(enumerate(pieces)))}
    scores = [score for _, score in pieces]
    # No piece goes on after an inner space, so joining stays inside a word and its leading space.
    within_words = not any(b" " in piece[1:] for piece, _ in pieces[SPECIAL:])

    def ids_of_character(character: str) -> list[int]:
        encoded = character.encode("utf-8", errors="replace")
        return [ids[encoded]] if encoded in ids else [FIRST_BYTE + byte for byte in encoded]

    @functools.lru_cache(maxsize=100_000)
    def encode_part(part: str) -> tuple[int, ...]:
        row = [index for character in part for index in ids_of_character(character)]
        while True:
            pairs = [ids.get(pieces[a][0] + pieces[b][0]) for a, b in itertools.pairwise(row)]
            known = [(-scores[new], at, new) for at, new in enumerate(pairs) if new is not None]
            if not known:
                return tuple(row)
            _, at, new = min(known)
            row[at : at + 2] = [new]

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [_encode(text) for text in texts]

    def _encode(text: str) -> list[int]:
        marked = f" {text}" if text else ""
        parts = re.findall(r" ?[^ ]+| ", marked) if within_words else [marked]
        return [index for part in parts for index in encode_part(part)]

    def decode(row: Iterable[Any]) -> str:
        found = b"".join(_bytes_of(int(index), pieces) for index in row)
        return found.decode("utf-8", errors="replace").removeprefix(" ")

    return TextCodec(encode, decode, (BEGIN,), BEGIN, 0)


def _bytes_of(index: int, pieces: Sequence[tuple[bytes, float]]) -> bytes:
    if FIRST_BYTE <= index < SPECIAL:
        return bytes([index - FIRST_BYTE])
    return b"" if index < FIRST_BYTE else pieces[index][0]
