"""What a report of a bug needs: run.log in the run folder, and the level of messages on the terminal."""

import contextlib
import logging
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ffalora_jax._version import __version__
from ffalora_jax.errors import one_of

LOG = logging.getLogger("ffalora_jax")
LEVELS = ("debug", "info", "warning", "error")
FORM = "%(asctime)s %(levelname)s %(message)s"
PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint dp-accounting transformers tokenizers numpy".split()
)
TOLD = ("epsilon", "bytes_up", "bytes_down", "seconds", "update_norm")
"""Of a round; nothing that looks at data without noise."""


def set_level(level: str) -> None:
    """Shows messages of this level and above on stderr.

    Raises:
        InputError: no such level.
    """
    one_of(LEVELS, **{"--log-level": level})
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORM))
    handler.setLevel(level.upper())
    LOG.addHandler(handler)
    LOG.setLevel(min(logging.INFO, handler.level))
    LOG.propagate = False


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Adds what is logged, and how it ended, to run.log in the folder; a full disk there stops nothing.

    **Guarantee:** no seed, no key and no text of the data is logged: stages, ``TOLD``, versions, tracebacks.
    """
    try:
        handler: logging.Handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(FORM))
    before, passed_on = LOG.level, LOG.propagate
    LOG.addHandler(handler)
    LOG.setLevel(min(logging.INFO, before or logging.INFO))
    LOG.propagate = False  # the terminal has the observer's lines
    raising, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        LOG.info("begin: %s", ", ".join(f"{name} {found}" for name, found in versions().items()))
        yield
        LOG.info("end")
    except KeyboardInterrupt as stopped:
        LOG.info("stopped: %s", stopped)
        raise
    except BaseException:
        LOG.exception("failed")
        raise
    finally:
        logging.raiseExceptions = raising
        LOG.removeHandler(handler)
        LOG.setLevel(before)
        LOG.propagate = passed_on
        handler.close()


def told(observe: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns an observer that logs each stage and round, too."""

    def both(event: Any) -> None:
        if event.line is None:
            LOG.info("%s", event.stage)
        else:
            facts = {name: event.line[name] for name in TOLD}
            LOG.info("round %d of %d: %s", event.rounds_done, event.rounds, facts)
        observe(event)

    return both


def versions() -> dict[str, str]:
    """Returns the versions that matter, Python's and the machine's kind with them."""
    found = {"ffalora_jax": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | {"machine": f"{platform.system()} {platform.machine()}"}
