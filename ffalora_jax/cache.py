"""Files kept between runs: verified downloads, accountant results, compiled programs; and files of others."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def folder(*parts: str) -> Path:
    """Returns (and makes) a folder of the cache; ``FFALORA_CACHE`` moves the whole cache."""
    import platformdirs

    root = os.environ.get("FFALORA_CACHE") or platformdirs.user_cache_dir("ffalora_jax")
    path = Path(root, *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def shared_folder(*parts: str) -> Path | None:
    """Returns a folder of files that are shared beside a checkout, never inside it, or None.

    ``FFALORA_SHARED`` names the place; else it is ``../shared``, seen from where one is or from the checkout.
    """
    given = os.environ.get("FFALORA_SHARED")
    beside = [Path("..", "shared"), Path(__file__).resolve().parents[2] / "shared"]
    places = [Path(given)] if given else beside
    return next(
        (place.joinpath(*parts) for place in places if place.joinpath(*parts).is_dir()), None
    )


def from_json(data: bytes | str) -> Any:
    """Returns what a JSON document holds.

    Raises:
        ValueError: it is none: not JSON, not text, or nested without end.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(kind: str, name: str) -> Any | None:
    """Returns a stored value, or None if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        return from_json((folder(kind) / f"{name}.json").read_bytes())
    return None


def write_json(kind: str, name: str, value: Any) -> None:
    """Stores a value; a cache that cannot be written is no error."""
    with contextlib.suppress(OSError):
        write_atomically(folder(kind) / f"{name}.json", json.dumps(value))


def write_atomically(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Writes a file so that a reader sees the old one or the whole new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode if mode is not None else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
