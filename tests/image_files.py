"""Folders and archives of small images, and how the tests read them."""

import zipfile

import pytest

from ffalora_jax.config import DataConfig
from ffalora_jax.data import ImageSource
from ffalora_jax.data import images as image_files
from ffalora_jax.errors import InputError
from ffalora_jax.images import ImageSettings
from tests.tfds_files import encoded, pixels_of

SMALL = ImageSettings(size=(16, 16))
PLAIN = ["cat/a.png", "cat/b.JPG", "dog/c.webp", "dog/d.bmp", "ant/e.gif", "ant/f.jpeg"]
PARTED = ["train/cat/a.png", "train/dog/b.png", "train/dog/c.png", "test/dog/d.png"]


def picture(name):
    """Returns a file of the kind that its name says, different for each class and name."""
    name = "/".join(name.replace("\\", "/").split("/")[-2:])
    suffix = name.rpartition(".")[2].lower()
    form = {"jpg": "JPEG"}.get(suffix, suffix.upper())
    return encoded(pixels_of(sum(name.encode())), form)


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(name))
    return folder


def pack(path, names, **more):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, picture(name))
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def read(path, **settings):
    return image_files.build(DataConfig(name="images", path=str(path), **settings), 0)


def refused(path):
    with pytest.raises(InputError) as raised:
        read(path)
    return str(raised.value)


def from_arrays(*arrays):
    return [ImageSource(f"array {i}", lambda a=a: a) for i, a in enumerate(arrays)]
