"""Apache Parquet files."""

from pathlib import Path

from ffalora_jax.config import DataConfig
from ffalora_jax.data import Dataset, _files
from ffalora_jax.errors import InputError


def build(config: DataConfig, seed: int) -> Dataset:
    """Reads ``config.path``."""
    return _files.load(config, ".parquet", read)


def read(path: Path) -> dict[str, list]:
    """Reads one file into columns."""
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pydict()
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet file ({str(error).splitlines()[0]}).") from None
