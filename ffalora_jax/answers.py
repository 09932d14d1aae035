"""Final numbers of worked answers, as GSM8K marks them: ``#### 72`` at the end. Read and compared exactly.

Data (is every answer marked?) and evaluation (is the model's number the right one?) both ask here.
"""

import re

MARK = "####"
_DIGITS = r"(?>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?>\.[0-9]+)?|\.[0-9]+"
# No digit may stand before the number, and no fraction bar after it: of "1/2" neither part is the answer.
_NUMBER = re.compile(
    rf"[^0-9]*?(?P<sign>[-\u2212]?)[+$£€ ]*(?P<inner>[-\u2212]?)(?P<digits>{_DIGITS})(?! *[/\u2044] *[0-9])"
)


def final_number(text: str) -> str | None:
    """Returns the number after the last ``####``, on that line, or None if there is none.

    The form is the shortest one, so that equal numbers are equal strings: no thousands commas, currency
    signs, plus, needless zeros or trailing dot (``#### $1,200.50.`` is ``1200.5``; ``3.0`` is ``3``).
    """
    _, mark, rest = text.rpartition(MARK)
    return _shortest(rest.lstrip(" \t").partition("\n")[0]) if mark else None


def same_number(one: str | None, other: str | None) -> bool:
    """Whether both are numbers, and equal ones: a missing answer is the same as nothing."""
    first = None if one is None else _shortest(one)
    return first is not None and other is not None and first == _shortest(other)


def _shortest(text: str) -> str | None:
    found = _NUMBER.match(text)
    if found is None:
        return None
    whole, _, part = found["digits"].replace(",", "").partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    size = f"{whole}.{part}" if part else whole
    return f"-{size}" if (found["sign"] or found["inner"]) and size != "0" else size
