"""Shelf of data sets. To add one, add a file whose ``build(config, seed)`` returns a ``Dataset``.

Raw examples in, raw examples out: texts stay texts and images stay files (``encode`` turns both into
arrays), labels become 0 ... C-1 with their names kept. A member with variants (``glue/sst2``) lists them in
``VARIANTS``; it finds the one that was asked for in ``config.name``. ``as_dataset`` takes what people have
in Python.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax.errors import InputError

KINDS = {"text": "text", "image": "images", "prompt": "instructions"}
"""First column of ``inputs`` -> what kind of examples they are."""
METRICS = ("accuracy", "f1", "matthews", "exact_match")


class ImageSource(NamedTuple):
    """One image, not yet decoded: a large set never lies decoded in memory at its full size."""

    name: str
    """For messages: the file's name."""
    load: Callable[[], "bytes | np.ndarray"]
    """Returns the encoded file, or pixels (height, width[, 3]) uint8."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples of one task; a dataclass, since its length is the number of examples."""

    inputs: dict[str, Sequence]
    """One entry an example: ``text`` and perhaps ``text_pair``; or ``image`` (``ImageSource``s); or
    ``prompt`` and ``response``."""
    labels: np.ndarray
    """(example,) int64 in 0 ... num_classes - 1; zeros where responses are learnt."""
    class_names: tuple[str, ...]
    clients: np.ndarray | None = None
    """(example,) index of the owner: the natural partition; None if there is none."""
    client_names: tuple[str, ...] = ()
    source: str = ""
    """Where it came from, with its licence: for the report."""
    held_out: np.ndarray | None = None
    """(example,) bool, True for the official evaluation examples: these are the test part then."""
    metric: str = "accuracy"
    """What the task is judged by besides accuracy: one of ``METRICS``."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def kind(self) -> str:
        """``text``, ``images`` or ``instructions``."""
        return next(kind for column, kind in KINDS.items() if column in self.inputs)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Dataset":
        """Returns some of the examples; classes and clients keep their numbers."""
        return dataclasses.replace(
            self,
            inputs={name: [column[i] for i in rows] for name, column in self.inputs.items()},
            labels=self.labels[rows],
            clients=None if self.clients is None else self.clients[rows],
            held_out=None if self.held_out is None else self.held_out[rows],
        )


def as_dataset(
    data: Any,
    *,
    text: str = "text",
    label: str | None = "label",
    text_pair: str | None = None,
    client: str | None = None,
    source: str = "given in Python",
) -> Dataset:
    """Builds a ``Dataset`` from what one has: a mapping of columns, a pandas frame, a Hugging Face dataset.

    Args:
        data: anything with named columns: a dict of lists or NumPy arrays, ``pandas.DataFrame``,
            ``datasets.Dataset``, or a ``Dataset`` (returned as it is).
        text: column with the text.
        label: column with the class, as number or word; None for texts to be predicted.
        text_pair: column with a second text, if any.
        client: column that says whose example it is, if any.
        source: a line for the report.

    Raises:
        InputError: a column is missing (shows those there are), empty, of unequal length, one class only.
    """
    if isinstance(data, Dataset):
        return data
    columns = _columns(data)
    wanted = [name for name in (text, text_pair, label, client) if name is not None]
    for name in wanted:
        if name not in columns:
            raise InputError(
                f"No column {name!r} in the data ({source}): there are {', '.join(map(repr, columns))}. "
                "Name yours with --data.text, --data.label, --data.text-pair, --data.client."
            )
    picked = {name: list(columns[name]) for name in wanted}
    sizes = {len(column) for column in picked.values()}
    if sizes == {0}:
        raise InputError(f"No examples in the data ({source}): expected at least one row.")
    if len(sizes) != 1:
        raise InputError(f"Columns of unequal length in the data ({source}): {sorted(sizes)}.")
    inputs: dict[str, Sequence] = {"text": _texts(picked[text], text, source)}
    if text_pair is not None:
        inputs["text_pair"] = _texts(picked[text_pair], text_pair, source)
    labels, class_names = np.zeros(len(inputs["text"]), np.int64), ()
    if label is not None:
        labels, class_names = _codes(picked[label], label, source)
        if len(class_names) == 1:
            raise InputError(
                f"Only one class, {class_names[0]!r}, in column {label!r} ({source}): expected at least "
                "two, or there is nothing to learn."
            )
    owners, names = (None, ()) if client is None else _codes(picked[client], client, source)
    return Dataset(inputs, labels, class_names, owners, names, source)


def _columns(data: Any) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        return data
    if hasattr(data, "to_pydict"):  # pyarrow tables
        return data.to_pydict()
    if hasattr(data, "column_names"):  # Hugging Face datasets
        return {name: data[name] for name in data.column_names}
    if hasattr(data, "columns"):  # pandas
        return {str(name): data[name] for name in data.columns}
    raise InputError(
        f"Cannot read a {type(data).__name__} as data: give a dict of columns, a pandas frame or a "
        "Hugging Face dataset."
    )


def _texts(column: Sequence, name: str, source: str) -> list[str]:
    for row, value in enumerate(column):
        if not isinstance(value, str):
            raise InputError(
                f"Row {row + 1} of column {name!r} is {value!r}, expected text ({source}): remove the "
                "row or fill it in."
            )
    return column if isinstance(column, list) else list(column)


def _codes(column: Sequence, name: str, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers the distinct values: whole numbers in their order, words in the alphabet's."""
    words = [_word(value, row, name, source) for row, value in enumerate(column)]
    distinct = set(words)
    try:
        names = sorted(distinct, key=int)
    except ValueError:
        names = sorted(distinct)
    number = {word: index for index, word in enumerate(names)}
    return np.array([number[word] for word in words], np.int64), tuple(names)


def _word(value: Any, row: int, name: str, source: str) -> str:
    is_nan = isinstance(value, float | np.floating) and not np.isfinite(value)
    if value is None or is_nan or (isinstance(value, str) and not value.strip()):
        raise InputError(
            f"Row {row + 1} of column {name!r} is empty ({source}): remove the row or fill it in."
        )
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    return str(value).strip()
