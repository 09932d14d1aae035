"""TFDS folders (``DATA_DIR/name/version``, array_record files), read without TensorFlow.

The folder is found and checked here, since TFDS's own words for one that is missing or of another format
mislead. Records are read as raw bytes, in batches, and taken apart by protobuf: six times as fast as
decoding them one by one, the same content. Images stay in their files until they are asked for.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, ImageSource, _columns
from ffalora_jax.errors import InputError

AT_ONCE = 4096
"""Records read by one call."""
IMAGES_AT_ONCE = 64
"""The same for images, which stay in memory for a while: a call takes a millisecond, however few."""


class Folder(NamedTuple):
    """One data set as TFDS keeps it."""

    name: str
    """As TFDS says it: ``glue/sst2``, ``imdb_reviews/plain_text``, ``cifar10``."""
    version: str
    held_out: str
    """The official evaluation part with public labels."""
    source: str
    """For the report, with paper and licence."""
    otherwise: str
    """How to get the data set here without TFDS's own download: a clause."""


def data_dir(path: str | None) -> Path:
    """Returns where data sets lie: as given, else ``TFDS_DATA_DIR``, else TFDS's default."""
    given = path or os.environ.get("TFDS_DATA_DIR")
    return Path(given).expanduser() if given else Path.home() / "tensorflow_datasets"


def load_texts(
    config: DataConfig, folder: Folder, fields: Mapping[str, tuple[str, ...]], metric: str
) -> Dataset:
    """Reads texts: ``fields`` says of which fields, put together by a space, an input is made."""
    inputs: dict[str, list] = {name: [] for name in fields}

    def take(example: Mapping) -> None:
        for name, parts in fields.items():
            words = [example[part].bytes_list.value[0].decode("utf-8") for part in parts]
            inputs[name].append(" ".join(words))

    wanted = [part for parts in fields.values() for part in parts]
    return _load(config, folder, wanted, lambda source: take, inputs, metric)


def load_images(config: DataConfig, folder: Folder) -> Dataset:
    """Reads labels; each image is fetched, still encoded, when it is loaded."""
    images: list[ImageSource] = []

    def reader(source: Any) -> Callable[[Mapping], None]:
        start, encoded = len(images), _Encoded(source)

        def take(example: Mapping) -> None:
            row = len(images) - start
            name = f"{folder.name} {source.split} {row}"
            images.append(ImageSource(name, functools.partial(encoded.read, row)))

        return take

    return _load(config, folder, ["image"], reader, {"image": images}, "accuracy")


class _Encoded:
    """The images of one part, still encoded; those next to the one that was read stay for a while."""

    def __init__(self, source: Any):
        self.source, self._parse = source, _parser()
        self._lock = (
            threading.Lock()
        )  # several threads decode; the file reader promises them nothing
        self._kept: dict[int, list[bytes]] = {}

    def read(self, row: int) -> bytes:
        block, place = divmod(row, IMAGES_AT_ONCE)
        with self._lock:
            if block not in self._kept:
                if len(self._kept) == 2:  # two, since threads are not all in the same one
                    del self._kept[next(iter(self._kept))]
                start = block * IMAGES_AT_ONCE
                rows = list(range(start, min(start + IMAGES_AT_ONCE, len(self.source))))
                self._kept[block] = self.source.__getitems__(rows)
            record = self._kept[block][place]
        return self._parse(record)["image"].bytes_list.value[0]


def _load(
    config: DataConfig,
    folder: Folder,
    wanted: list[str],
    reader: Callable[[Any], Callable[[Mapping], None]],
    inputs: dict,
    metric: str,
) -> Dataset:
    """Goes once through both parts; ``reader(source)`` gives what takes the inputs out of an example."""
    place = find(data_dir(config.path), folder)
    builder = _builder(place, folder, wanted, config.client)
    labels, owners, held_out = [], [], []
    for split in ("train", folder.held_out):
        source = _source(builder, split, place)
        take = reader(source)
        try:
            for example in _examples(source):
                take(example)
                labels.append(example["label"].int64_list.value[0])
                if config.client is not None:
                    feature = builder.info.features[config.client]
                    owners.append(_owner(example[config.client], feature))
        except Exception as error:  # errors of C++, protobuf or decoding: a damaged file
            raise InputError(f"Cannot read {place} ({_line(error)}). {again(place)}") from None
        held_out += [split != "train"] * len(source)
    names = tuple(builder.info.features["label"].names)
    if not labels or min(labels) < 0 or max(labels) >= len(names):
        raise InputError(
            f"{place} has {len(labels)} labelled examples and labels outside its {len(names)} classes: "
            "it is not the published data set. Remove the folder and prepare it again."
        )
    clients, client_names = None, ()
    if config.client is not None:
        clients, client_names = _columns.codes(owners, config.client, str(place))
    return Dataset(
        inputs,
        np.array(labels, np.int64),
        names,
        clients,
        client_names,
        source=f"{folder.source}; TFDS {folder.name} {folder.version}",
        held_out=np.array(held_out),
        metric=metric,
    )


