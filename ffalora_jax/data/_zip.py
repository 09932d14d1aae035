"""Zip archives of images, taken as untrusted: never unpacked, read one member at a time, with bounds."""

import stat
import threading
import zipfile
from pathlib import Path, PurePosixPath

from ffalora_jax.errors import InputError

MOST_BYTES, MOST_MEMBER_BYTES = 2**36, 2**28
"""An archive may not hold more in all, nor a member alone; it is read one member at a time."""
MOST_RATIO, SMALL_BYTES = 200, 2**24
"""Images hardly shrink: past the small size, more bytes than so many times the archive's are a bomb."""


class Archive:
    """The regular members of an archive, by place; links are passed over.

    Raises:
        InputError: no zip archive, encrypted, a member that points outside, or more bytes than the bounds.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        try:
            self._archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(
                f"Cannot read {path} as a zip archive ({error}): expected a folder or a .zip of one."
            ) from None
        members = [
            one for one in self._archive.infolist() if not stat.S_ISLNK(one.external_attr >> 16)
        ]
        self.members = [(self._place(member), member) for member in members]
        self._check_sizes(members)

    def read(self, member: zipfile.ZipInfo) -> bytes:
        """Returns one member's bytes; never more than it declares."""
        with self._lock:
            return self._archive.read(member)

    def _place(self, member: zipfile.ZipInfo) -> tuple[str, ...]:
        name = member.filename.replace("\\", "/")
        place = PurePosixPath(name).parts
        if name.startswith("/") or ".." in place or ":" in name.partition("/")[0] or not place:
            raise InputError(
                f"Member {member.filename!r} of {self.path} points outside the archive: refused. Pack the "
                "folder anew, with relative names."
            )
        if member.flag_bits & 1:
            raise InputError(f"{self.path} is encrypted: unpack it, and give the folder.")
        return place

    def _check_sizes(self, members: list[zipfile.ZipInfo]) -> None:
        total, packed = sum(one.file_size for one in members), self.path.stat().st_size
        largest = max(members, key=lambda one: one.file_size, default=None)
        if largest is not None and largest.file_size > MOST_MEMBER_BYTES:
            raise InputError(
                f"Member {largest.filename!r} of {self.path} unpacks to {largest.file_size} bytes, expected "
                f"at most {MOST_MEMBER_BYTES}: refused."
            )
        if total > MOST_BYTES or (total > SMALL_BYTES and total > MOST_RATIO * packed):
            raise InputError(
                f"{self.path} ({packed} bytes) unpacks to {total} bytes, expected at most {MOST_BYTES} and "
                f"{MOST_RATIO} times its size: refused. If it is sound, unpack it and give the folder."
            )
