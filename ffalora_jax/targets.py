"""Which layers get adapters, how wide and how strong: the names that PEFT's users know.

A *pattern* is either layer names (``query,value``: a layer matches if its path ends in one of them) or a
regular expression over the whole path. Names of ``transformers`` match as well, where a family gives them.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ffalora_jax.errors import InputError

_NAMES = re.compile(r"[\w.]+(\s*,\s*[\w.]+)*")


class Adapted(NamedTuple):
    """One layer's adapter."""

    rank: int
    scaling: float
    """lora_alpha / rank, or lora_alpha / sqrt(rank) (rsLoRA: Kalajdzievski 2023, arXiv:2312.03732)."""
    lora_alpha: float


class Targets(NamedTuple):
    """What the user asked for; the fields are those of ``MethodConfig``."""

    targets: str
    rank: int
    lora_alpha: float
    layers: str = "all"
    exclude: str = ""
    rank_pattern: Mapping[str, float] = {}
    alpha_pattern: Mapping[str, float] = {}
    use_rslora: bool = False
    other_names: tuple[tuple[str, str], ...] = ()
    """(pattern of our paths, name elsewhere): ``Model.hf_names``."""

    def choose(self, dense: Mapping[str, Any], head: str | None) -> dict[str, Adapted]:
        """Returns the chosen layers, in the order of ``dense`` (dotted path -> ``nnx.Linear``).

        Raises:
            InputError: nothing matches (lists what there is), a rank at or above a layer's width, a
                pattern that does not compile or matches no chosen layer.
        """
        blocks = parse_blocks(self.layers)
        chosen = [
            name
            for name in dense
            if self._matches("targets", self.targets, name)
            and not (self.exclude and self._matches("exclude", self.exclude, name))
            and name != head
            and (blocks is None or _block(name) in blocks)
        ]
        if not chosen:
            raise InputError(
                f"No layer matches method.targets {self.targets!r} with method.layers {self.layers!r} and "
                f"method.exclude {self.exclude!r}: there are {', '.join(sorted(dense)[:12])}, ..."
            )
        found = {name: self._adapted(name) for name in chosen}
        for name, adapted in found.items():
            _check_rank(name, adapted.rank, dense[name])
        for kind, table in (("rank", self.rank_pattern), ("alpha", self.alpha_pattern)):
            _check_used(kind, table, lambda key: any(self._matches(kind, key, n) for n in chosen))  # noqa: B023
        return found

    def _adapted(self, name: str) -> Adapted:
        rank = int(self._by_pattern("rank_pattern", name, self.rank))
        alpha = self._by_pattern("alpha_pattern", name, self.lora_alpha)
        return Adapted(rank, alpha / (math.sqrt(rank) if self.use_rslora else rank), alpha)

    def _by_pattern(self, table: str, name: str, default: float) -> float:
        found = (v for key, v in getattr(self, table).items() if self._matches(table, key, name))
        return next(found, default)

    def _matches(self, setting: str, pattern: str, name: str) -> bool:
        names = [name, *_elsewhere(name, self.other_names)]
        if _NAMES.fullmatch(pattern):
            endings = [part.strip() for part in pattern.split(",")]
            return any(f".{n}".endswith(f".{ending}") for n in names for ending in endings)
        try:
            return any(re.fullmatch(pattern, n) for n in names)
        except re.error as error:
            raise InputError(
                f"Cannot read method.{setting} {pattern!r} as a regular expression: {error}."
            ) from None


def parse_blocks(layers: str) -> set[int] | None:
    """Reads ``all``, ``4-5`` or ``0,2,4`` into block numbers (None: all)."""
    if layers == "all":
        return None
    try:
        spans = [part.split("-") for part in layers.split(",")]
        return {i for span in spans for i in range(int(span[0]), int(span[-1]) + 1)}
    except ValueError:
        raise InputError(f"Expected method.layers as all, 4-5 or 0,2,4, got {layers!r}.") from None


def _elsewhere(name: str, other_names: Iterable[tuple[str, str]]) -> list[str]:
    return [
        match.expand(theirs)
        for ours, theirs in other_names
        if (match := re.fullmatch(ours, name)) is not None
    ]


def _block(name: str) -> int | None:
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def _check_rank(name: str, rank: int, layer: Any) -> None:
    width = min(layer.in_features, layer.out_features)
    if rank >= width:
        raise InputError(
            f"Expected method.rank below the width {width} of layer {name}, got {rank}: at that rank LoRA "
            "saves nothing."
        )


def _check_used(kind: str, table: Mapping[str, float], is_used: Any) -> None:
    for key in table:
        if not is_used(key):
            raise InputError(
                f"method.{kind}_pattern names {key!r}, which no adapted layer matches."
            )
