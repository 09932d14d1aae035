"""What a report of a bug needs: run.log in the run folder, and the level of messages on the terminal."""

import contextlib
import logging
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
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
TOLD = ("epsilon",)
"""Of a round; nothing that looks at data without noise, or at how many took part."""


def set_level(level: str) -> None:
    """Shows messages of this level and above on stderr.

    Raises:
        InputError: no such level.
    """
    one_of(LEVELS, **{"--log-level": level})
    for old in [one for one in LOG.handlers if type(one) is logging.StreamHandler]:
        LOG.removeHandler(old)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORM))
    handler.setLevel(level.upper())
    LOG.addHandler(handler)
    LOG.setLevel(min(logging.INFO, handler.level))
    LOG.propagate = False


@contextlib.contextmanager
def kept(folder: Path, said: Sequence[str] = ()) -> Iterator[None]:
    """Adds what is logged, and how it ended, to run.log in the folder; a full disk there stops nothing.

    **Guarantee:** no seed, no key, no text of the data and nothing that looks at data without noise is
    logged: stages, ``TOLD``, versions, tracebacks.

    Args:
        folder: of the run.
        said: what was said before there was a log.
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
        for text in said:
            LOG.warning("%s", text)
        yield
        LOG.info("end")
    except KeyboardInterrupt as stopped:
        LOG.info("stopped: %s", stopped)
        raise
    except FloatingPointError:  # its words are of a client's data
        LOG.error("stopped at a value that is not finite (--debug-nans)")
        raise
    except BaseException:
        LOG.exception("failed")
        raise
    finally:
        logging.raiseExceptions = raising
        LOG.removeHandler(handler)
        LOG.setLevel(before)
        LOG.propagate = passed_on
        with contextlib.suppress(OSError):
            handler.close()


def told(observe: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns an observer that logs each stage and round, too."""

    def both(event: Any) -> None:
        if event.line is None:
            if not event.stage.startswith(
                "warning: "
            ):  # some are of the data: they stand in partition.json
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
