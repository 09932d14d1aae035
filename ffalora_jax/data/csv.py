"""Comma-separated files with a header, UTF-8 (with or without a byte-order mark)."""

import csv
from pathlib import Path

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _files
from ffalora_jax.errors import InputError

_LONGEST_FIELD = 10_000_000


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``; all values stay as written."""
    return _files.load(config, read, ".csv")


def read(path: Path) -> dict[str, list]:
    """Reads one file into columns."""
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, None)
            if header is None:
                return {}
            _refuse_other_separators(path, header)
            columns: dict[str, list] = {name.strip(): [] for name in header}
            if len(columns) != len(header):
                raise InputError(f"{path} names a column twice in its header: {', '.join(header)}.")
            for row in rows:
                if row and len(row) != len(header):
                    raise InputError(
                        f"Line {rows.line_num} of {path} has {len(row)} fields, expected {len(header)}: "
                        "put text that holds commas in double quotes."
                    )
                for name, value in zip(columns, row, strict=False):
                    columns[name].append(value)
        except csv.Error as error:
            raise InputError(f"Line {rows.line_num} of {path} is not CSV ({error}).") from None
    return columns


def _refuse_other_separators(path: Path, header: list[str]) -> None:
    for separator, name in (("\t", "tabs"), (";", "semicolons")):
        if len(header) == 1 and separator in header[0]:
            raise InputError(
                f"{path} is separated by {name}, expected commas: its header is {header[0]!r}. Save it as a "
                "comma-separated file."
            )
