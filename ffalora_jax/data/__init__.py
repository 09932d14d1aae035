"""Shelf of data sets. To add one, add a file whose ``build(config, seed)`` returns a ``Dataset``.

Raw examples in, raw examples out: texts stay texts and images stay files (``encode`` turns both into
arrays), labels become 0 ... C-1 with their names kept. A member with variants (``glue/sst2``) lists them in
``VARIANTS``; it finds the one that was asked for in ``config.name``. ``as_dataset`` takes what people have
in Python.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax.data import _columns
from ffalora_jax.errors import InputError

KINDS = {"text": "text", "image": "images", "prompt": "instructions"}
"""First column of ``inputs`` -> what kind of examples they are."""
METRICS = ("accuracy", "f1", "matthews", "exact_match")


class ImageSource(NamedTuple):
    """One image, not yet decoded: a large set never lies decoded in memory at its full size."""

    name: str
    """For messages: the file's name."""
    load: Callable[[], Any]
    """Returns the bytes of an encoded file, pixels (height, width[, 3]) uint8, or a Pillow image."""


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples of one task; a dataclass, since its length is the number of examples."""

    inputs: dict[str, Sequence]
    """One entry an example in ``text`` and perhaps ``text_pair``; or ``image`` (an ``ImageSource`` each); or
    ``prompt`` (a text, or a list of chat messages) and ``response``."""
    labels: np.ndarray
    """(example,) int64 in 0 ... num_classes - 1; zeros where responses are learnt."""
    class_names: tuple[str, ...]
    clients: np.ndarray | None = None
    """(example,) index of the owner, which is the natural partition; None if there is none."""
    client_names: tuple[str, ...] = ()
    source: str = ""
    """Where it came from, with its licence, for the report."""
    held_out: np.ndarray | None = None
    """(example,) bool, True for the official evaluation examples, which are the test part then."""
    metric: str = "accuracy"
    """What the task is judged by besides accuracy, one of ``METRICS``."""

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
    image: str = "image",
    prompt: str = "prompt",
    response: str = "response",
    messages: str = "messages",
    source: str = "given in Python",
) -> Dataset:
    """Builds a ``Dataset`` from what one has: a mapping of columns, a pandas frame, a Hugging Face dataset.

    The columns decide what kind it is: texts with labels, else images with labels, else chat messages,
    else prompts with responses.

    Args:
        data: anything with named columns: a dict of lists or NumPy arrays, ``pandas.DataFrame``,
            ``datasets.Dataset``, or a ``Dataset`` (returned as it is).
        text: column with the text.
        label: column with the class, as number or word; None for examples to be predicted.
        text_pair: column with a second text, if any.
        client: column that says whose example it is, if any.
        image: column with images: NumPy arrays, Pillow images, bytes of files, or paths.
        prompt: column with what the model is given.
        response: column with what it is to say.
        messages: column with chats, lists of ``{"role": ..., "content": ...}``, the assistant's last.
        source: a line for the report.

    Raises:
        InputError: a column is missing (shows those there are), empty, of unequal length, one class only.
    """
    if isinstance(data, Dataset):
        return data
    columns = _columns.table(data)
    names = {"text": text, "text_pair": text_pair, "label": label, "image": image}
    names |= {"prompt": prompt, "response": response, "messages": messages}
    roles = _columns.roles(columns, names, source)
    has_classes = label is not None and ("text" in roles or "image" in roles)
    wanted = [*roles.values(), *([label] if has_classes else [])]
    twice = next((name for name in wanted if wanted.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"Column {twice!r} is named for two things at once ({source}). {_columns.FLAGS}, each another."
        )
    wanted += [client] if client else []
    picked = _columns.pick(columns, wanted, source, lazy=roles.get("image"))
    inputs = _inputs(picked, roles, source)
    size = len(next(iter(inputs.values())))
    labels, class_names = np.zeros(size, np.int64), ()
    if label is not None and has_classes:
        labels, class_names = _columns.codes(picked[label], label, source)
        if len(class_names) == 1:
            raise InputError(
                f"Only one class, {class_names[0]!r}, in column {label!r} ({source}): expected at least "
                "two, or there is nothing to learn."
            )
    if "response" in inputs:
        class_names = _columns.RESPONSE
    owners, owner_names = (None, ())
    if client is not None:
        owners, owner_names = _columns.codes(picked[client], client, source)
    return Dataset(inputs, labels, class_names, owners, owner_names, source)


def _inputs(picked: dict[str, Any], roles: dict[str, str], source: str) -> dict[str, Sequence]:
    if "image" in roles:
        found = picked[roles["image"]]
        if (
            isinstance(found, list) and found and isinstance(found[0], ImageSource)
        ):  # of another set
            return {"image": found}
        found = _columns.images(found, roles["image"], source)
        return {"image": [ImageSource(name, load) for name, load in found]}
    if "text" in roles:
        return {role: _columns.texts(picked[name], name, source) for role, name in roles.items()}
    size = len(picked[next(iter(roles.values()))])
    rows = [{name: picked[name][index] for name in roles.values()} for index in range(size)]
    pairs = [
        _columns.turns(row, roles, f"Row {number} ({source})") for number, row in enumerate(rows, 1)
    ]
    return {"prompt": [prompt for prompt, _ in pairs], "response": [said for _, said in pairs]}
