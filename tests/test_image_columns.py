"""Images given in Python: the same in every form, refused with the place, loaded once."""

import numpy as np
import pytest
from PIL import Image

from ffalora_jax.data import ImageSource, as_dataset
from ffalora_jax.errors import InputError
from ffalora_jax.images import ImageSettings, load_images
from tests.image_files import SMALL, fill, from_arrays
from tests.tfds_files import encoded, pixels_of


def columns_of(kind, folder):
    arrays = [pixels_of(i, 8, 8) for i in range(4)]
    files = [fill(folder, [f"{i}.png"]) / f"{i}.png" for i in range(4)]
    for file, array in zip(files, arrays, strict=True):
        file.write_bytes(encoded(array))
    return {
        "arrays": arrays,
        "one array": np.stack(arrays),
        "pillow": [Image.fromarray(a) for a in arrays],
        "bytes": [encoded(a) for a in arrays],
        "paths": files,
        "words": [str(file) for file in files],
        "not decoded": [{"bytes": encoded(a), "path": None} for a in arrays],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["arrays", "one array", "pillow", "bytes", "paths", "words", "not decoded"]
)
def test_images_given_in_python_are_the_same_in_every_form(kind, tmp_path):
    columns = {"image": columns_of(kind, tmp_path), "label": ["b", "a", "b", "a"]}
    dataset = as_dataset(columns)
    assert dataset.kind == "images"
    assert dataset.labels.tolist() == [1, 0, 1, 0]
    pixels = load_images(dataset.take(np.array([2, 1])).inputs["image"], ImageSettings((8, 8)))
    np.testing.assert_array_equal(pixels, [pixels_of(2, 8, 8), pixels_of(1, 8, 8)])


def test_hugging_face_and_pandas_images_are_read_when_they_are_asked_for(tmp_path):
    import datasets
    import pandas

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    columns = {"image": columns_of("bytes", tmp_path), "label": [0, 1, 0, 1]}
    hugging = datasets.Dataset.from_dict(columns, features=features)
    frame = pandas.DataFrame(columns, index=[7, 5, 3, 1])
    for given in (hugging, frame):
        dataset = as_dataset(given)
        pixels = load_images(dataset.inputs["image"], ImageSettings((8, 8)))
        np.testing.assert_array_equal(pixels, [pixels_of(i, 8, 8) for i in range(4)])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": [pixels_of(0), 3], "label": [0, 1]}, ["Row 2", "'image'", "int"]),
        ({"image": [None, b""], "label": [0, 1]}, ["Row 1", "NoneType"]),
        ({"image": [pixels_of(0)]}, ["'label'"]),
        ({"image": [b"", b""], "text": ["", ""], "label": [0, 1]}, ["'text' and 'image'"]),
        ({"image": [b"", b""], "label": [1, 1]}, ["one class"]),
        ({"image": [], "label": []}, ["No examples"]),
    ],
)
def test_image_columns_that_cannot_be_used_are_refused_with_the_place(columns, words):
    with pytest.raises(InputError) as raised:
        as_dataset(columns)
    assert all(word in str(raised.value) for word in words)


def test_images_to_be_predicted_need_no_label():
    dataset = as_dataset({"image": [pixels_of(0), pixels_of(1)]}, label=None)
    assert len(dataset) == 2
    assert dataset.class_names == ()


def test_an_image_is_loaded_once():
    calls = []
    sources = [ImageSource(str(i), lambda i=i: calls.append(i) or pixels_of(i)) for i in range(20)]
    loaded = load_images(sources, SMALL)
    assert sorted(calls) == list(range(20))
    np.testing.assert_array_equal(loaded[7], load_images(from_arrays(pixels_of(7)), SMALL)[0])
