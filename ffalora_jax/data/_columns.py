"""Columns as people have them in Python -> what a ``Dataset`` holds; every refusal names row and column."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ffalora_jax.errors import InputError

FLAGS = "Name yours with --data.text, --data.label, --data.text-pair, --data.client"
ROLES = ("system", "user", "assistant", "tool")
RESPONSE = ("response",)
"""The one class of examples whose response is learnt."""


def table(data: Any) -> Mapping[str, Any]:
    """Returns the columns of a mapping, an Arrow table, a Hugging Face data set or a pandas frame."""
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


def roles(columns: Mapping, names: Mapping[str, str | None], source: str) -> dict[str, str]:
    """Returns which columns are the inputs: ``{role: column}``, decided by the columns there are.

    Texts with their label come first, then images, chat messages, prompts and responses; where none is
    whole, texts, so that the message names what is missing of them.
    """
    found = {role: name for role, name in names.items() if name is not None and name in columns}
    is_text = "text" in found and ("label" in found or names["label"] is None)
    if is_text and "image" in found:
        raise InputError(
            f"Both {found['text']!r} and {found['image']!r} are columns of the data ({source}): expected "
            "texts or images, not both. Leave one out."
        )
    if not is_text and "image" in found:
        return {"image": found["image"]}
    if not is_text and "messages" in found:
        return {"messages": found["messages"]}
    if not is_text and "prompt" in found and "response" in found:
        return {"prompt": found["prompt"], "response": found["response"]}
    wanted = {"text": names["text"], "text_pair": names["text_pair"]}
    return {role: name for role, name in wanted.items() if name is not None}


def pick(
    columns: Mapping, wanted: Sequence[str], source: str, lazy: str | None = None
) -> dict[str, Any]:
    """Returns the wanted columns as lists (a lazy one as it is); refuses missing, empty, unequal ones."""
    for name in wanted:
        if name not in columns:
            raise InputError(
                f"No column {name!r} in the data ({source}): there are {', '.join(map(repr, columns))}. "
                f"{FLAGS}."
            )
    picked = {name: columns[name] if name == lazy else list(columns[name]) for name in wanted}
    sizes = {len(column) for column in picked.values()}
    if sizes == {0}:
        raise InputError(f"No examples in the data ({source}): expected at least one row.")
    if len(sizes) != 1:
        raise InputError(f"Columns of unequal length in the data ({source}): {sorted(sizes)}.")
    return picked


def texts(column: list, name: str, source: str) -> list[str]:
    """Returns the texts; numbers and gaps are refused, never turned into words."""
    for row, value in enumerate(column):
        encodable(value, f"Row {row + 1} of column {name!r} ({source})")
        if not isinstance(value, str):
            raise InputError(
                f"Row {row + 1} of column {name!r} is {value!r}, expected text ({source}): remove the "
                "row or fill it in."
            )
    return column


def encodable(value: Any, where: str) -> Any:
    """Returns a value as it is, if it can be written as UTF-8.

    Raises:
        InputError: a text with half a character, as JSON has it where an emoji was cut.
    """
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise InputError(
            f"{where} holds half a character, {half!r} at place {error.start + 1}: a text was cut in the "
            "middle of it. Remove it."
        ) from None
    return value


def codes(column: Sequence, name: str, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers the distinct values: whole numbers in their order, words in the alphabet's."""
    words = [_word(value, row, name, source) for row, value in enumerate(column)]
    distinct = set(words)
    try:
        names = sorted(distinct, key=lambda word: (int(word), word))  # "1" before "01", always
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
    return encodable(str(value).strip(), f"Row {row + 1} of column {name!r} ({source})")


def images(column: Any, name: str, source: str) -> list[tuple[str, Callable[[], Any]]]:
    """Returns name and loader of each image: arrays, bytes, paths or Pillow images, none read yet.

    A column that decodes when it is asked (Hugging Face's) is asked once an image, when that is loaded.
    """
    if hasattr(column, "iloc") or isinstance(column, np.ndarray | tuple):  # pandas has its own keys
        column = list(column)
    if isinstance(column, list):
        for row, value in enumerate(column):
            if not _is_image(value):
                raise InputError(
                    f"Row {row + 1} of column {name!r} is a {type(value).__name__}, expected an image "
                    f"({source}): a path, bytes of a file, a NumPy array (height, width[, 3]) or a "
                    "Pillow image."
                )
    return [
        (_name(column, row), functools.partial(_load, column, row)) for row in range(len(column))
    ]


def _is_image(value: Any) -> bool:
    if isinstance(value, Mapping):  # Hugging Face, not decoded
        return bool(value.get("bytes") or value.get("path"))
    return isinstance(value, np.ndarray | bytes | str | os.PathLike) or hasattr(value, "getexif")


def _name(column: Sequence, row: int) -> str:
    value = column[row] if isinstance(column, list) else None
    return str(value) if isinstance(value, str | os.PathLike) else f"image {row + 1}"


def _load(column: Sequence, row: int) -> Any:
    value = column[row]
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return Path(value).read_bytes() if isinstance(value, str | os.PathLike) else value


def turns(row: Mapping[str, Any], picked: Mapping[str, str], where: str) -> tuple[Any, str]:
    """Returns prompt and response of one example, from two texts or from chat messages.

    A chat gives all its messages but the last as the prompt (a list of role and content), for the
    checkpoint's own chat template, and the assistant's last content as the response.
    """
    if "messages" in picked:
        return _chat(row[picked["messages"]], f"{where}, {picked['messages']!r},")
    for name in (picked["prompt"], picked["response"]):
        if not isinstance(encodable(row[name], f"{where}, {name!r},"), str):
            raise InputError(f"{where}, {name!r}, is {row[name]!r}, expected text.")
    if not row[picked["response"]].strip():
        raise InputError(f"{where}, {picked['response']!r}, is empty: there is nothing to learn.")
    return row[picked["prompt"]], row[picked["response"]]


def _chat(messages: Any, where: str) -> tuple[list[dict[str, str]], str]:
    if not isinstance(messages, list | tuple | np.ndarray) or len(messages) < 2:
        raise InputError(
            f"{where} is {messages!r:.80}, expected a list of at least two messages like "
            '{"role": "user", "content": "..."}.'
        )
    kept = [_message(one, f"{where} message {number}") for number, one in enumerate(messages, 1)]
    if kept[-1]["role"] != "assistant":
        raise InputError(
            f"{where} ends with a message of {kept[-1]['role']!r}, expected 'assistant': its last words "
            "are what is learnt. Cut what comes after them."
        )
    if not kept[-1]["content"].strip():
        raise InputError(f"{where} ends with an empty message: there is nothing to learn.")
    return kept[:-1], kept[-1]["content"]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise InputError(f"{where} is {message!r:.80}, expected an object with role and content.")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise InputError(f"{where} has role {role!r}, expected one of {', '.join(ROLES)}.")
    if not isinstance(encodable(content, where), str):
        raise InputError(f"{where} has content {content!r:.80}, expected text.")
    return {"role": role, "content": content}
