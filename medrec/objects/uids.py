"""UIDs that follow from content: equal bytes have one, different bytes never share one.

A retry therefore sends the very object that was sent before. The root is 2.25 with a UUID made of a SHA-256 (DICOM
PS3.5 B.2), which needs no registration.
"""

import hashlib
import io
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pydicom.dataset import Dataset
from pydicom.uid import UID

# Stands in an object while its own UID is being found; as long as every UID of an object, so that nothing moves.
UNKNOWN = f"2.25.1{38 * '0'}"


def from_words(*words: str) -> str:
    """The UID that belongs to these words, always the same."""
    return f"2.25.{_number(hashlib.sha256(chr(0).join(('medrec', *words)).encode()).digest())}"


def seal(ds: Dataset) -> bytes:
    """A finished data set as the bytes of a file, under the UID that follows from all else in it."""
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(UNKNOWN)
    packed = io.BytesIO()
    ds.save_as(packed, enforce_file_format=True)
    own = UID(_of(packed.getvalue()))
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = own
    return packed.getvalue().replace(UNKNOWN.encode(), own.encode())


def holds(content: bytes, uid: str) -> bool:
    """Whether a file is still the one that its UID was made of."""
    return len(uid) == len(UNKNOWN) and _of(content.replace(uid.encode(), UNKNOWN.encode())) == uid


def _of(content: bytes) -> str:
    """The UID of a file in which `UNKNOWN` stands for it."""
    digest = hashlib.sha256(content).digest()
    while _number(digest) < 10**38:  # all have as many digits as UNKNOWN
        digest = hashlib.sha256(digest).digest()
    return f"2.25.{_number(digest)}"


def _number(digest: bytes) -> int:
    return UUID(bytes=digest[:16], version=4).int


def moment(created: str, offset: str) -> tuple[str, str]:
    """(DA, TM) of a case's ISO-8601 UTC time, in the time zone that the source tells (±HHMM), else in UTC."""
    at = datetime.fromisoformat(created).astimezone(UTC)
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        at += timedelta(minutes=minutes if offset[0] == "+" else -minutes)
    return f"{at:%Y%m%d}", f"{at:%H%M%S}"
