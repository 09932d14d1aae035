"""What csv, jsonl and parquet share: finding files, and one client a file where nothing else says so."""

import zlib
from collections.abc import Callable
from pathlib import Path

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, as_dataset
from ffalora_jax.errors import InputError

FILE_COLUMN = "file"
"""Column added to a folder of files: the file's name, which is the client unless a column is named."""


def load(config: DataConfig, suffix: str, read: Callable[[Path], dict[str, list]]) -> Dataset:
    """Reads a file, or all files of a folder, into one data set."""
    if config.path is None:
        raise InputError(
            f"Expected --data.path for data.name {config.name!r}: a {suffix} file or folder."
        )
    path = Path(config.path)
    if not path.exists():
        raise InputError(f"No file or folder {str(path)!r}: check --data.path.")
    files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"No {suffix} file in folder {str(path)!r}.")
    columns: dict[str, list] = {}
    for file in files:
        table = _read(file, read)
        count = len(next(iter(table.values()), []))
        if len(files) > 1:
            table.setdefault(FILE_COLUMN, [file.stem] * count)
        if columns and set(columns) != set(table):
            odd = sorted(set(columns) ^ set(table))
            raise InputError(f"{file} has other columns than {files[0]}: {', '.join(odd)}.")
        for name, values in table.items():
            columns.setdefault(name, []).extend(values)
    return as_dataset(
        columns,
        text=config.text,
        label=config.label,
        text_pair=config.text_pair,
        client=config.client or (FILE_COLUMN if len(files) > 1 else None),
        source=str(path),
    )


def _read(file: Path, read: Callable[[Path], dict[str, list]]) -> dict[str, list]:
    try:
        table = read(file)
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"Cannot read {file}: {getattr(error, 'strerror', None) or error}."
        ) from None
    if not table or not next(iter(table.values())):
        raise InputError(f"{file} holds no examples: expected a header and at least one row.")
    return table
