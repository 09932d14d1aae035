"""Folders of images, ``class/name.jpg``: a folder, or a zip archive of one, which is never unpacked to disk.

With parts, ``train/class/name.jpg`` and ``test/class/name.jpg`` (or ``val``, ``validation``), the second is
held out. A folder in which all the rest lies, as archives often have one, makes no difference.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, ImageSource, _zip
from ffalora_jax.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
TRAIN, HELD_OUT = "train", ("test", "val", "validation")
_DEEPEST = 5  # one level more than all/train/class/name, to say so where something lies there
_LAYOUT = "expected DIR/class/name.jpg, or DIR/train/class/name.jpg and DIR/test/class/name.jpg"

Place = tuple[str, ...]


class Tree(NamedTuple):
    """What lies below the given place: folders, empty ones too, and how to read each image."""

    folders: set[Place]
    images: dict[Place, Callable[[], bytes]]


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads names now and images when they are loaded, from ``config.path``.

    Classes are the folders' names in order of the alphabet; other files and hidden ones are passed over.

    Raises:
        InputError: not of this layout, a class without an image or only in the held-out part, one class;
            an archive that is encrypted, points outside, or unpacks to too much.
    """
    if config.path is None:
        raise InputError(
            f"Expected --data.path for data.name {config.name!r}: a folder or zip archive; {_LAYOUT}."
        )
    path = Path(config.path)
    if not path.exists():
        raise InputError(f"No file or folder {str(path)!r}: check --data.path.")
    tree = _below_one_root(_in_folder(path) if path.is_dir() else _in_archive(path))
    parts = _parts(tree, path)
    classes = {part: _classes(tree, (part,) if part else (), path) for part in parts}
    names = _class_names(classes, path)
    sources, labels, held_out = [], [], []
    for part, found in classes.items():
        for label, name in enumerate(names):
            for place in found.get(name, ()):
                sources.append(ImageSource("/".join(place), tree.images[place]))
                labels.append(label)
                held_out.append(part in HELD_OUT)
    return Dataset(
        {"image": sources},
        np.array(labels, np.int64),
        names,
        source=f"images in {path}",
        held_out=np.array(held_out) if len(parts) > 1 else None,
    )


def _in_folder(path: Path) -> Tree:
    """Looks a few levels down; links are followed, since the folder is one's own."""
    tree = Tree(set(), {})

    def walk(folder: Path, above: Place) -> None:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            place = (*above, entry.name)
            if entry.is_dir():
                if not _is_hidden(place) and len(place) < _DEEPEST:
                    tree.folders.add(place)
                    walk(Path(entry.path), place)
            elif _is_image(place):
                tree.images[place] = Path(entry.path).read_bytes

    try:
        walk(path, ())
    except OSError as error:
        raise InputError(f"Cannot read {error.filename}: {error.strerror}.") from None
    return tree


def _in_archive(path: Path) -> Tree:
    archive = _zip.Archive(path)
    tree = Tree(set(), {})
    for place, member in archive.members:
        if member.is_dir() and not _is_hidden(place):
            tree.folders.add(place)
        elif not member.is_dir() and _is_image(place):
            tree.images[place] = functools.partial(archive.read, member)
            tree.folders.update(place[:depth] for depth in range(1, len(place)))
    return tree


def _is_hidden(place: Place) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in place)


def _is_image(place: Place) -> bool:
    return Path(place[-1]).suffix.lower() in SUFFIXES and not _is_hidden(place)


def _below_one_root(tree: Tree) -> Tree:
    """Takes away a first folder in which everything lies, unless it is a class or a part."""
    places = [*tree.folders, *tree.images]
    first = {place[0] for place in places}
    is_class = any(len(place) < 3 for place in tree.images)
    if len(first) != 1 or is_class or first & {TRAIN, *HELD_OUT}:
        return tree
    return Tree(
        {place[1:] for place in tree.folders if len(place) > 1},
        {place[1:]: load for place, load in tree.images.items()},
    )


def _parts(tree: Tree, path: Path) -> tuple[str, ...]:
    """Returns the parts, train first; one of no name where the classes lie at the top."""
    top = {place[0] for place in tree.folders}
    within = {place[:2] for place in tree.folders if place[0] == TRAIN and len(place) > 1}
    is_class = not within and any(place[0] == TRAIN for place in tree.images)
    if is_class or not top & {TRAIN, *HELD_OUT}:  # a class may be called train
        return ("",)
    held_out = sorted(top & set(HELD_OUT))
    if TRAIN not in top:
        if top - set(held_out):  # classes, one of them called test
            return ("",)
        raise InputError(f"No folder {TRAIN!r} beside {held_out[0]!r} in {path}: {_LAYOUT}.")
    odd = sorted(top - {TRAIN, *held_out}) or held_out[1:]
    if odd:
        raise InputError(
            f"Folder {odd[0]!r} lies beside {TRAIN!r} in {path}: expected one of {', '.join(HELD_OUT)} and "
            "nothing else there. Move it away, or its images into the others."
        )
    return (TRAIN, *held_out)


def _classes(tree: Tree, above: Place, path: Path) -> dict[str, list[Place]]:
    """Returns the images of each class folder of one part."""
    depth = len(above)
    classes = {place[depth]: [] for place in tree.folders if place[:depth] == above != place}
    for place in sorted(tree.images):
        if depth == 0 or place[:depth] == above:
            if len(place) != depth + 2:
                where = "in no class folder" if len(place) < depth + 2 else "in a folder of a class"
                raise InputError(f"Image {'/'.join(place)!r} in {path} lies {where}: {_LAYOUT}.")
            classes[place[depth]].append(place)
    if not classes:
        raise InputError(f"No class folders in {'/'.join((str(path), *above))}: {_LAYOUT}.")
    return classes


def _class_names(classes: dict[str, dict[str, list[Place]]], path: Path) -> tuple[str, ...]:
    """Returns the training part's classes, each of which must have images."""
    (train, of_train), *others = classes.items()
    for part, found in classes.items():
        bare = [
            f"{part}/{name}".lstrip("/") for name, images in sorted(found.items()) if not images
        ]
        if bare:
            raise InputError(
                f"Class folder {bare[0]!r} in {path} has no image ({', '.join(SUFFIXES)}): add some, or "
                "remove the folder."
            )
    for part, found in others:
        new = sorted(set(found) - set(of_train))
        if new:
            raise InputError(
                f"Class {new[0]!r} of part {part!r} in {path} is not in {train!r}, so it cannot be learnt: "
                f"there are {', '.join(sorted(of_train))}."
            )
    if len(of_train) < 2:
        raise InputError(
            f"Only one class, {next(iter(of_train))!r}, in {path}: expected at least two, or there is "
            "nothing to learn."
        )
    return tuple(sorted(of_train))
