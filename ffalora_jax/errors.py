"""The errors a user can cause, and the checks that raise them in one form: value, expectation, way out."""

import difflib
import math
from collections.abc import Iterable

DONE, FAILED, BAD_INPUT, BUDGET, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: done; the machine failed (disk, memory, a fault of ours); what was given cannot be used; the
privacy budget ended the run; Ctrl-C or SIGTERM, with all saved."""


class InputError(ValueError):
    """Something the user gave cannot be used; the command line prints it as one line and ends with 2."""


def positive(**values: float | None) -> None:
    """Raises InputError unless every given value is a finite number above zero (None passes)."""
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            what = "a finite " if value == math.inf else ""
            raise InputError(f"Expected {what}{name} > 0, got {value}.")


def between(low: float, high: float, **values: float | None) -> None:
    """Raises InputError unless low <= value < high for every given value (None passes)."""
    for name, value in values.items():
        if value is not None and not low <= value < high:
            raise InputError(f"Expected {low} <= {name} < {high}, got {value}.")


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns ' Did you mean ...?' for the choice that looks most like the name, or nothing."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


def one_of(choices: Iterable[str], **values: str) -> None:
    """Raises InputError, listing the choices, unless every given value is among them."""
    known = list(choices)
    for name, value in values.items():
        if value not in known:
            hint = nearest(value, known)
            raise InputError(f"No {name} {value!r}: choose from {', '.join(known)}.{hint}")
