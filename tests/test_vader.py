"""VADER's texts come out of its published archives, checked by hash."""

import io
import tarfile

import pytest

from ffalora_jax import fetch
from ffalora_jax.config import DataConfig
from ffalora_jax.data import vader
from ffalora_jax.errors import InputError


def tar_of(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def vader_folder(tmp_path, monkeypatch):
    """A folder with an sdist of the published form, its hashes taken for the published ones."""
    rated = "1\t2.1\tlovely\n2\t-1.5\tso\ttabbed\n3\t0.4\ttoo weak\n\n4\t-0.5\tjust enough\n"
    home = "hutto_ICWSM_2014"
    inner = tar_of({f"{home}/{name}": rated.encode() for name in vader.SITES.values()})
    sdist = tar_of({f"vaderSentiment-3.3.2/additional_resources/{vader.INNER}": inner})
    monkeypatch.setattr(vader, "INNER_SHA256", fetch.sha256(inner))
    monkeypatch.setattr(vader, "SDIST_SHA256", fetch.sha256(sdist))
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").write_bytes(sdist)
    return tmp_path


def test_vader_is_the_sign_of_ratings_away_from_zero(vader_folder):
    dataset = vader.build(DataConfig(path=str(vader_folder)), 0)
    assert dataset.client_names == ("movies", "amazon", "nyt", "tweets")
    assert dataset.clients.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert dataset.inputs["text"][:3] == ["lovely", "so\ttabbed", "just enough"]
    assert dataset.labels[:3].tolist() == [1, 0, 0]


def test_vader_reads_the_inner_archive_alone(vader_folder, tmp_path):
    sdist = tmp_path / "vaderSentiment-3.3.2.tar.gz"
    members = fetch.read_tar(sdist.read_bytes())
    sdist.unlink()
    (tmp_path / vader.INNER).write_bytes(next(iter(members.values())))
    assert len(vader.build(DataConfig(path=str(vader_folder)), 0)) == 12


def test_vader_with_a_changed_byte_is_refused(vader_folder):
    file = vader_folder / "vaderSentiment-3.3.2.tar.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="sha256"):
        vader.build(DataConfig(path=str(vader_folder)), 0)
