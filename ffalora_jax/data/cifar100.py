"""CIFAR-100 (Krizhevsky 2009): 60,000 images of 32 x 32 pixels in a hundred classes, from a TFDS folder."""

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _tfds

FOLDER = _tfds.Folder(
    "cifar100",
    "3.0.2",
    "test",
    "CIFAR-100 (Krizhevsky 2009)",
    "As image files, DIR/train/class/name.png and DIR/test/class/name.png, it is read by --data.name images "
    "--data.path DIR.",
)


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``, a TFDS ``data_dir``; the test part is held out.

    Raises:
        InputError: the data set is not prepared there; names the ways to it.
    """
    return _tfds.load_images(config, FOLDER)
