"""What an object that came over the network says of itself, read without its pixels and without trust."""

import io

from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

from medrec.dicom import header

_STUDY = Tag("StudyInstanceUID")


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
