"""``ffalora sweep``: many runs, and what came of them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ffalora_jax.errors import DONE


def run(arguments: list[str], use_jax: Callable[[], None]) -> int:
    """Reads the flags, searches, prints the table."""
    from ffalora_jax import flags

    as_json = "--json" in arguments
    rest = [word for word in arguments if word != "--json"]
    experiment, search, out = flags.read_sweep(rest)
    use_jax()
    return searched(experiment, search, out, as_json)


def resume(path: str, use_jax: Callable[[], None]) -> int:
    """Goes on with a search that stopped."""
    from ffalora_jax.config_search import load_search

    experiment, search = load_search(Path(path) / "sweep.toml")
    kept = json.loads((Path(path) / "secret.json").read_text())
    search = dataclasses.replace(search, storage=kept.get("storage"))
    use_jax()
    return searched(experiment, search, path, False)


def searched(experiment: Any, search: Any, out: str | None, as_json: bool) -> int:
    """Searches and prints."""
    from ffalora_jax import console, console_sweep, sweeps

    with console.progress("sweep") as observe:
        found = sweeps.sweep(experiment, search, out=out, observe=observe)
    if as_json:
        print(json.dumps(found.summary))
        return DONE
    console_sweep.show(found)
    return DONE
