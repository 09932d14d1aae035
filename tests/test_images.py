"""Images: folders and archives as people have them; pixels as Hugging Face's processors make them."""

import shutil
import stat
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from ffalora_jax import images
from ffalora_jax.config import DataConfig
from ffalora_jax.data import ImageSource, _zip, as_dataset
from ffalora_jax.data import images as image_files
from ffalora_jax.errors import InputError
from ffalora_jax.images import ImageSettings, load_images, normalise
from tests.tfds_files import encoded, pixels_of

SMALL = ImageSettings(size=(16, 16))
PLAIN = ["cat/a.png", "cat/b.JPG", "dog/c.webp", "dog/d.bmp", "ant/e.gif", "ant/f.jpeg"]
PARTED = ["train/cat/a.png", "train/dog/b.png", "train/dog/c.png", "test/dog/d.png"]


def picture(name):
    """Returns a file of the kind that its name says, different for each class and name."""
    name = "/".join(name.replace("\\", "/").split("/")[-2:])
    suffix = name.rpartition(".")[2].lower()
    form = {"jpg": "JPEG"}.get(suffix, suffix.upper())
    return encoded(pixels_of(sum(name.encode())), form)


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(name))
    return folder


def pack(path, names, **more):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, picture(name))
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def read(path, **settings):
    return image_files.build(DataConfig(name="images", path=str(path), **settings), 0)


def refused(path):
    with pytest.raises(InputError) as raised:
        read(path)
    return str(raised.value)


def from_arrays(*arrays):
    return [ImageSource(f"array {i}", lambda a=a: a) for i, a in enumerate(arrays)]


def test_classes_are_the_folders_in_the_order_of_their_names(tmp_path):
    dataset = read(fill(tmp_path, PLAIN))
    assert dataset.class_names == ("ant", "cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [s.name for s in dataset.inputs["image"]] == sorted(PLAIN)
    assert [s.load() for s in dataset.inputs["image"]] == [picture(n) for n in sorted(PLAIN)]
    assert dataset.held_out is None
    assert load_images(dataset.inputs["image"], SMALL).shape == (6, 16, 16, 3)


@pytest.mark.parametrize("part", ["test", "val", "validation"])
def test_the_part_beside_train_is_held_out(part, tmp_path):
    dataset = read(fill(tmp_path, [name.replace("test/", f"{part}/") for name in PARTED]))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 1, 1]
    assert dataset.held_out.tolist() == [False, False, False, True]


def test_a_train_part_alone_holds_nothing_out(tmp_path):
    assert read(fill(tmp_path, PARTED[:3])).held_out is None


def test_classes_may_be_called_train_and_test(tmp_path):
    dataset = read(fill(tmp_path, ["train/a.png", "bus/b.png", "test/c.png"]))
    assert dataset.class_names == ("bus", "test", "train")


@pytest.mark.parametrize("names", [PLAIN, PARTED])
def test_an_archive_and_a_folder_around_all_make_no_difference(names, tmp_path):
    expected = read(fill(tmp_path / "plain", names))
    fill(tmp_path / "deep" / "pets", names)
    shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "deep")
    places = [
        tmp_path / "deep",
        tmp_path / "made.zip",  # with entries for the folders
        pack(tmp_path / "files.zip", names),
        pack(tmp_path / "root.zip", [f"pets/{name}" for name in names]),
        pack(tmp_path / "windows.zip", [name.replace("/", "\\") for name in names]),
    ]
    for place in places:
        dataset = read(place)
        assert [s.name for s in dataset.inputs["image"]] == [
            s.name for s in expected.inputs["image"]
        ]
        assert [s.load() for s in dataset.inputs["image"]] == [
            s.load() for s in expected.inputs["image"]
        ]
        np.testing.assert_array_equal(dataset.labels, expected.labels)
        np.testing.assert_array_equal(dataset.held_out, expected.held_out)


