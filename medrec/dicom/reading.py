"""A folder's files as bytes: each read once, hashed, and zip files opened within bounds.

Refuses by value what is too large or cannot be read. A zip file of scans counts as one file: its members have its
digest and ordinal, and a number of their own. Nothing is ever unpacked to disk, and a member's name is used for
nothing but the order.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medrec.errors import WorldError
from medrec.series import Reason, Refused

MAX_FILE_BYTES = 2 * 2**30  # the largest that native pixel data in one element can sensibly be; zip files unpacked too
MAX_MEMBERS = 100_000
ZIP = b"PK\3\4"


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
    """Every file below a folder, in the order of its path; a file stands for itself.

    Raises WorldError when a folder cannot be listed: files would be missed without a word.
    """

    def fail(error: OSError) -> None:
        raise WorldError(f"a folder below the input cannot be listed: {os.strerror(error.errno or 0)}")

    if folder.is_file():
        yield folder
        return
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        place = Path(root).stat()
        if (place.st_dev, place.st_ino) in seen:  # a link back to a folder that was walked already
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_symlink() and not path.exists():
                yield path  # a link to nothing is refused as unreadable, not overlooked
            elif path.is_file():
                yield path


def parts_of(path: Path, ordinal: int) -> list[Part | Refused]:
    """The bytes of a file, or of each member of a zip file."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            return [Refused(digest, ordinal, Reason.TOO_LARGE, f"more than {MAX_FILE_BYTES // 2**30} GiB")]
        data = path.read_bytes()
    except OSError as error:
        return [Refused("", ordinal, Reason.UNREADABLE, os.strerror(error.errno or 0))]
    digest = hashlib.sha256(data).hexdigest()
    if not data.startswith(ZIP):
        return [Part(data, digest, ordinal)]
    return list(_members(data, digest, ordinal))


def part_again(path: Path, digest: str, ordinal: int, member: int) -> Part:
    """One part of a file that was read before. Raises WorldError when it is gone or has changed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WorldError(f"file {ordinal} of the input is gone: {os.strerror(error.errno or 0)}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise WorldError(f"file {ordinal} of the input changed while it was being analysed")
    if not member:
        return Part(data, digest, ordinal)
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        return Part(packed.read(_listed(packed)[member - 1]), digest, ordinal, member)


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
