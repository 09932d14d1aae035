"""What was fetched is kept by its hash; archives are only data."""

import io
import stat
import tarfile
import zipfile

import pytest

from ffalora_jax import fetch
from ffalora_jax.errors import InputError


def test_fetched_files_are_kept_and_a_change_in_the_cache_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FFALORA_CACHE", str(tmp_path))
    hashes = {"file": fetch.sha256(b"content")}
    assert fetch.stored("datasets", "some", hashes) is None
    with pytest.raises(InputError, match="not the published one"):
        fetch.store("datasets", "some", {"file": b"other"}, hashes)
    assert fetch.stored("datasets", "some", hashes) is None
    kept = fetch.store("datasets", "some", {"file": b"content"}, hashes)
    assert fetch.stored("datasets", "some", hashes) == kept
    (kept / "file").write_bytes(b"contents")
    with pytest.raises(InputError, match="sha256"):
        fetch.stored("datasets", "some", hashes)


def tar_with_links():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, kind in {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/hostname"
            archive.addfile(link)
        info = tarfile.TarInfo("folder/file")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"text"))
    return file.getvalue()


def zip_with_links():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("soft")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/hostname")
        archive.mkdir("folder")
        archive.writestr("folder/file", b"text")
    return file.getvalue()


ARCHIVES = [(fetch.read_tar, tar_with_links), (fetch.read_zip, zip_with_links)]


@pytest.mark.parametrize(("read", "make"), ARCHIVES)
def test_links_in_archives_are_passed_over(read, make):
    assert read(make()) == {"folder/file": b"text"}


@pytest.mark.parametrize(("read", "make"), ARCHIVES)
def test_an_archive_that_unpacks_to_too_much_is_refused(read, make, monkeypatch):
    monkeypatch.setattr(fetch, "MOST_BYTES", 3)
    with pytest.raises(InputError, match="4 bytes, expected at most 3"):
        read(make())