def find(where: Path, folder: Folder) -> Path:
    """Returns the whole folder of the expected version.

    Raises:
        InputError: it isn't there (names the ways to get it), is of another version, or isn't whole.
    """
    above = where / folder.name
    place = above / folder.version
    if not place.is_dir():
        versions = sorted(path.name for path in above.glob("[0-9]*.[0-9]*.[0-9]*") if path.is_dir())
        found = f"only version {', '.join(versions)}" if versions else "nothing"
        raise InputError(
            f"{folder.name} {folder.version} is not prepared: {found} in {str(above)!r}, expected "
            f"{str(place)!r}. {_ways(where, folder)}"
        )
    for file in ("dataset_info.json", "features.json"):
        if not (place / file).is_file():
            raise InputError(f"{str(place)!r} has no {file}: it is not whole. {again(place)}")
    return place


def again(place: Path) -> str:
    """Returns what to do about a broken folder."""
    return f"Remove it (rm -r {place}) and prepare it again."


def _ways(where: Path, folder: Folder) -> str:
    call = f"tfds.builder({folder.name!r}, data_dir={str(where)!r}, file_format='array_record')"
    return (
        f"{folder.otherwise.format(data_dir=where)} Or let TFDS download it, where there is a network: "
        f'python -c "import tensorflow_datasets as tfds; {call}.download_and_prepare()". '
        "Or copy the folder from elsewhere; --data.path or TFDS_DATA_DIR says where data sets lie."
    )


def _builder(place: Path, folder: Folder, wanted: list[str], client: str | None) -> Any:
    """Returns TFDS's view of the folder, its format and fields checked."""
    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(place)
        features, form = builder.info.features, builder.info.file_format.value
    except Exception as error:  # whatever TFDS makes of a damaged description
        raise InputError(f"Cannot read {place} ({_line(error)}). {again(place)}") from None
    if form != "array_record":
        raise InputError(
            f"{place} is stored as {form}, which only TensorFlow reads: expected array_record. Where "
            f"TensorFlow is, run tfds convert_format --dataset_version_dir={place} "
            f"--out_file_format=array_record --out_dir=NEW/{folder.name}/{folder.version}, and give NEW."
        )
    for name in [*wanted, "label", *([client] if client else [])]:
        if name not in features:
            raise InputError(
                f"No field {name!r} in {place}: there are {', '.join(map(repr, features))}. "
                "Owners are named with --data.client; else the folder is not the published data set."
            )
    return builder


def _source(builder: Any, split: str, place: Path) -> Any:
    """Returns random access to the raw records of one part, all its files there."""
    from tensorflow_datasets.core.decode import DeserializeMethod

    if split not in builder.info.splits:
        raise InputError(
            f"No part {split!r} in {place}: there are {', '.join(builder.info.splits)}. Prepare it from "
            "files that have it."
        )
    for file in builder.info.splits[split].filenames:
        if not (place / file).is_file():
            raise InputError(f"{place} lacks {file}: it is not whole. {again(place)}")
    try:
        return builder.as_data_source(split, deserialize_method=DeserializeMethod.RAW_BYTES)
    except ImportError:
        raise InputError(
            "Reading TFDS folders needs the package array_record, which exists for Linux only: give "
            "the data as csv, jsonl, parquet or images here."
        ) from None
    except Exception as error:
        raise InputError(f"Cannot read {place} ({_line(error)}). {again(place)}") from None


def _examples(source: Any) -> Iterator[Mapping]:
    """Yields the fields of each record, in file order."""
    parse = _parser()
    for start in range(0, len(source), AT_ONCE):
        rows = list(range(start, min(start + AT_ONCE, len(source))))
        yield from map(parse, source.__getitems__(rows))


def _parser() -> Callable[[bytes], Mapping]:
    from tensorflow_datasets.proto import tf_example_pb2

    messages: Any = tf_example_pb2
    return lambda record: messages.Example.FromString(record).features.feature


def _owner(value: Any, feature: Any) -> str:
    if value.bytes_list.value:
        return value.bytes_list.value[0].decode("utf-8", "replace")
    number = value.int64_list.value[0]
    names = getattr(feature, "names", None)
    return names[number] if names else str(number)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
