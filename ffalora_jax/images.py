"""Images to pixels: decode, resize and crop on the host, once; rescale and normalise inside jit.

The numbers are those of Hugging Face's image processors (``preprocessor_config.json``), so that a checkpoint
sees what it was trained on. Pixels stay uint8, a quarter of float32, until the model takes them.
"""

import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ffalora_jax.data import ImageSource
from ffalora_jax.errors import InputError

MOST_PIXELS = 2**26
"""Larger images are refused before they are decoded: a small file can name any size."""
NAMED = 10
"""So many broken images are named; the others are counted."""
_VIT_SIZE, _VIT_MEAN = 224, (0.5, 0.5, 0.5)
_RESAMPLINGS = range(6)  # Pillow's numbers: nearest, Lanczos, bilinear, bicubic, box, Hamming


class ImageSettings(NamedTuple):
    """How images become what a model takes; the defaults are ViT's."""

    size: tuple[int, int] = (_VIT_SIZE, _VIT_SIZE)
    """(height, width) to resize to."""
    mean: tuple[float, float, float] = _VIT_MEAN
    std: tuple[float, float, float] = _VIT_MEAN
    rescale: float = 1 / 255
    resample: int = 2
    """Pillow's number: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming."""
    do_resize: bool = True
    shortest_edge: int | None = None
    """Resize so that the shorter edge has this length, in place of ``size``; then crop."""
    crop_size: tuple[int, int] | None = None
    """(height, width) to cut from the middle after resizing, if any."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what comes out."""
        return self.crop_size or self.size

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ImageSettings":
        """Reads ``preprocessor_config.json``, in old and new spellings; what it leaves out is ViT's.

        Raises:
            InputError: a value that cannot be followed.
        """
        crop = None
        if config.get("do_center_crop"):
            crop = _height_width(config.get("crop_size", _VIT_SIZE), "crop_size")
        size, shortest = config.get("size", _VIT_SIZE), None
        if isinstance(size, Mapping) and "shortest_edge" in size:
            shortest = _count(size["shortest_edge"], "size")
            if crop is None or "longest_edge" in size:
                raise InputError(
                    f"Cannot use image size {dict(size)!r}: images come out in different shapes. Expected "
                    "height and width, or shortest_edge with do_center_crop, in preprocessor_config.json."
                )
        resample = config.get("resample", 2)
        if resample not in _RESAMPLINGS:
            raise InputError(f"Expected resample 0 to 5 (Pillow's numbers), got {resample!r}.")
        normalises = config.get("do_normalize", True)
        rescales = config.get("do_rescale", True)
        return cls(
            crop if shortest is not None and crop else _height_width(size, "size"),
            _channels(config.get("image_mean"), "image_mean") if normalises else (0.0, 0.0, 0.0),
            _channels(config.get("image_std"), "image_std") if normalises else (1.0, 1.0, 1.0),
            float(config.get("rescale_factor", 1 / 255)) if rescales else 1.0,
            int(resample),
            bool(config.get("do_resize", True)),
            shortest,
            crop,
        )


def load_images(sources: Sequence[ImageSource], settings: ImageSettings) -> np.ndarray:
    """Decodes, turns upright, resizes and crops: (example, height, width, 3) uint8, each image once.

    Grey, palette, transparent and CMYK images become RGB (transparency is dropped, as Hugging Face does it).

    Raises:
        InputError: some cannot be used; names the first ten with the reason, and counts them all. None is
            passed over in silence.
    """
    from PIL import UnidentifiedImageError

    pixels = np.empty((len(sources), *settings.shape, 3), np.uint8)

    def load(row: int) -> str | None:
        try:
            pixels[row] = _fitted(_decoded(sources[row].load()), settings)
        except UnidentifiedImageError:  # whose own message is an address in memory
            return "not an image file"
        except Exception as error:  # decoders fail in every way there is
            return str(error).strip().partition("\n")[0] or type(error).__name__
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter(
            "ignore"
        )  # Pillow's on large and odd images: they are refused or read right
        reasons = list(pool.map(load, range(len(sources))))
    broken = [
        f"{source.name} ({why})"
        for source, why in zip(sources, reasons, strict=True)
        if why is not None
    ]
    if broken:
        more = f", and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise InputError(
            f"{len(broken)} of {len(sources)} images cannot be used: {'; '.join(broken[:NAMED])}{more}. "
            "Repair or remove them."
        )
    return pixels


