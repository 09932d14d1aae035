"""The command ``ffalora prepare``: files one has -> a TFDS folder, without TensorFlow and without a network.

What comes out is read by plain ``tfds.data_source`` too. It is written beside its place and moved there
whole, so a folder that is there is complete; it remembers the hashes of the files that it was made of.
"""

import importlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ffalora_jax import fetch, glue_files
from ffalora_jax.cli_privacy import parser_of
from ffalora_jax.data import _tfds, glue
from ffalora_jax.errors import InputError, nearest

MADE_FROM = "prepared_from.json"
"""Beside TFDS's own files: ``{part: {file, sha256}}``."""


class Prepared(NamedTuple):
    """What ``prepare`` found or made."""

    place: Path
    counts: dict[str, int]
    """Examples of each part; empty if it was there already."""
    broken: int
    """Rows passed over, since they were cut in two (QQP's train.tsv has some)."""
    was_there: bool


def run(arguments: list[str]) -> int:
    """Runs the command: prints what was written, or that it is there already."""
    parser = parser_of(
        "prepare", "Write a TFDS folder from files of your own; nothing is downloaded."
    )
    parser.add_argument("name", help=f"one of {', '.join(_names())}")
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="DIR",
        help="GLUE's own train.tsv and dev.tsv, or train.jsonl[.gz] and validation.jsonl[.gz]",
    )
    parser.add_argument(
        "--to", metavar="DATA_DIR", help="TFDS data_dir (default: TFDS_DATA_DIR, else TFDS's own)"
    )
    asked = parser.parse_args(arguments)
    made = prepare(asked.name, asked.source, asked.to)
    if made.was_there:
        print(f"{made.place} is there already, made from the same files: nothing to do")
        return 0
    for part, count in made.counts.items():
        print(f"{part:21} {count}")
    if made.broken:
        print(f"passed over           {made.broken} rows that are cut in two, as GLUE's readers do")
    print(made.place)
    return 0


def prepare(name: str, source: str | Path, to: str | Path | None = None) -> Prepared:
    """Writes the TFDS folder of a data set from local files; does nothing if the same is there.

    Args:
        name: ``glue/sst2`` and so on.
        source: folder with the task's files, or GLUE's folder with the tasks' folders in it.
        to: TFDS ``data_dir``; by default where reading looks.

    Raises:
        InputError: no such task; a part or field is missing, a label is none of the classes; the folder is
            there, but was made from other files.
    """
    if name not in _names():
        raise InputError(
            f"Cannot prepare {name!r}: there are {', '.join(_names())}.{nearest(name, _names())} Others can "
            "be read as they are: csv, jsonl, parquet, images, instructions."
        )
    folder, task = glue.folder(name), glue.task_of(name)
    files = glue_files.find(Path(source), task)
    made_from = {
        part: {"file": file.name, "sha256": fetch.sha256(file)} for part, file in files.items()
    }
    where = _tfds.data_dir(None if to is None else str(to))
    if (where / folder.name / folder.version).exists():
        return _there(where, folder, made_from)
    found = {part: glue_files.read(file, task) for part, file in files.items()}
    place = _write_whole(
        where, folder, task, {part: one.rows for part, one in found.items()}, made_from
    )
    counts = {part: len(one.rows) for part, one in found.items()}
    return Prepared(place, counts, sum(one.broken for one in found.values()), False)


def _names() -> list[str]:
    return [f"glue/{task}" for task in glue.TASKS]


def _there(where: Path, folder: _tfds.Folder, made_from: Mapping) -> Prepared:
    """Returns what is there if it was made from these files; refuses to touch anything else."""
    place = _tfds.find(where, folder)
    try:
        before = json.loads((place / MADE_FROM).read_text())
    except (OSError, ValueError):
        before = None
    if before != made_from:
        origin = "not by this command" if before is None else "from other files"
        raise InputError(
            f"{str(place)!r} is there already, made {origin}, and is left as it is: remove it, or give "
            "another folder with --to."
        )
    return Prepared(place, {}, 0, True)


def _write_whole(
    where: Path,
    folder: _tfds.Folder,
    task: str,
    parts: Mapping[str, Sequence[dict]],
    made_from: Mapping,
) -> Path:
    """Writes beside the place, on the same disk, and moves the whole folder there."""
    place = where / folder.name / folder.version
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=where, prefix=".ffalora-prepare-") as beside:
            new = Path(beside, folder.version)
            new.mkdir()
            _write(new, folder, task, parts)
            (new / MADE_FROM).write_text(json.dumps(made_from, indent=1))
            os.rename(new, place)
    except OSError as error:
        raise InputError(
            f"Cannot write {place}: {error.strerror or error}. Expected a folder that can be written; give "
            "another one with --to."
        ) from None
    return place


def _write(new: Path, folder: _tfds.Folder, task: str, parts: Mapping[str, Sequence[dict]]) -> None:
    """Writes records, one file a part, in the order given, and TFDS's description of them."""
    import numpy as np
    import tensorflow_datasets as tfds

    about = glue.TASKS[task]
    features = tfds.features.FeaturesDict(
        {
            "idx": np.int32,
            "label": tfds.features.ClassLabel(names=list(about.class_names)),
            **{field: tfds.features.Text() for field in about.fields},
        }
    )
    splits = [_write_part(new, folder, part, features, rows) for part, rows in parts.items()]
    tfds.folder_dataset.write_metadata(
        data_dir=new,
        features=features,
        split_infos=splits,
        version=folder.version,
        check_data=False,  # that needs TensorFlow
        description=f"{folder.source}; written by ffalora prepare.",
    )


def _write_part(
    new: Path, folder: _tfds.Folder, part: str, features: Any, rows: Sequence[dict]
) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    try:
        record_files: Any = importlib.import_module("array_record.python.array_record_module")
    except ImportError:
        raise InputError(
            "Writing TFDS folders needs the package array_record, which exists for Linux only: read the "
            "files as csv or jsonl here."
        ) from None

    name = folder.name.partition("/")[0]
    sharded: Any = naming.ShardedFileTemplate
    template = sharded(dataset_name=name, split=part, filetype_suffix="array_record", data_dir=new)
    writer = record_files.ArrayRecordWriter(
        str(new / f"{name}-{part}.array_record-00000-of-00001"), "group_size:1"
    )
    size = 0
    try:
        for row in rows:
            record = features.serialize_example(features.encode_example(row))
            writer.write(record)
            size += len(record)
    finally:
        writer.close()
    return tfds.core.SplitInfo(
        name=part, shard_lengths=[len(rows)], num_bytes=size, filename_template=template
    )
