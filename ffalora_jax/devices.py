"""Accelerators by name: public figures of their makers, for plans on paper."""

from typing import NamedTuple

from ffalora_jax.errors import InputError, nearest

GIB = 2**30


class Device(NamedTuple):
    """One machine or slice, all of its chips."""

    chips: int
    gib: float
    """Memory of one chip."""
    bfloat16: float
    """Dense products, TFLOP/s of one chip."""
    float32: float
    """The same for float32 inputs as JAX multiplies them there by default (TF32 on a GPU, bfloat16 passes on
    a TPU)."""


_CHIPS = {
    "a100": Device(1, 80, 312, 156),
    "h100": Device(1, 80, 989, 495),
    "h200": Device(1, 141, 989, 495),
    "v4": Device(1, 32, 275, 275),
    "v5e": Device(1, 16, 197, 197),
    "v5p": Device(1, 95, 459, 459),
    "v6e": Device(1, 32, 918, 918),
}


def device_of(name: str) -> Device:
    """Returns a device by name; ``v5e-256`` or ``h100-8`` is so many chips.

    Raises:
        InputError: an unknown name.
    """
    kind, _, count = name.lower().partition("-")
    chip = _CHIPS.get(kind)
    if chip is None or (count and not (count.isascii() and count.isdigit() and int(count))):
        raise InputError(
            f"No device {name!r}: there are cpu (this machine), {', '.join(_CHIPS)}, and several of one as "
            f"{kind if chip else 'v5e'}-256.{nearest(kind, _CHIPS)}"
        )
    return chip._replace(chips=int(count or 1))
