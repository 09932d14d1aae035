"""Pixels as Hugging Face's processors make them, from every mode, turn and depth; broken images named."""

import jax
import numpy as np
import pytest
from PIL import Image

from ffalora_jax import images
from ffalora_jax.data import ImageSource
from ffalora_jax.errors import InputError
from ffalora_jax.images import ImageSettings, load_images, normalise
from tests.image_files import SMALL, from_arrays, picture
from tests.tfds_files import encoded, pixels_of


def upright():
    """A picture whose four corners differ, in RGB."""
    pixels = np.zeros((12, 20, 3), np.uint8)
    pixels[:6, :10], pixels[:6, 10:], pixels[6:, :10] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return pixels


def as_is(content):
    return load_images(
        [ImageSource("one", lambda: content)], ImageSettings(size=(12, 20), do_resize=False)
    )[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "PA", "CMYK", "L", "LA", "1", "I;16"])
def test_every_mode_of_pixels_becomes_rgb(mode):
    image = Image.fromarray(upright())
    grey = np.asarray(image.convert("L"))
    expected = upright()
    if mode in ("L", "LA", "1", "I;16"):
        expected = np.repeat(grey[:, :, None], 3, axis=2)
    if mode == "1":
        image = Image.fromarray(grey > 60)
        expected = np.repeat((grey > 60)[:, :, None], 3, axis=2) * np.uint8(255)
    elif mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode in ("P", "PA"):
        image = image.convert("RGB" if mode == "P" else "RGBA").quantize(16)
    else:
        image = image.convert(mode)
    form = "TIFF" if mode == "CMYK" else "PNG"
    np.testing.assert_allclose(as_is(encoded(image, form)), expected, atol=1)


def test_a_palette_with_transparency_is_read_without_a_warning():
    image = Image.fromarray(upright()).quantize(8)
    np.testing.assert_array_equal(as_is(encoded(image, "PNG", transparency=b"\x80" * 8)), upright())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_as_its_exif_says(orientation):
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright())
    if orientation in turns:
        stored = stored.transpose(turns[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(as_is(encoded(stored, "PNG", exif=exif)), upright())
    stored.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(as_is(stored), upright())


@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 1), (12, 20, 3), (12, 20, 4)])
def test_arrays_of_every_depth_become_three_channels(shape):
    pixels = pixels_of(0, *shape[:2], channels=shape[2] if len(shape) > 2 else 0)
    expected = pixels.reshape(12, 20, -1)[:, :, :3]
    np.testing.assert_array_equal(as_is(pixels), np.broadcast_to(expected, (12, 20, 3)))


def test_all_broken_images_are_named_at_once_and_none_is_passed_over(tmp_path):
    whole = picture("a.png")
    bad = {
        "empty": b"",
        "text": b"no image at all",
        "cut": whole[: len(whole) // 2],
        "flipped": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "float": np.zeros((4, 4, 3), np.float32),
        "deep": np.zeros((2, 4, 4, 3), np.uint8),
        "two": np.zeros((4, 4, 2), np.uint8),
        "none": np.zeros((0, 4, 3), np.uint8),
    }
    sources = [ImageSource(name, lambda c=content: c) for name, content in bad.items()]
    sources.insert(3, ImageSource("fine", lambda: whole))
    sources.append(ImageSource("gone", (tmp_path / "gone.png").read_bytes))
    with pytest.raises(InputError) as raised:
        load_images(sources, SMALL)
    said = str(raised.value)
    assert said.startswith(f"9 of {len(sources)} images")
    assert all(f"{name} (" in said for name in [*bad, "gone"])
    assert "fine" not in said
    assert "float32" in said


def test_ten_broken_images_are_named_and_the_rest_counted():
    sources = [ImageSource(f"number {i}", lambda: b"") for i in range(25)]
    with pytest.raises(
        InputError, match=r"^25 of 25 images.*number 9 \(.*, and 15 more\."
    ) as raised:
        load_images(sources, SMALL)
    assert "number 10" not in str(raised.value)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(InputError, match=r"bomb.png \("):
        load_images([ImageSource("bomb.png", lambda: bomb)], SMALL)
    monkeypatch.setattr(images, "MOST_PIXELS", 100)
    with pytest.raises(InputError, match="20 x 12 pixels, expected at most 100"):
        as_is(encoded(upright()))


CONFIGS = {
    "vit": {"size": {"height": 24, "width": 24}, "resample": 2},
    "oblong": {"size": {"height": 20, "width": 30}, "resample": 3},
    "imagenet": {
        "size": {"height": 16, "width": 16},
        "resample": 1,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "crop": {
        "size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "crop_size": {"height": 23, "width": 28},
    },
    "clip": {
        "size": {"shortest_edge": 18},
        "do_center_crop": True,
        "crop_size": {"height": 16, "width": 16},
    },
    "border": {
        "size": {"height": 12, "width": 17},
        "do_center_crop": True,
        "crop_size": {"height": 21, "width": 15},
    },
    "raw": {"size": {"height": 24, "width": 24}, "do_normalize": False, "do_rescale": False},
    "signed": {"size": {"height": 8, "width": 8}, "rescale_factor": 1 / 127.5},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_those_of_hugging_face(name):
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    config = CONFIGS[name]
    arrays = [pixels_of(i, *shape) for i, shape in enumerate([(40, 30), (17, 50), (33, 33)])]
    theirs = ViTImageProcessorPil(**config)(
        [Image.fromarray(a) for a in arrays], return_tensors="np"
    )
    settings = ImageSettings.from_config(config)
    ours = jax.jit(normalise, static_argnums=1)(
        load_images(from_arrays(*arrays), settings), settings
    )
    expected = np.moveaxis(np.asarray(theirs["pixel_values"], np.float32), 1, -1)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_saved_configuration_of_hugging_face_reads_as_it_was(tmp_path):
    import json

    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 48, "width": 40}, resample=3).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    settings = ImageSettings.from_config(saved)
    assert settings.shape == (48, 40)
    assert settings.resample == 3


def test_old_spellings_and_gaps_mean_what_vit_means():
    old = {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2}
    old |= {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    assert ImageSettings.from_config(old) == ImageSettings() == ImageSettings.from_config({})
    assert ImageSettings.from_config({"size": [20, 30]}).size == (20, 30)
    deit = {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3}
    assert ImageSettings.from_config(deit).shape == (224, 224)
    assert ImageSettings.from_config(deit).size == (256, 256)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"size": "large"}, "size 'large'"),
        ({"size": 0}, "size 0"),
        ({"size": {"width": 3}}, "size"),
        ({"size": {"shortest_edge": 224}}, "do_center_crop"),
        ({"size": {"shortest_edge": 2, "longest_edge": 3}, "do_center_crop": True}, "shapes"),
        ({"resample": 9}, "resample"),
        ({"resample": "bilinear"}, "resample"),
        ({"image_mean": [1, 2]}, "image_mean"),
        ({"image_std": [1, 0, 1]}, "image_std > 0"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(config, words):
    with pytest.raises(InputError, match=words):
        ImageSettings.from_config(config)


def test_without_resizing_every_image_must_have_the_size():
    settings = ImageSettings(size=(32, 32), do_resize=False)
    arrays = [pixels_of(0), pixels_of(1, 30, 32)]
    with pytest.raises(InputError, match=r"1 of 2.*array 1 \(30 x 32 pixels, expected 32 x 32"):
        load_images(from_arrays(*arrays), settings)
