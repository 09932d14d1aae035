"""``ffalora pilot``: a small study before a decision, and its page."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ffalora_jax.errors import DONE, InputError


def run(arguments: list[str], use_jax: Callable[[], None]) -> int:
    """Reads the flags, pilots, says where the page is."""
    from ffalora_jax import flags

    as_json, rest = flags.switch(arguments, "--json")
    wants_questions, rest = flags.switch(rest, "--ask")
    if wants_questions:
        from ffalora_jax import cli_ask

        rest = cli_ask.asked(rest, flags.read_pilot)
    experiment, asked, out = flags.read_pilot(rest)
    use_jax()
    return _piloted(experiment, asked, out, as_json)


def resume(path: str, rest: list[str], use_jax: Callable[[], None]) -> int:
    """Goes on with a pilot, for as many minutes again as it was given, or as are given now.

    With ``--page`` nothing is run: its page is written anew.
    """
    from ffalora_jax import flags

    as_json, rest = flags.switch(rest, "--json")
    page_alone, rest = flags.switch(rest, "--page")
    experiment, asked, out = flags.read_pilot([str(Path(path) / "pilot.toml"), *rest])
    if out is not None:
        raise InputError(f"A pilot goes on in its own folder {path!r}: leave --out away.")
    use_jax()
    if page_alone:
        from ffalora_jax import pilots

        return _shown(pilots.page_again(experiment, asked, path), as_json)
    return _piloted(experiment, asked, path, as_json)


def _piloted(experiment: Any, asked: Any, out: str | None, as_json: bool) -> int:
    from ffalora_jax import console, pilots

    with console.progress("pilot") as observe:
        made = pilots.pilot(experiment, asked, out=out, observe=observe)
    return _shown(made, as_json)


def _shown(made: Any, as_json: bool) -> int:
    """Prints what a pilot found, and where its page is."""
    if as_json:
        print(json.dumps(made.found))
        return DONE
    print("\n".join(made.said))
    if not made.found["whole"]:
        print(
            f"ffalora: not all was asked yet; ffalora resume {made.path} goes on",
            file=sys.stderr,
        )
    print(f"page: {made.page}")
    return DONE
