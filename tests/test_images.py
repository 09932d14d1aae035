"""Images: folders and archives as people have them."""

import shutil
import stat
import zipfile

import numpy as np
import pytest

from ffalora_jax.config import DataConfig
from ffalora_jax.data import _zip
from ffalora_jax.data import images as image_files
from ffalora_jax.errors import InputError
from ffalora_jax.images import load_images
from tests.image_files import PARTED, PLAIN, SMALL, fill, pack, picture, read, refused


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
