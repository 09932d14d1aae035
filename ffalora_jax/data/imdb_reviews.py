"""IMDB reviews (Maas et al. 2011): 50,000 film reviews, good or bad, from a TFDS folder.

The 50,000 reviews without a label that TFDS keeps beside them are never read.
"""

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _tfds

FOLDER = _tfds.Folder(
    "imdb_reviews/plain_text",
    "1.0.0",
    "test",
    "IMDB reviews (Maas et al. 2011)",
    "As a file with the columns text and label it is read by --data.name csv, jsonl or parquet.",
)


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``, a TFDS ``data_dir``; the test part is held out.

    Raises:
        InputError: the data set is not prepared there; names the ways to it.
    """
    return _tfds.load_texts(config, FOLDER, {"text": ("text",)}, "accuracy")
