"""Prompts and responses, for models that are to learn what to say: JSONL (plain or ``.gz``) or Parquet.

Either two columns of text, ``prompt`` and ``response`` (``--data.prompt``, ``--data.response``), or chats in
``messages`` (``--data.messages``): lists of ``{"role": ..., "content": ...}`` that end with the assistant.
Chats stay structured, since only the checkpoint's tokenizer knows how it wants them written.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _columns, _files
from ffalora_jax.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``, a file or a folder of files (each a client, unless a column says whose).

    Raises:
        InputError: a line that is not of the form, with its number and its file.
    """
    files = _files.find(config, *SUFFIXES)
    pairs, owners = [], []
    each = {} if config.client else _files.client_of(files, SUFFIXES)
    for file in files:
        before = len(pairs)
        for pair, owner in _files.checked(file, lambda path: list(_examples(path, config))):
            pairs.append(pair)
            owners.append(each[file] if owner is None else owner)
        if len(pairs) == before:
            raise InputError(f"{file} holds no examples: expected at least one line.")
    source, clients, names = str(config.path), None, ()
    if config.client or len(files) > 1:
        clients, names = _columns.codes(owners, config.client or "file", source)
    return Dataset(
        {"prompt": [prompt for prompt, _ in pairs], "response": [said for _, said in pairs]},
        np.zeros(len(pairs), np.int64),
        _columns.RESPONSE,
        clients,
        names,
        source,
    )


def _examples(path: Path, config: DataConfig) -> Iterator[tuple[tuple, object]]:
    """Yields ((prompt, response), owner) of each row of a file."""
    for where, row in _rows(path):
        if config.messages in row:
            picked = {"messages": config.messages}
        else:
            picked = {"prompt": config.prompt, "response": config.response}
        wanted = [*picked.values(), *([config.client] if config.client else [])]
        for name in wanted:
            if name not in row:
                raise InputError(
                    f"{where} has no {name!r}: there are {', '.join(map(repr, row))}. Name yours with "
                    "--data.prompt and --data.response, or --data.messages; owners with --data.client."
                )
        owner = row[config.client] if config.client else None
        if config.client and (owner is None or not str(owner).strip()):
            raise InputError(f"{where}, {config.client!r}, is empty: say whose example it is.")
        yield _columns.turns(row, picked, where), owner


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    if path.suffix != ".parquet":
        yield from _files.json_lines(path)
        return
    for number, row in enumerate(_files.parquet(path).to_pylist(), 1):
        yield f"Row {number} of {path}", row
