"""Apache Parquet files."""

from pathlib import Path

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _files


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``."""
    return _files.load(config, read, ".parquet")


def read(path: Path) -> dict[str, list]:
    """Reads one file into columns."""
    return _files.parquet(path).to_pydict()
