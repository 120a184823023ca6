"""A folder's files as bytes: each read once, hashed, and zip files opened within bounds.

Refuses by value what is too large or cannot be read. A zip file of scans counts as one file: its members have its
digest and ordinal, and a number of their own. Nothing is ever unpacked to disk, and a member's name is used for
nothing but the order.
"""

import hashlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from medrec.errors import WorldError
from medrec.series import Reason, Refused

MAX_FILE_BYTES = 2 * 2**30  # the largest that native pixel data in one element can sensibly be; zip files unpacked too
MAX_MEMBERS = 100_000
ZIP = b"PK\3\4"
# Stored and deflated; the others take minutes for what these do in seconds.
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True, slots=True)
class Part:
    """One file, or one member of a zip file (`member` from 1); `digest` is the sha256 of the file as it lies there."""

    data: bytes
    digest: str
    ordinal: int
    member: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """By what a file that has not changed is known again, without reading it."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "State | None":
        """The state of a file; None when it cannot be asked for."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder, in the order of its path; a file stands for itself.

    What cannot be looked at, a folder among it, is there too: it is refused later, not overlooked. Raises WorldError
    when `folder` itself cannot be listed.
    """
    if folder.is_file():
        yield folder
        return
    unlisted: list[Path] = []

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise WorldError(f"the input folder cannot be listed: {os.strerror(error.errno or 0)}")
        unlisted.append(Path(error.filename))

    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, onerror=note, followlinks=True):
        yield from unlisted
        unlisted.clear()
        try:
            place = Path(root).stat()
        except OSError:
            folders.clear()
            yield Path(root)
            continue
        if (place.st_dev, place.st_ino) in seen:  # a link back to a folder that was walked already
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))
    yield from unlisted


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip file does."""
    try:
        with _opened(path) as file:
            return file.read(len(ZIP)) == ZIP
    except OSError:
        return False


def parts_of(path: Path, ordinal: int) -> Iterator[Part | Refused]:
    """The bytes of a file, or of each member of a zip file, one at a time."""
    try:
        with _opened(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                detail = f"more than {MAX_FILE_BYTES // 2**30} GiB; it was not read"
                yield Refused("", ordinal, Reason.TOO_LARGE, detail)
                return
            data = file.read()
    except OSError as error:
        yield Refused("", ordinal, Reason.UNREADABLE, os.strerror(error.errno) if error.errno else str(error))
        return
    digest = hashlib.sha256(data).hexdigest()
    if data.startswith(ZIP):
        yield from _members(data, digest, ordinal)
    else:
        yield Part(data, digest, ordinal)


def _opened(path: Path) -> IO[bytes]:
    """A regular file, opened; a pipe would keep its reader waiting for ever. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("neither a file nor a folder that can be listed")
    return os.fdopen(descriptor, "rb")


def bytes_again(path: Path, digest: str, ordinal: int) -> bytes:
    """A file that was read before. Raises WorldError when it is gone or has changed."""
    try:
        with _opened(path) as file:
            data = file.read()
    except OSError as error:
        raise WorldError(f"file {ordinal} of the input is gone: {os.strerror(error.errno or 0)}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise WorldError(f"file {ordinal} of the input changed while it was being analysed")
    return data


class Packed:
    """A zip file that was read before, held open while one member after the other is asked for."""

    def __init__(self, data: bytes) -> None:
        self._file = zipfile.ZipFile(io.BytesIO(data))
        self._members = _listed(self._file)

    def read(self, member: int) -> bytes:
        """The bytes of a member, by its number from 1."""
        return self._file.read(self._members[member - 1])


def _members(data: bytes, digest: str, ordinal: int) -> Iterator[Part | Refused]:
    def refuse(reason: Reason, detail: str) -> Refused:
        return Refused(digest, ordinal, reason, detail)

    left = MAX_FILE_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            listed = _listed(packed)
            if not 0 < len(listed) <= MAX_MEMBERS:
                yield refuse(Reason.PACKED, f"a zip file of {len(listed)} files; 1 to {MAX_MEMBERS} are read")
                return
            for number, member in enumerate(listed, 1):
                if member.compress_type not in ZIP_METHODS:
                    yield refuse(Reason.PACKED, f"member {number} is packed in an unusual way; unpack it first")
                    continue
                with packed.open(member) as opened:
                    content = opened.read(left + 1)  # the directory's own sizes may lie
                left -= len(content)
                if left < 0:
                    yield refuse(Reason.TOO_LARGE, f"a zip file of more than {MAX_FILE_BYTES // 2**30} GiB unpacked")
                    return
                if content.startswith(ZIP):
                    yield refuse(Reason.PACKED, f"member {number} is a zip file itself; unpack it first")
                else:
                    yield Part(content, digest, ordinal, number)
    except RuntimeError:  # zipfile's answer to a password
        yield refuse(Reason.PACKED, "a zip file under a password; unpack it first")
    except Exception:  # a broken directory, checksum or stream raises many things
        yield refuse(Reason.PACKED, "a zip file that is broken or packed in an unusual way; unpack it first")


def _listed(packed: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return sorted((m for m in packed.infolist() if not m.is_dir()), key=lambda m: (m.filename, m.header_offset))
