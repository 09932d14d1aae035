"""Food-101 (Bossard et al., ECCV 2014): 101,000 photographs of 101 dishes, from a TFDS folder."""

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _tfds

FOLDER = _tfds.Folder(
    "food101",
    "2.0.0",
    "validation",
    "Food-101 (Bossard et al. 2014)",
    "As image files, DIR/train/class/name.jpg and DIR/test/class/name.jpg, it is read by --data.name images "
    "--data.path DIR.",
)


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``, a TFDS ``data_dir``; the validation part is held out.

    Raises:
        InputError: the data set is not prepared there; names the ways to it.
    """
    return _tfds.load_images(config, FOLDER)
