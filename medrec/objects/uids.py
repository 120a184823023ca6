"""UIDs that follow from content: equal bytes have one, different bytes never share one.

A retry therefore sends the very object that was sent before. The root is 2.25 with a UUID made of a SHA-256 (DICOM
PS3.5 B.2), which needs no registration.
"""

import hashlib
from datetime import UTC, datetime, timedelta
from uuid import UUID

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

UNKNOWN = "2.25.0"  # stands in the content while its own UID is being found


def from_words(*words: str) -> str:
    """The UID that belongs to these words, always the same."""
    return _uid(hashlib.sha256("\0".join(("medrec", *words)).encode()).digest())


def from_content(ds: Dataset) -> str:
    """The UID of a data set whose own SOP Instance UID is `UNKNOWN`: a function of all its other bytes."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, False
    write_dataset(stream, ds)
    return _uid(hashlib.sha256(stream.getvalue()).digest())


def sign(ds: Dataset) -> str:
    """Give a finished data set the UID that follows from all else in it."""
    ds.SOPInstanceUID = UNKNOWN
    ds.SOPInstanceUID = from_content(ds)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return str(ds.SOPInstanceUID)


def moment(created: str, offset: str) -> tuple[str, str]:
    """(DA, TM) of a case's ISO-8601 UTC time, in the time zone that the source tells (±HHMM), else in UTC."""
    at = datetime.fromisoformat(created).astimezone(UTC)
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        at += timedelta(minutes=minutes if offset[0] == "+" else -minutes)
    return f"{at:%Y%m%d}", f"{at:%H%M%S}"


def _uid(digest: bytes) -> str:
    return f"2.25.{UUID(bytes=digest[:16], version=4).int}"
