"""Shelves by file name: the one place that turns a name from a config into a member.

A member is a module of a shelf's folder (its file name is its name), an entry point of an installed
package in the group ``ffalora_jax.<shelf>``, or ``module:function``. Each gives one ``build`` function.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

from ffalora_jax.errors import InputError, nearest

SHELVES = {
    "methods": "methods",
    "mechanisms": "mechanisms",
    "inits": "lora_init",
    "models": "models",
    "datasets": "data",
    "searches": "search",
    "trackers": "trackers",
}

SHELF_OF = {
    "method.name": "methods",
    "privacy.mechanism": "mechanisms",
    "method.init": "inits",
    "model.name": "models",
    "data.name": "datasets",
    "search.strategy": "searches",
}
"""Settings whose value is the name of a member; a model may also be a folder or lie on the hub."""


def available(shelf: str) -> list[str]:
    """Returns the names on a shelf, those of installed packages included.

    A member with variants stands there as ``member/variant``, once for each of its ``VARIANTS``.
    """
    names = {name for member in members(shelf) for name in _variants(shelf, member)}
    return sorted({*names, *_entry_points(shelf)})


def members(shelf: str) -> list[str]:
    """Returns the file names of a shelf's own members."""
    folder = Path(__file__).parent / SHELVES[shelf]
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def _variants(shelf: str, member: str) -> list[str]:
    text = (Path(__file__).parent / SHELVES[shelf] / f"{member}.py").read_text()
    if "\nVARIANTS" not in text:  # do not import what has none
        return [member]
    module = importlib.import_module(f"ffalora_jax.{SHELVES[shelf]}.{member}")
    return [f"{member}/{variant}" for variant in module.VARIANTS]


def lookup(shelf: str, name: str) -> Callable:
    """Returns a member's ``build`` function.

    A member may say in ``REFUSED`` why a variant that one might expect isn't there.

    Raises:
        InputError: no such member; lists those there are.
    """
    if ":" in name:
        return _from_path(shelf, name)
    member, _, variant = name.partition("/")
    if member in members(shelf):
        module = importlib.import_module(f"ffalora_jax.{SHELVES[shelf]}.{member}")
        if name in _variants(shelf, member):
            return module.build
        reason = getattr(module, "REFUSED", {}).get(variant)
        if reason is not None:
            names = ", ".join(_variants(shelf, member))
            raise InputError(f"Cannot use {name!r}: {reason}. Choose from {names}.")
    outside = _entry_points(shelf)
    if name in outside:
        return outside[name].load()
    names = available(shelf)
    raise InputError(
        f"No {name!r} among the {shelf}: choose from {', '.join(names)}, or give module:function."
        f"{nearest(name, names)}"
    )


def _entry_points(shelf: str) -> dict[str, importlib.metadata.EntryPoint]:
    found = importlib.metadata.entry_points(group=f"ffalora_jax.{shelf}")
    return {point.name: point for point in found}


def _from_path(shelf: str, name: str) -> Callable:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"Cannot load {name!r} for the {shelf} ({error}): expected module:function that Python "
            "can import."
        ) from None
