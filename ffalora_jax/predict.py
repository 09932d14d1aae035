"""New texts and labelled data through a finished run: what ``predict`` and ``evaluate`` do."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset
from ffalora_jax.data._files import not_text
from ffalora_jax.data.csv import read as read_csv
from ffalora_jax.errors import InputError
from ffalora_jax.load import load_dataset
from ffalora_jax.loaded_run import Run
from ffalora_jax.metrics import class_metrics
from ffalora_jax.respond import exact_match

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")


def read_texts(
    path: str | Path, text: str, text_pair: str | None
) -> tuple[list[str], list[str] | None]:
    """Reads texts (and second texts): columns of a CSV file, or the lines of any other.

    Raises:
        InputError: no such file, not UTF-8, no such column, nothing in it.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".csv":
            columns = read_csv(path)
            if not columns:
                raise InputError(f"{path} is empty: expected a header and at least one row.")
            for flag, name in (("--text", text), ("--text-pair", text_pair)):
                if name is not None and name not in columns:
                    there = ", ".join(map(repr, columns))
                    raise InputError(
                        f"No column {name!r} in {path}: there are {there}. Use {flag} COLUMN."
                    )
            texts, pairs = columns[text], columns[text_pair] if text_pair else None
        else:
            # Empty lines between are texts too: line k of what comes out belongs to line k.
            lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
            texts, pairs = lines if lines != [""] else [], None
    except OSError as error:
        raise InputError(f"Cannot read {str(path)!r}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(not_text(path, error)) from None
    if not texts:
        raise InputError(f"{path} holds no texts: expected at least one.")
    return texts, pairs


def read_images(path: str | Path) -> list[Path]:
    """Returns the image files of a folder, in order, or the one file that was given.

    Raises:
        InputError: no such file or folder, no image in it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"No file or folder {str(path)!r}: check --input.")
    if path.is_file():
        return [path]
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise InputError(f"No image in {path}: expected files that end in {', '.join(SUFFIXES)}.")
    return found


def evaluate_run(run: Run, data: DataConfig | Dataset, client: str | None = None) -> dict[str, Any]:
    """Returns a run's accuracy on labelled data, in all and per class; for answers, how many are right.

    Raises:
        InputError: the data cannot be read, or has classes that the run does not know.
    """
    if isinstance(data, DataConfig):
        data = dataclasses.replace(data, client=None)
        dataset = load_dataset(dataclasses.replace(run.experiment, data=data))
    else:
        dataset = data
    if dataset.kind != run.kind:
        raise InputError(f"The run's model reads {run.kind}, the data set holds {dataset.kind}.")
    if dataset.kind == "instructions":
        return _answers(run, dataset, client)
    truth = np.array([dataset.class_names[label] for label in dataset.labels])
    known = run.class_names
    strange = sorted(set(truth) - set(known))
    if strange:
        raise InputError(
            f"Classes {_some(strange)} are not among the run's: {_some(known)}. Give the column with the "
            "run's classes (--data.label), spelt as they were."
        )
    if dataset.kind == "images":
        found = run.predict(dataset.inputs["image"], None, client)
    else:
        found = run.predict(dataset.inputs["text"], dataset.inputs.get("text_pair"), client)
    said = np.array([one.label for one in found])
    right, order = said == truth, {name: index for index, name in enumerate(known)}
    numbers = [np.array([order[name] for name in names]) for names in (said, truth)]
    return {
        "accuracy": float(right.mean()),
        **class_metrics(dataset.metric, *numbers),
        "num_examples": len(right),
        "per_class": {
            name: {
                "accuracy": float(right[truth == name].mean()),
                "num_examples": int((truth == name).sum()),
            }
            for name in known
            if (truth == name).any()
        },
    }


def same_source(one: DataConfig, other: DataConfig) -> bool:
    """Whether two settings name the same data set, or the same files, wherever one stands."""
    paths = [None if data.path is None else Path(data.path).absolute() for data in (one, other)]
    return one.name == other.name and paths[0] == paths[1]


def _some(names) -> str:
    """Returns the first few names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(str(name)) for name in names[:5]) + more


def _answers(run: Run, dataset: Dataset, client: str | None) -> dict[str, Any]:
    """Final numbers where the data set is judged by them, whole responses otherwise."""
    said = run.generate(dataset.inputs["prompt"], client)
    if dataset.metric == "exact_match":
        return exact_match(said, dataset.inputs["response"]) | {"num_examples": len(said)}
    same = [a.strip() == b.strip() for a, b in zip(said, dataset.inputs["response"], strict=True)]
    return {"same_response": float(np.mean(same)), "num_examples": len(said)}
