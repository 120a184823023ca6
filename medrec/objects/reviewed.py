"""The same results once a person has accepted them: other words, other UIDs, the same lesions.

The pages (PDF) are not among them: they say "unreviewed" in print. Invariant: a function of the objects, of who
accepted them and when, so that a retry sends the same bytes.
"""

from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from medrec.objects import uids
from medrec.objects.dicom_sr import UNREVIEWED
from medrec.objects.outbox import FILES, Written, written
from medrec.report import DISCLAIMER


def accept(folder: Path, reviewer: str, at: str) -> tuple[Written, ...]:
    """Segmentation and report of a case as accepted by `reviewer` at `at` (ISO-8601 UTC)."""
    found = {kind: folder / FILES[kind] for kind in ("seg", "sr")}
    objects = {kind: pydicom.dcmread(path) for kind, path in found.items() if path.is_file()}
    new: dict[str, str] = {}
    accepted = []
    for kind, ds in objects.items():
        before = str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID)
        _say(ds, reviewer, at, kind)
        _point(ds, new)
        accepted.append(written(FILES[kind], ds))
        new |= dict(zip(before, (str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID)), strict=True))
    return tuple(accepted)


def _say(ds: Dataset, reviewer: str, at: str, kind: str) -> None:
    date, time = uids.moment(at, ds.get("TimezoneOffsetFromUTC", ""))
    ds.SeriesDescription = ds.SeriesDescription.replace("AI, unreviewed", "AI, reviewed")
    ds.SeriesInstanceUID = uids.from_words("series", ds.SeriesInstanceUID, reviewer, at)
    ds.InstanceCreationDate, ds.InstanceCreationTime = date, time
    if kind != "sr":
        return
    observer = Dataset()
    observer.VerifyingObserverName, observer.VerifyingOrganization = reviewer, "medrec"
    observer.VerificationDateTime = date + time
    observer.VerifyingObserverIdentificationCodeSequence = []
    ds.VerificationFlag, ds.PreliminaryFlag, ds.VerifyingObserverSequence = "VERIFIED", "FINAL", [observer]
    for item in ds.iterall():
        if item.keyword == "TextValue" and item.value == UNREVIEWED:
            item.value = f"Made by a network; the report was accepted by a person. {DISCLAIMER}"


def _point(ds: Dataset, new: dict[str, str]) -> None:
    """References to what has a new UID, and to the series that it stands in."""
    for element in ds.iterall():
        if element.keyword in ("ReferencedSOPInstanceUID", "SeriesInstanceUID") and element.value in new:
            element.value = new[element.value]
