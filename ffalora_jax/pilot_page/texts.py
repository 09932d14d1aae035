"""The page's words in a language, and numbers as that language writes them."""

import tomllib
from importlib import resources
from typing import Any

from ffalora_jax.report import words


class Texts:
    """The table of one language."""

    def __init__(self, language: str):
        file = resources.files("ffalora_jax.pilot_page") / f"{language}.toml"
        self.table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))

    def __call__(self, key: str, /, **values: Any) -> str:
        """Returns a sentence with its fields filled in."""
        template = str(self.table[key])
        said = template.format(**values)
        begins = template.startswith(
            ("{method}", "{others}")
        )  # a method's name may begin a sentence
        return said[:1].upper() + said[1:] if begins else said

    def duration(self, seconds: float) -> str:
        """Writes a time span in its largest fitting unit."""
        for name, size, most in (("second", 1, 90), ("minute", 60, 5400)):
            if seconds < most:
                return self(name, value=f"{seconds / size:.3g}")
        hours = seconds / 3600
        return self("hour", value=f"{hours:,.0f}" if hours >= 999.5 else f"{hours:.3g}")

    def interval(self, interval: dict[str, Any], key: str = "interval") -> str:
        """Writes an interval in percentage points behind its mean."""
        if interval["low"] is None:
            return self("no_interval")
        return self(key, low=points(interval["low"]), high=points(interval["high"]))

    def names(self, names: list[str]) -> str:
        """Writes a list."""
        return ("、" if self.table["language"] == "ja" else ", ").join(names)


def points(share: float) -> str:
    """Writes a difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}"


def epsilon(value: float | None, none: str) -> str:
    """Writes an epsilon."""
    return none if value is None else f"{value:.3g}"


percent, size, small = words.percent, words.size, words.small
