"""One JSON object a line, UTF-8; plain or gzip-compressed (``.jsonl.gz``)."""

import gzip
import json
from pathlib import Path

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _files
from ffalora_jax.errors import InputError


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``."""
    return _files.load(config, ".jsonl", read)


def read(path: Path) -> dict[str, list]:
    """Reads one file into columns; every line must have the same fields."""
    opened = (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8")
    )
    columns: dict[str, list] = {}
    with opened as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = _parse(line, f"Line {number} of {path}")
            if columns and set(row) != set(columns):
                odd = ", ".join(sorted(set(row) ^ set(columns)))
                raise InputError(
                    f"Line {number} of {path} differs from the first in its fields: {odd}."
                )
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return columns


def _parse(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise InputError(
            f'{where} is not a JSON object: expected one like {{"text": ..., "label": ...}}.'
        )
    return row