def test_hidden_and_other_files_are_passed_over(tmp_path):
    odd = [".hidden/x.png", "cat/.b.png", "__MACOSX/cat/a.png"]
    fill(tmp_path, [*PLAIN, *odd])
    for name in ("README.md", "cat/notes.txt", "dog/Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_text("no image")
    packed = pack(tmp_path.parent / "odd.zip", [*PLAIN, *odd], **{"README.md": "no image"})
    for place in (tmp_path, packed):
        assert [s.name for s in read(place).inputs["image"]] == sorted(PLAIN)


@pytest.mark.parametrize(
    ("names", "folders", "words"),
    [
        ([], [], ["No class folders", "DIR/class/name.jpg"]),
        (["a.png"], [], ["'a.png'", "no class folder"]),
        ([*PLAIN, "a.png"], [], ["'a.png'", "no class folder"]),
        ([*PARTED, "train/a.png"], [], ["no class folder"]),
        (PLAIN, ["empty"], ["'empty'", "has no image", ".webp"]),
        (PARTED, ["train/empty"], ["'train/empty'", "has no image"]),
        (PARTED[:3], ["test"], ["No class folders", "test"]),
        (PLAIN[:2], [], ["Only one class, 'cat'"]),
        ([*PLAIN, "cat/more/a.png"], [], ["'cat/more/a.png'", "in a folder of a class"]),
        ([*PARTED, "train/cat/more/a.png"], [], ["in a folder of a class"]),
        ([*PARTED, "val/cat/e.png"], [], ["'val'", "beside 'train'"]),
        ([*PARTED, "other/cat/e.png"], [], ["'other'", "beside 'train'"]),
        ([*PARTED, "test/emu/e.png"], [], ["'emu'", "not in 'train'", "cat, dog"]),
        (PARTED[3:], [], ["No folder 'train'"]),
    ],
)
def test_what_does_not_fit_the_layout_is_refused(names, folders, words, tmp_path):
    fill(tmp_path, names)
    for folder in folders:
        (tmp_path / folder).mkdir()
    said = refused(tmp_path)
    assert all(word in said for word in words), said


def test_a_place_that_is_none_is_refused(tmp_path):
    assert "No file or folder" in refused(tmp_path / "nowhere")
    (tmp_path / "a.zip").write_bytes(b"no archive")
    assert "zip archive" in refused(tmp_path / "a.zip")
    with pytest.raises(InputError, match=r"--data\.path"):
        image_files.build(DataConfig(name="images"), 0)


@pytest.mark.parametrize("name", ["../cat/x.png", "cat/../../x.png", "/cat/x.png", "C:/cat/x.png"])
def test_an_archive_that_points_outside_is_refused(name, tmp_path):
    packed = pack(tmp_path / "a.zip", PLAIN, **{name: picture("x.png")})
    assert "points outside" in refused(packed)
    assert list(tmp_path.iterdir()) == [packed]


def test_links_in_an_archive_are_passed_over(tmp_path):
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(pack(tmp_path / "a.zip", PLAIN), "a") as archive:
        archive.writestr(link, "/etc/hostname")
    assert [s.name for s in read(tmp_path / "a.zip").inputs["image"]] == sorted(PLAIN)


def test_an_encrypted_archive_is_refused(tmp_path):
    content = bytearray(pack(tmp_path / "a.zip", PLAIN).read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert "encrypted" in refused(tmp_path / "a.zip")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in PLAIN:
            archive.writestr(name, bytes(2**22))
    assert "times its size: refused" in refused(bomb)
    plain = pack(tmp_path / "a.zip", PLAIN)
    monkeypatch.setattr(_zip, "MOST_MEMBER_BYTES", 10)
    assert "expected at most 10: refused" in refused(plain)
    monkeypatch.setattr(_zip, "MOST_MEMBER_BYTES", 2**30)
    monkeypatch.setattr(_zip, "MOST_BYTES", 10)
    assert "expected at most 10 and" in refused(plain)


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


def columns_of(kind, folder):
    arrays = [pixels_of(i, 8, 8) for i in range(4)]
    files = [fill(folder, [f"{i}.png"]) / f"{i}.png" for i in range(4)]
    for file, array in zip(files, arrays, strict=True):
        file.write_bytes(encoded(array))
    return {
        "arrays": arrays,
        "one array": np.stack(arrays),
        "pillow": [Image.fromarray(a) for a in arrays],
        "bytes": [encoded(a) for a in arrays],
        "paths": files,
        "words": [str(file) for file in files],
        "not decoded": [{"bytes": encoded(a), "path": None} for a in arrays],
    }[kind]


@pytest.mark.parametrize(
    "kind", ["arrays", "one array", "pillow", "bytes", "paths", "words", "not decoded"]
)
def test_images_given_in_python_are_the_same_in_every_form(kind, tmp_path):
    columns = {"image": columns_of(kind, tmp_path), "label": ["b", "a", "b", "a"]}
    dataset = as_dataset(columns)
    assert dataset.kind == "images"
    assert dataset.labels.tolist() == [1, 0, 1, 0]
    pixels = load_images(dataset.take(np.array([2, 1])).inputs["image"], ImageSettings((8, 8)))
    np.testing.assert_array_equal(pixels, [pixels_of(2, 8, 8), pixels_of(1, 8, 8)])


def test_hugging_face_and_pandas_images_are_read_when_they_are_asked_for(tmp_path):
    import datasets
    import pandas

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    columns = {"image": columns_of("bytes", tmp_path), "label": [0, 1, 0, 1]}
    hugging = datasets.Dataset.from_dict(columns, features=features)
    frame = pandas.DataFrame(columns, index=[7, 5, 3, 1])
    for given in (hugging, frame):
        dataset = as_dataset(given)
        pixels = load_images(dataset.inputs["image"], ImageSettings((8, 8)))
        np.testing.assert_array_equal(pixels, [pixels_of(i, 8, 8) for i in range(4)])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": [pixels_of(0), 3], "label": [0, 1]}, ["Row 2", "'image'", "int"]),
        ({"image": [None, b""], "label": [0, 1]}, ["Row 1", "NoneType"]),
        ({"image": [pixels_of(0)]}, ["'label'"]),
        ({"image": [b"", b""], "text": ["", ""], "label": [0, 1]}, ["'text' and 'image'"]),
        ({"image": [b"", b""], "label": [1, 1]}, ["one class"]),
        ({"image": [], "label": []}, ["No examples"]),
    ],
)
def test_image_columns_that_cannot_be_used_are_refused_with_the_place(columns, words):
    with pytest.raises(InputError) as raised:
        as_dataset(columns)
    assert all(word in str(raised.value) for word in words)


def test_images_to_be_predicted_need_no_label():
    dataset = as_dataset({"image": [pixels_of(0), pixels_of(1)]}, label=None)
    assert len(dataset) == 2
    assert dataset.class_names == ()


def test_an_image_is_loaded_once():
    calls = []
    sources = [ImageSource(str(i), lambda i=i: calls.append(i) or pixels_of(i)) for i in range(20)]
    loaded = load_images(sources, SMALL)
    assert sorted(calls) == list(range(20))
    np.testing.assert_array_equal(loaded[7], load_images(from_arrays(pixels_of(7)), SMALL)[0])
