"""What the members on files share: finding files, reading rows; one client a file unless a column says it."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, as_dataset
from ffalora_jax.errors import InputError

FILE_COLUMN = "file"
"""Column added to a folder of files: the file's name, which is the client unless a column is named."""

Read = TypeVar("Read")


def load(config: DataConfig, read: Callable[[Path], dict[str, list]], *suffixes: str) -> Dataset:
    """Reads a file, or all files of a folder, into one data set."""
    files = find(config, *suffixes)
    each = {} if config.client or len(files) == 1 else client_of(files, suffixes)
    columns: dict[str, list] = {}
    for file in files:
        table = checked(file, read)
        if not table or not next(iter(table.values())):
            raise InputError(f"{file} holds no examples: expected a header and at least one row.")
        if each:
            if FILE_COLUMN in table:
                raise InputError(
                    f"{file} has a column {FILE_COLUMN!r}, and of several files each is a client by that "
                    "name: say which column tells whose a row is (--data.client), or rename it."
                )
            table[FILE_COLUMN] = [each[file]] * len(next(iter(table.values())))
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
        client=config.client or (FILE_COLUMN if each else None),
        source=str(config.path),
    )


def find(config: DataConfig, *suffixes: str) -> list[Path]:
    """Returns the file that ``config.path`` names, or those of its folder with one of the suffixes."""
    kinds = " or ".join(suffixes)
    if config.path is None:
        raise InputError(
            f"Expected --data.path for data.name {config.name!r}: a {kinds} file or folder."
        )
    path = Path(config.path)
    if not path.exists():
        raise InputError(f"No file or folder {str(path)!r}: check --data.path.")
    if not path.is_dir():
        return [path]
    files = files_of(path, *suffixes)
    if not files:
        raise InputError(f"No {kinds} file in folder {str(path)!r}.")
    return files


def files_of(folder: Path, *suffixes: str) -> list[Path]:
    """Returns a folder's files with one of the suffixes, in small letters or capitals."""
    return sorted(file for file in folder.iterdir() if file.name.lower().endswith(suffixes))


def client_of(files: list[Path], suffixes: tuple[str, ...]) -> dict[Path, str]:
    """Returns the client that each file is, by its name without the suffix.

    Raises:
        InputError: two files of one name.
    """
    known = sorted(suffixes, key=len, reverse=True)
    names = {}
    for file in files:
        suffix = next((one for one in known if file.name.lower().endswith(one)), file.suffix)
        name = file.name[: len(file.name) - len(suffix)]
        if name in names.values():
            raise InputError(
                f"Two files of the name {name!r} in {str(file.parent)!r}: each file is a client, so rename "
                "or join them, or name the column that says whose a row is (--data.client)."
            )
        names[file] = name
    return names


def checked(file: Path, read: Callable[[Path], Read]) -> Read:
    """Returns ``read(file)``, whose failures become messages with the file's name."""
    try:
        return read(file)
    except UnicodeDecodeError as error:
        raise InputError(not_text(file, error)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"Cannot read {file}: {getattr(error, 'strerror', None) or error}."
        ) from None


def not_text(file: Path, error: UnicodeDecodeError) -> str:
    """Returns what to say of a file that is not UTF-8."""
    begin = error.object[:4]
    kinds = {b"PK": "a zip archive", b"\x89PNG": "an image", b"\xff\xd8": "an image"}
    for mark, kind in kinds.items():
        if begin.startswith(mark):
            return f"{file} is {kind}, expected text in UTF-8."
    line = error.object[: error.start].count(b"\n") + 1
    where = f"line {line}, byte {error.start}"
    return f"{file} is not UTF-8 ({where}; Latin-1, perhaps?): save it as UTF-8."


def json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Yields place and object of each line of a JSONL file, plain or ``.gz``; empty lines are no lines."""
    opened = (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix.lower() == ".gz"
        else path.open(encoding="utf-8")
    )
    with opened as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"Line {number} of {path}"
                yield where, _object(line, where)


def _object(line: str, where: str) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number of too many digits, too
        raise InputError(f"{where} is not JSON ({error}).") from None
    if not isinstance(row, dict):
        raise InputError(
            f'{where} is not a JSON object: expected one like {{"text": ..., "label": ...}}.'
        )
    return row


def parquet(path: Path):
    """Returns a Parquet file as an Arrow table."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file ({str(error).splitlines()[0]}).") from None
