"""GLUE's own files: ``train.tsv`` and ``dev.tsv`` as they are handed out, or the same rows as JSONL.

Read for ``ffalora prepare``. Every row is checked against the task: a field, a label, a line at a time.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ffalora_jax.data import _files
from ffalora_jax.data.glue import TASKS, Task
from ffalora_jax.errors import InputError

FOLDERS = {
    "cola": "CoLA",
    "mnli": "MNLI",
    "mrpc": "MRPC",
    "qnli": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "sst2": "SST-2",
}
"""Names of the tasks' folders in GLUE's archive."""
_COLUMNS = {  # where a column of the TSV is not called like the field
    "mnli": {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
    "mrpc": {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
    "qqp": {"label": "is_duplicate"},
}
_COLA = ("source", "label", "mark", "sentence")  # the one task without a header
_PARTS = {"train": ("train",), "validation": ("validation", "dev")}
_MNLI_PARTS = {
    "train": ("train",),
    "validation_matched": ("validation_matched", "dev_matched"),
    "validation_mismatched": ("validation_mismatched", "dev_mismatched"),
}
_OPTIONAL = "validation_mismatched"
_SUFFIXES = (".tsv", ".jsonl", ".jsonl.gz")


class Rows(NamedTuple):
    """The rows of one part, and how many were passed over."""

    rows: list[dict[str, Any]]
    broken: int
    """QQP alone: its train.tsv has rows cut in two, which GLUE's readers pass over as well."""


def find(folder: Path, task: str) -> dict[str, Path]:
    """Returns ``{part: file}`` of a task, from its folder or the one above it.

    Raises:
        InputError: no such folder, a part without a file, or with several.
    """
    if not folder.is_dir():
        raise InputError(
            f"No folder {str(folder)!r}: expected --from to name one with GLUE's files."
        )
    if (folder / FOLDERS[task]).is_dir():
        folder = folder / FOLDERS[task]
    found = {}
    for part, stems in (_MNLI_PARTS if task == "mnli" else _PARTS).items():
        files = _files_of(folder, stems)
        if len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise InputError(
                f"Several files for part {part!r} of {task} in {str(folder)!r}: {names}. Expected one: move "
                "the others away."
            )
        if files:
            found[part] = files[0]
        elif part != _OPTIONAL:
            wanted = ", ".join(f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
            raise InputError(
                f"No file for part {part!r} of {task} in {str(folder)!r}: expected one of {wanted}."
            )
    return found


def _files_of(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    """Returns the files of one part: its name exactly, or (a part of it) with an ending like ``_3k``."""
    files = [f for suffix in _SUFFIXES for stem in stems for f in folder.glob(f"{stem}*{suffix}")]
    exact = [file for file in files if file.name.partition(".")[0] in stems]
    return exact or sorted(files)


def read(path: Path, task: str) -> Rows:
    """Returns all rows of a file as TFDS wants them: idx, the task's fields, label as a number.

    Raises:
        InputError: a field is missing or a label outside the classes; says the line.
    """
    return _files.checked(path, lambda path: _read(path, task))


def _read(path: Path, name: str) -> Rows:
    task, rows, broken = TASKS[name], [], 0
    is_table = path.suffix == ".tsv"
    for where, row in _table(path, name) if is_table else _files.json_lines(path):
        missing = [field for field in (*task.fields, "label") if row.get(field) is None]
        if missing and is_table and name == "qqp":
            broken += 1
            continue
        if missing:
            raise InputError(
                f"{where} has no {missing[0]!r}: expected {', '.join((*task.fields, 'label'))} ({name})."
            )
        rows.append(_checked(row, task, where, len(rows) + broken))
    if not rows:
        raise InputError(f"{path} holds no examples: expected at least one row.")
    return Rows(rows, broken)


def _table(path: Path, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a TSV by the fields' names; quotes mean nothing there, and a cut row has gaps."""
    renamed = {column: field for field, column in _COLUMNS.get(name, {}).items()}
    with path.open(encoding="utf-8-sig") as file:
        header = _COLA if name == "cola" else tuple(next(file, "").rstrip("\n").split("\t"))
        names = [renamed.get(column, column) for column in header]
        lacking = [field for field in (*TASKS[name].fields, "label") if names.count(field) != 1]
        if lacking:
            column = _COLUMNS.get(name, {}).get(lacking[0], lacking[0])
            raise InputError(
                f"{path} has no column {column!r}: its first line is {', '.join(map(repr, header))}; "
                f"expected GLUE's own {name} file."
            )
        for number, line in enumerate(file, 1 if name == "cola" else 2):
            if line.strip():
                values = line.rstrip("\n").split("\t")
                yield f"Line {number} of {path}", dict(zip(names, values, strict=False))


def _checked(row: Mapping[str, Any], task: Task, where: str, number: int) -> dict[str, Any]:
    for field in task.fields:
        if not isinstance(row[field], str):
            raise InputError(f"{where} has {field} {row[field]!r:.80}, expected text.")
    index = row.get("idx", number)
    if not (isinstance(index, int) and 0 <= index < 2**31):
        raise InputError(f"{where} has idx {index!r:.80}, expected a whole number, not negative.")
    label = _label(row["label"], task.class_names, where)
    return {"idx": index, **{field: row[field] for field in task.fields}, "label": label}


def _label(value: Any, class_names: tuple[str, ...], where: str) -> int:
    word = str(value).strip()
    if word in class_names:
        return class_names.index(word)
    if word.isascii() and word.isdigit() and int(word) < len(class_names):
        return int(word)
    hint = (
        " (-1 marks rows without a label, as GLUE's test files have them)" if word == "-1" else ""
    )
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(class_names))
    raise InputError(f"{where} has label {value!r:.80}{hint}, expected one of {numbered}.")
