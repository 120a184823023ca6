"""Taking results back: a Key Object Selection that rejects them (IHE Radiology, Image Object Change Management)."""

from collections.abc import Sequence
from pathlib import Path

import pydicom
from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from pydicom.sr.codedict import codes

from medrec import __version__
from medrec.objects import uids
from medrec.objects.carried import CHARACTERS, anonymous
from medrec.objects.outbox import Written, written

SERIES_NUMBER = 9009
# PS3.16 CID 7011: 113001 and 113037.
TITLES = {
    "quality": codes.DCM.RejectedForQualityReasons,
    "safety": codes.DCM.RejectedForPatientSafetyReasons,
}
NAME = "rejection.dcm"


def reject(objects: Sequence[Path], reason: str, case: str, at: str) -> Written:
    """The document that rejects the objects of a case; `reason` is a key of TITLES, `at` ISO-8601 UTC."""
    headers = (pydicom.dcmread(path, stop_before_pixels=True) for path in objects)
    rejected = list({ds.SOPInstanceUID: ds for ds in headers}.values())
    (who, *_) = [anonymous(ds) for ds in rejected]
    document = KeyObjectSelectionDocument(
        evidence=rejected,
        content=KeyObjectSelection(document_title=TITLES[reason], referenced_objects=rejected),
        series_instance_uid=uids.from_words("series", case, at, "rejection", reason),
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids.UNKNOWN,
        instance_number=1,
        manufacturer="medrec",
        institution_name=None,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        specific_character_set=CHARACTERS,
        series_description="Rejected AI results",
        manufacturer_model_name="medrec",
        software_versions=__version__,
    )
    document.update(who)
    date, time = uids.moment(at, who.get("TimezoneOffsetFromUTC", ""))
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(document, f"{name}Date", date)
        setattr(document, f"{name}Time", time)
    for item in document.get("ContributingEquipmentSequence", ()):  # highdicom's own, with the clock's time
        item.ContributionDateTime = date + time
    return written(NAME, document)
