"""One JSON object a line, UTF-8; plain or gzip-compressed (``.jsonl.gz``)."""

from pathlib import Path

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _files
from ffalora_jax.errors import InputError


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``."""
    return _files.load(config, read, ".jsonl", ".jsonl.gz")


def read(path: Path) -> dict[str, list]:
    """Reads one file into columns; every line must have the same fields."""
    columns: dict[str, list] = {}
    for where, row in _files.json_lines(path):
        if columns and set(row) != set(columns):
            odd = ", ".join(sorted(set(row) ^ set(columns)))
            raise InputError(f"{where} differs from the first in its fields: {odd}.")
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns
