"""The same results in other words: once a person has accepted them, or has said which lesions are known from before.

Invariants: a function of the objects, of who accepted them and when, and of the matches, so that a retry sends the same
bytes; new words have new UIDs, and a lesion keeps its tracking UID unless a match says otherwise.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from medrec.objects import uids
from medrec.objects.dicom_sr import UNREVIEWED
from medrec.objects.outbox import FILES, PAGES, Written, written
from medrec.report import DISCLAIMER

Tracked = Mapping[int, tuple[str, str]]
"""(Tracking UID, Tracking ID) that a lesion has inherited, by its number."""
_POINTERS = ("ReferencedSOPInstanceUID", "SeriesInstanceUID", "UID", "TextValue")


def accept(folder: Path, reviewer: str, at: str, tracked: Tracked | None = None) -> tuple[Written, ...]:
    """The objects of a case as accepted by `reviewer` at `at` (ISO-8601 UTC).

    Pages that were written by a medrec which did not keep what they were drawn from are left out: they say
    "unreviewed" in print.
    """

    def say(ds: Dataset, kind: str) -> bool:
        ds.SeriesInstanceUID = uids.from_words("series", ds.SeriesInstanceUID, reviewer, at)
        _say(ds, reviewer, at, kind)
        if kind == "pdf":
            drawn = folder / PAGES
            if not drawn.is_file():
                return False
            from medrec.objects import encapsulated_pdf, page  # reportlab takes most of a second

            encapsulated_pdf.accept(ds, page.unpack(drawn.read_bytes()), reviewer, at[:10])
        return True

    return _again(folder, tracked or {}, say)


def match(folder: Path, tracked: Tracked) -> tuple[Written, ...]:
    """The objects of a case with the tracking UIDs that its lesions have inherited; its pages stay as they are."""

    def say(ds: Dataset, kind: str) -> bool:
        if kind != "pdf":
            known = [f"{number} {uid}" for number, (uid, _) in sorted(tracked.items())]
            ds.SeriesInstanceUID = uids.from_words("series", ds.SeriesInstanceUID, *known)
        return True

    return _again(folder, tracked, say)


def _again(folder: Path, tracked: Tracked, say: Callable[[Dataset, str], bool]) -> tuple[Written, ...]:
    """Each object in its new words, the segmentation first, to which the report points."""
    new: dict[str, str] = {}
    found = []
    for kind in ("seg", "sr", "pdf"):
        path = folder / FILES[kind]
        if not path.is_file():
            continue
        ds = pydicom.dcmread(path)
        before = str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID)
        if not say(ds, kind):
            continue
        if kind == "seg":
            _track(ds, tracked, new)
        for element in ds.iterall():
            if element.keyword in _POINTERS and element.value in new:
                element.value = new[element.value]
        found.append(written(FILES[kind], ds))
        new |= dict(zip(before, (str(ds.SOPInstanceUID), str(ds.SeriesInstanceUID)), strict=True))
    return tuple(found)


def _track(seg: Dataset, tracked: Tracked, new: dict[str, str]) -> None:
    """Give segments the tracking that they inherit; `new` then says what stands for what in the report."""
    for segment in seg.SegmentSequence:
        if segment.SegmentNumber in tracked:
            uid, words = tracked[segment.SegmentNumber]
            new |= {str(segment.TrackingUID): uid, str(segment.TrackingID): words}
            segment.TrackingUID, segment.TrackingID = uid, words


def _say(ds: Dataset, reviewer: str, at: str, kind: str) -> None:
    date, time = uids.moment(at, ds.get("TimezoneOffsetFromUTC", ""))
    ds.SeriesDescription = ds.SeriesDescription.replace("AI, unreviewed", "AI, reviewed")
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
