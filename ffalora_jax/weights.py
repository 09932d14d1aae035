"""Weight files to leaves: safetensors only, one file or several with an index, one tensor at a time.

A family's rules say where each tensor goes. Whatever does not fit (matched twice or never, missing,
misshapen, a part that is not there) is in one error, so that a user mends a checkpoint once.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ffalora_jax import fetch
from ffalora_jax.cache import from_json
from ffalora_jax.errors import InputError
from ffalora_jax.models import Model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAPPED_BYTES = 2**28
"""A file is opened anew after so many bytes: pages that were read stay in memory while it is mapped."""

LeafPath = tuple[str | int, ...]


def files_of(directory: Path) -> list[Path]:
    """Returns the weight files of a checkpoint folder.

    Raises:
        InputError: there are none (names pickled ones, which are not read), or the index names files that
            are missing or lie elsewhere.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not (directory / INDEX).is_file():
        pickled = {".bin", ".pt", ".pth", ".h5", ".msgpack"}
        others = sorted(p.name for p in directory.glob("*") if p.suffix in pickled)
        if not others:
            raise InputError(f"No {WEIGHTS} in {directory}: save the model as safetensors.")
        raise InputError(
            f"No {WEIGHTS} in {directory}; there is {', '.join(others)}, which could run code: not read. "
            f"Convert it to safetensors where PyTorch is installed: {conversion(directory)}"
        )
    names = shard_names(directory / INDEX)
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise InputError(
            f"{directory / INDEX} names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            "not beside it. Fetch the checkpoint again."
        )
    return [directory / name for name in names]


def shard_names(index: Path) -> list[str]:
    """Returns the file names in an index of weights, sorted.

    Raises:
        InputError: it is not an index, or names anything but safetensors files that lie beside it.
    """
    try:
        content = from_json(index.read_bytes())["weight_map"].values()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is not an index of weights ({error!r}).") from None
    names = sorted({str(name) for name in content})
    strange = [name for name in names if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name)]
    if strange or not names:
        raise InputError(
            f"{index} names {', '.join(strange) or 'no files'}: expected safetensors files that lie beside "
            "it. Fetch the checkpoint again."
        )
    return names


def weights_hash(files: list[Path]) -> str:
    """Returns one hash of all weight files."""
    hashes = [fetch.sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_weights(
    files: list[Path], family: Model, wanted: dict[LeafPath, Any], dtype: str
) -> tuple[dict[LeafPath, Array], list[str]]:
    """Returns the leaves that rules map to a place of the model, and what does not fit.

    No second copy of the whole: a tensor is read, put in its form and type, and let go.

    Raises:
        InputError: a file that is not safetensors.
    """
    parts = {path[0] for path in wanted}
    found: dict[LeafPath, Array] = {}
    problems: list[str] = []
    for file in files:
        for name, tensor in _tensors(file):
            matches = list(_places(name, family))
            if len(matches) != 1:
                problems.append(f"{name} matches {len(matches)} rules, expected 1")
                continue
            path, transform = matches[0]
            if path in found:
                problems.append(f"{name} is a second {dotted(path)}")
            elif path in wanted:
                try:
                    found[path] = _as_float(transform(tensor()), dtype)
                except (TypeError, ValueError, IndexError) as error:
                    problems.append(f"{name} has another form ({str(error).splitlines()[0]})")
            elif path[0] in parts:  # a whole part that is not needed (a pooler) is passed over
                problems.append(f"{name} has no place in the model")
    return found, problems


def _as_float(value: Any, dtype: str) -> Array:
    """Casts a weight; whole numbers are those of a quantised checkpoint, whose scales are not read.

    A float16 file that overflowed when it was written holds infinities, and no later figure would say so.
    """
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"expected floating point, got {value.dtype}")
    if not np.isfinite(np.asarray(value)).all():
        raise ValueError("numbers that are not finite")
    return value.astype(dtype)


def check_complete(found: dict, wanted: dict, extra: list[str], where: Path) -> None:
    """Raises one InputError that names every tensor that is missing, misshapen or of no use."""
    problems = extra + [f"{dotted(path)} is missing" for path in wanted if path not in found]
    problems += [
        f"{dotted(path)} has shape {tuple(leaf.shape)}, expected {tuple(wanted[path].shape)}"
        for path, leaf in found.items()
        if tuple(leaf.shape) != tuple(wanted[path].shape)
    ]
    if problems:
        raise InputError(f"{where} does not fit its config.json: {'; '.join(problems)}.")


def dotted(path: LeafPath) -> str:
    """Returns a path as people write it."""
    return ".".join(map(str, path))


def flatten(tree: Any, path: LeafPath = ()) -> dict[LeafPath, Any]:
    """Returns nested dicts as {path: leaf}."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        key: leaf
        for part, value in tree.items()
        for key, leaf in flatten(value, (*path, part)).items()
    }


def unflatten(leaves: dict[LeafPath, Any]) -> dict:
    """Returns {path: leaf} as nested dicts."""
    tree: dict = {}
    for path, leaf in leaves.items():
        here = tree
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = jnp.asarray(leaf)
    return tree


def conversion(directory: Path, hub_name: str | None = None) -> str:
    """Returns the command that writes pickled weights anew, head included.

    Args:
        directory: where config.json lies, which names the class; the new weights go there too.
        hub_name: where transformers finds them instead; all of it then goes to a folder of that name.
    """
    name, target = "AutoModel", str(directory) if hub_name is None else hub_name
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        given = json.loads((directory / "config.json").read_text())["architectures"][0]
        name = given if str(given).isidentifier() else name
    classes = [name]
    if hub_name is not None and (directory / "tokenizer_config.json").is_file():
        classes.append("AutoTokenizer")
    steps = [
        f"transformers.{c}.from_pretrained('{target}').save_pretrained('{target}')" for c in classes
    ]
    return f'python -c "import transformers; {"; ".join(steps)}"'


def _tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Yields (name, function that reads it)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="flax") as opened:
            names = list(opened.keys())
        while names:
            size = 0
            with safe_open(str(file), framework="flax") as opened:
                while names and size < _MAPPED_BYTES:
                    name = names.pop(0)
                    size += _nbytes(opened.get_slice(name))
                    yield name, lambda name=name, opened=opened: opened.get_tensor(name)
    except SafetensorError as error:
        raise InputError(f"{file} is not a safetensors file ({error}).") from None


def _nbytes(part: Any) -> int:
    count = 4
    for size in part.get_shape():
        count *= size
    return count


def _places(name: str, family: Model) -> Iterator[tuple[LeafPath, Any]]:
    for rule in family.rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            place = match.expand(rule.path)
            yield tuple(int(p) if p.isdigit() else p for p in place.split(".")), rule.transform
