"""Every data set on the shelf returns a Dataset that holds together."""

import numpy as np
import pytest

from ffalora_jax import registry
from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset

ROWS = [("good film", "up"), ("bad film", "down"), ("a fine day", "up")]


def write(name, folder):
    """Makes a small file of the member's kind; returns its path, or None where none is needed."""
    if name == "csv":
        path = folder / "d.csv"
        path.write_text("text,label\n" + "".join(f"{a},{b}\n" for a, b in ROWS))
        return str(path)
    if name == "jsonl":
        import json

        path = folder / "d.jsonl"
        path.write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in ROWS))
        return str(path)
    if name == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / "d.parquet"
        pq.write_table(
            pa.table({"text": [a for a, _ in ROWS], "label": [b for _, b in ROWS]}), path
        )
        return str(path)
    return None


@pytest.mark.parametrize("name", registry.available("datasets"))
def test_a_dataset_holds_together(name, tmp_path):
    if name == "vader":
        pytest.skip("the real archive needs the package index: run by the slow suite and the demo")
    dataset = registry.lookup("datasets", name)(
        DataConfig(name=name, path=write(name, tmp_path)), 0
    )
    assert isinstance(dataset, Dataset)
    assert len(dataset) == len(dataset.inputs["text"]) > 0
    assert dataset.labels.min() == 0
    assert dataset.labels.max() == dataset.num_classes - 1
    assert all(isinstance(text, str) for text in dataset.inputs["text"])
    if dataset.clients is not None:
        assert set(np.unique(dataset.clients)) <= set(range(len(dataset.client_names)))
    assert dataset.source
    half = dataset.take(np.arange(1))
    assert len(half) == 1
    assert half.class_names == dataset.class_names
