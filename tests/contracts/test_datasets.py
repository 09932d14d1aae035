"""Every data set on the shelf returns a Dataset that holds together."""

import json

import numpy as np
import pytest

from ffalora_jax import registry
from ffalora_jax.config import DataConfig
from ffalora_jax.data import METRICS, Dataset
from tests import tfds_files

ROWS = [("good film", "up"), ("bad film", "down"), ("a fine day", "up")]
INPUTS = {"text": ["text"], "images": ["image"], "instructions": ["prompt", "response"]}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_csv(folder):
    path = folder / "d.csv"
    path.write_text("text,label\n" + "".join(f"{a},{b}\n" for a, b in ROWS))
    return str(path)


def write_jsonl(folder):
    return write_lines(folder / "d.jsonl", [{"text": a, "label": b} for a, b in ROWS])


def write_parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "d.parquet"
    pq.write_table(pa.table({"text": [a for a, _ in ROWS], "label": [b for _, b in ROWS]}), path)
    return str(path)


def write_instructions(folder):
    return write_lines(folder / "d.jsonl", [{"prompt": a, "response": b} for a, b in ROWS])


def write_gsm8k(folder):
    for part in ("train", "test"):
        write_lines(
            folder / f"{part}.jsonl", [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}]
        )
    return str(folder)


def write_images(folder):
    for index, name in enumerate(["cat", "dog"]):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(tfds_files.encoded(tfds_files.pixels_of(index)))
    return str(folder)


def write_ag_news_subset(folder):
    parts = {"train": [(0, "A", "one"), (3, "B", "two")], "test": [(1, "C", "three")]}
    classes = ["World", "Sports", "Business", "Sci/Tech"]
    fields = ["title", "description"]
    tfds_files.text_folder(folder, "ag_news_subset", "1.0.0", fields, classes, parts)
    return str(folder)


def write_imdb_reviews(folder):
    parts = {"train": [(0, "dull"), (1, "fine")], "test": [(1, "good")]}
    name = "imdb_reviews/plain_text"
    tfds_files.text_folder(folder, name, "1.0.0", ["text"], ["neg", "pos"], parts)
    return str(folder)


def write_pictures(folder, name):
    version, held_out, size = {
        "cifar10": ("3.0.2", "test", 10),
        "cifar100": ("3.0.2", "test", 100),
        "food101": ("2.0.0", "validation", 101),
    }[name]
    pixels = tfds_files.pixels_of(0)
    parts = {"train": [(0, pixels), (size - 1, pixels)], held_out: [(1, pixels)]}
    classes = [f"class {index}" for index in range(size)]
    tfds_files.image_folder(folder, name, version, classes, parts)
    return str(folder)


def write_glue(folder, name):
    from ffalora_jax.data import glue

    task = glue.TASKS[glue.task_of(name)]
    words = ["some words", "other words"][: len(task.fields)]
    rows = [(label, *words) for label in range(len(task.class_names))]
    parts = {"train": rows, glue.folder(name).held_out: rows}
    tfds_files.glue_folder(folder, glue.task_of(name), parts)
    return str(folder)


def write(name, folder):
    """Makes a small file of the member's kind; returns its path, or None where none is needed."""
    if name.startswith("glue/"):
        return write_glue(folder, name)
    if name in {"cifar10", "cifar100", "food101"}:
        return write_pictures(folder, name)
    makers = {maker.__name__.removeprefix("write_"): maker for maker in MAKERS}
    return makers[name](folder) if name in makers else None


MAKERS = (
    write_ag_news_subset,
    write_csv,
    write_gsm8k,
    write_images,
    write_imdb_reviews,
    write_instructions,
    write_jsonl,
    write_parquet,
)


@pytest.mark.parametrize("name", registry.available("datasets"))
def test_a_dataset_holds_together(name, tmp_path):
    if name == "vader":
        pytest.skip("the real archive needs the package index: run by the slow suite and the demo")
    dataset = registry.lookup("datasets", name)(
        DataConfig(name=name, path=write(name, tmp_path)), 0
    )
    assert isinstance(dataset, Dataset)
    for column in INPUTS[dataset.kind]:
        assert len(dataset) == len(dataset.inputs[column]) > 0
    assert dataset.labels.min() == 0
    assert dataset.labels.max() == dataset.num_classes - 1
    for column in set(dataset.inputs) & {"text", "text_pair", "prompt", "response"}:
        assert all(isinstance(text, str) for text in dataset.inputs[column])
    for image in dataset.inputs.get("image", ()):
        assert isinstance(image.load(), bytes | np.ndarray)
    if dataset.clients is not None:
        assert set(np.unique(dataset.clients)) <= set(range(len(dataset.client_names)))
    if dataset.held_out is not None:
        assert dataset.held_out.dtype == bool
        assert 0 < dataset.held_out.sum() < len(dataset)
    assert dataset.metric in METRICS
    assert dataset.source
    half = dataset.take(np.arange(1))
    assert len(half) == 1
    assert half.class_names == dataset.class_names