def normalise(
    images: UInt8[Array, "*batch height width 3"], settings: ImageSettings
) -> Float[Array, "*batch height width 3"]:
    """Rescales to numbers around zero, channel by channel, as the checkpoint expects: for use inside jit."""
    channels = (1,) * (images.ndim - 1) + (3,)
    mean = jnp.asarray(settings.mean, jnp.float32).reshape(channels)
    std = jnp.asarray(settings.std, jnp.float32).reshape(channels)
    return (images.astype(jnp.float32) * jnp.float32(settings.rescale) - mean) / std


def _decoded(content: Any):
    """Returns a Pillow image in RGB from a file's bytes, pixels or another Pillow image."""
    from PIL import Image, ImageOps

    if isinstance(content, np.ndarray):
        return _from_array(content)
    image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
    if image.width * image.height > MOST_PIXELS:
        raise InputError(
            f"{image.width} x {image.height} pixels, expected at most {MOST_PIXELS}: make it smaller"
        )
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(
        "I;16"
    ):  # Pillow would cut at 255, where 255 of 65,535 is nearly black
        return _from_array((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"pixels of mode {image.mode}, expected 8 or 16 bits a channel")
    if image.mode == "P":  # by way of RGBA: a palette may have transparent entries
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_array(pixels: np.ndarray):
    from PIL import Image

    if pixels.dtype != np.uint8:
        raise InputError(f"an array of {pixels.dtype}, expected uint8 from 0 to 255")
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise InputError(f"an array of shape {pixels.shape}, expected (height, width[, 1, 3 or 4])")
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, :3]))


def _fitted(image, settings: ImageSettings) -> np.ndarray:
    """Returns the pixels of an RGB image, resized and cropped."""
    if settings.do_resize:
        height, width = settings.size
        if settings.shortest_edge is not None:
            short, edge = min(image.size), settings.shortest_edge
            width, height = (
                edge if side == short else int(edge * side / short) for side in image.size
            )
        image = image.resize((width, height), settings.resample)
    pixels = np.asarray(image)
    if settings.crop_size is not None:
        return _centre(pixels, *settings.crop_size)
    if pixels.shape[:2] != settings.size:
        raise InputError(
            f"{pixels.shape[0]} x {pixels.shape[1]} pixels, expected {settings.size[0]} x "
            f"{settings.size[1]}, since do_resize is off"
        )
    return pixels


def _centre(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts out the middle; what is smaller gets a black border."""
    for axis, wanted in enumerate((height, width)):
        lack = max(0, wanted - pixels.shape[axis])
        border = [(0, 0), (0, 0), (0, 0)]
        border[axis] = (math.ceil(lack / 2), lack // 2)
        pixels = np.pad(pixels, border)
        start = (pixels.shape[axis] - wanted) // 2
        pixels = pixels.take(range(start, start + wanted), axis)
    return pixels


def _height_width(size: Any, name: str) -> tuple[int, int]:
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return _count(size["height"], name), _count(size["width"], name)
    if isinstance(size, list | tuple) and len(size) == 2:
        return _count(size[0], name), _count(size[1], name)
    return _count(size, name), _count(size, name)


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(
            f"Cannot use {name} {value!r} in preprocessor_config.json: expected a number of pixels, or "
            "height and width."
        )
    return value


def _channels(values: Any, name: str) -> tuple[float, float, float]:
    if values is None:
        return _VIT_MEAN
    found = tuple(values) if isinstance(values, list | tuple) else (values,) * 3
    if len(found) != 3 or not all(isinstance(one, int | float) for one in found):
        raise InputError(
            f"Expected three numbers for {name} in preprocessor_config.json, got {values!r}."
        )
    if name == "image_std" and not all(one > 0 for one in found):
        raise InputError(f"Expected {name} > 0 in preprocessor_config.json, got {values!r}.")
    first, second, third = map(float, found)
    return first, second, third
