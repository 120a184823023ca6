"""What came over the network says of itself, read without trust: objects without their pixels, values of answers."""

import io
from collections.abc import Callable

from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from medrec.dicom import header
from medrec.errors import WorldError

_STUDY, _SERIES = Tag("StudyInstanceUID"), Tag("SeriesInstanceUID")


def study_of(content: bytes, instance: str | None = None) -> str | None:
    """The Study Instance UID of a whole file; None when it has no valid one, or is not the `instance` it came as."""

    def beyond(tag: BaseTag, vr: str | None, length: int) -> bool:
        return bool(tag > _STUDY)

    try:
        ds = read_partial(io.BytesIO(content), stop_when=beyond)
        study = header.text(ds, "StudyInstanceUID")
        same = instance is None or header.text(ds, "SOPInstanceUID") == instance
    except Exception:  # a crafted data set may make the parser raise anything
        return None
    return study if same and UID(study).is_valid else None


def value(answer: Dataset, keyword: str) -> str:
    """One value of an answer to a query as text; "" when it is not there, or is none."""
    try:
        return str(answer.get(keyword) or "")
    except Exception:  # pydicom converts when it is asked, and what came may be anything
        return ""


def uid(text: str) -> str:
    """A UID, "" when it is none: no answer gets into the next question, or into an address, as something else."""
    return text if UID(text).is_valid else ""


def number(text: str) -> int | None:
    """A count, None when it is none."""
    return int(text) if text.isascii() and text.isdecimal() else None


class Guard:
    """Lets through the objects of the series that was asked for, and counts them; remembers why one was not kept."""

    def __init__(self, study_uid: str, series_uid: str, keep: Callable[[str, bytes], bool]) -> None:
        self._wanted = study_uid, series_uid
        self._keep = keep
        self._came: set[str] = set()
        self._trouble: WorldError | None = None

    def __call__(self, study_uid: str, content: bytes) -> bool:
        """Keep an object. Raises PermissionError for one that was not asked for, WorldError when it cannot be kept."""
        series_uid, instance = _series_and_instance(content)
        if (study_uid, series_uid) != self._wanted or not instance:
            raise PermissionError
        try:
            new = self._keep(study_uid, content)
        except WorldError as error:
            self._trouble = error
            raise
        self._came.add(instance)
        return new

    def came(self) -> frozenset[str]:
        """The SOP Instance UIDs of what was kept. Raises WorldError when something could not be."""
        if self._trouble is not None:
            raise self._trouble
        return frozenset(self._came)


def _series_and_instance(content: bytes) -> tuple[str, str]:
    def beyond(tag: BaseTag, vr: str | None, length: int) -> bool:
        return bool(tag > _SERIES)

    try:
        ds = read_partial(io.BytesIO(content), stop_when=beyond)
        return header.text(ds, "SeriesInstanceUID"), header.text(ds, "SOPInstanceUID")
    except Exception:  # as above
        return "", ""
