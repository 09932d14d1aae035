"""AG News (Zhang, Zhao, LeCun 2015, arXiv:1509.01626): 127,600 items in four classes, from a TFDS folder.

The text is the title and then the description, as in the paper.
"""

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _tfds

FOLDER = _tfds.Folder(
    "ag_news_subset",
    "1.0.0",
    "test",
    "AG News (Zhang et al. 2015)",
    "As a file with the columns text and label it is read by --data.name csv, jsonl or parquet.",
)


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``, a TFDS ``data_dir``; the test part is held out.

    Raises:
        InputError: the data set is not prepared there; names the ways to it.
    """
    return _tfds.load_texts(config, FOLDER, {"text": ("title", "description")}, "accuracy")
