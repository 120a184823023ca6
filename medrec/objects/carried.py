"""From a source's header to what every object carries: whose it is, of which study, and from which images.

Owns the list of what is carried. Text is carried as it is, in UTF-8; what is not well-formed is left empty (it may
be, DICOM PS3.3 C.7.1.1 and C.7.2.1), because an object that a PACS refuses helps nobody. Refuses a source without
study, series or frame of reference, which are never made up, and one whose patient is not told in one line.
"""

import re
from collections.abc import Iterable, Mapping

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import UID, MRImageStorage

from medrec.dicom import Source, header
from medrec.dicom.source import SourceImage
from medrec.errors import DataError
from medrec.objects import uids
from medrec.report import Report

CHARACTERS = "ISO_IR 192"
# Present in every object, empty where the source does not say it (type 2).
PATIENT = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY = ("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
# Present where the source says them (type 3).
BESIDE = (
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDescription",
    "TimezoneOffsetFromUTC",
)
_LINE = r"[^\x00-\x1f\x7f\\]"  # one value, without what steers a terminal or a parser
WELL_FORMED = {
    "DA": re.compile(r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"),
    "TM": re.compile(r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"),
    "AS": re.compile(r"\d{3}[DWMY]"),
    "DS": re.compile(r"\d{1,8}(\.\d{1,6})?"),
    "SH": re.compile(_LINE + "{0,16}"),
    "LO": re.compile(_LINE + "{0,64}"),
    "PN": re.compile("{0}(={0}){{0,2}}".format(r"[^\x00-\x1f\x7f\\=]{0,64}")),
    "PatientSex": re.compile(r"[MFO]"),
    "TimezoneOffsetFromUTC": re.compile(r"[+-](0\d|1[0-4])[0-5]\d"),
}
# What tells whose it is goes back whole, however long it is there: half of it would be somebody else's.
WHOLE = {key: re.compile(_LINE + "*") for key in ("PatientID", "PatientName", "IssuerOfPatientID", "AccessionNumber")}


class NotReturnableError(DataError):
    """Nothing can go back to this study; the text says why, without a value of the header's."""


def identity(source: Source) -> Dataset:
    """Patient, study and frame of reference of a source. Raises NotReturnableError where one of them is missing."""
    found = Dataset()
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID"):
        value = header.text(source.header, keyword)
        if not UID(value).is_valid or value == uids.UNKNOWN:
            raise NotReturnableError(f"the source has no valid {keyword}")
        if keyword != "SeriesInstanceUID":
            setattr(found, keyword, value)
    for keyword in (*PATIENT, *STUDY):
        setattr(found, keyword, _value(source, keyword))
    for keyword in BESIDE:
        if value := _value(source, keyword):
            setattr(found, keyword, value)
    return found


def _value(source: Source, keyword: str) -> str:
    value = header.text(source.header, keyword)
    if keyword in WHOLE:
        if not WHOLE[keyword].fullmatch(value) or uids.UNKNOWN in value:
            raise NotReturnableError(f"the {keyword} of the source is no single line of text")
        return value
    pattern = WELL_FORMED.get(keyword) or WELL_FORMED.get(dictionary_VR(keyword))
    return value if pattern is None or pattern.fullmatch(value) else ""


def stand_ins(source: Source, who: Dataset, slices: Iterable[int]) -> list[Dataset]:
    """A single-frame header with its place for each of these slices: what highdicom asks for.

    Each stands under an instance of its own, of a single-frame class; `named` turns it into the real file and frame.
    They name nobody: highdicom's warnings quote names. `complete` says last of all whose the object is.
    """
    common = Dataset()
    for keyword in (*PATIENT, *STUDY):
        setattr(common, keyword, "")
    common.StudyInstanceUID, common.FrameOfReferenceUID = who.StudyInstanceUID, who.FrameOfReferenceUID
    common.Modality = header.code(source.header, "Modality")
    common.SeriesInstanceUID = header.text(source.header, "SeriesInstanceUID")
    common.Rows, common.Columns = source.rows, source.columns
    common.PixelSpacing, common.SliceThickness = list(source.spacing_mm), round(source.distance_mm, 6)
    common.ImageOrientationPatient = [round(c, 9) for c in source.orientation]
    found = []
    for k in slices:
        ds = Dataset()
        ds.update(common)
        ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, _stand_in(k)
        ds.ImagePositionPatient = [round(x, 9) for x in source.images[k].position_mm]
        found.append(ds)
    return found


def anonymous(ds: Dataset) -> Dataset:
    """Take whose it is out of a data set; returns what was taken."""
    taken = Dataset()
    for keyword in (*PATIENT, *STUDY, *BESIDE):
        if keyword in ds:
            setattr(taken, keyword, ds[keyword].value)
            setattr(ds, keyword, "")
    return taken


def references(source: Source) -> list[Dataset]:
    """A reference to each file of the source, once, in the order of the slices."""
    found = []
    for image in {i.instance: i for i in reversed(source.images)}.values():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class, image.instance
        found.append(item)
    return found[::-1]


def named(ds: Dataset, source: Source) -> None:
    """Put the real class, instance and frame in the place of each stand-in that an object refers to."""
    _rename(ds, {_stand_in(k): image for k, image in enumerate(source.images)})


def _stand_in(k: int) -> str:
    """The instance under which slice k stands until `named`; no file has it."""
    return f"2.25.0.{k + 1}"


def _rename(ds: Dataset, of: Mapping[str, SourceImage]) -> None:
    for element in ds:
        if element.VR != "SQ":
            continue
        kept, seen = [], set()
        for item in element.value:
            image = of.get(item.get("ReferencedSOPInstanceUID"))
            if image is not None:
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.sop_class, image.instance
                if image.frame is not None:
                    item.ReferencedFrameNumber = image.frame
                if (image.instance, image.frame) in seen:  # a file without frames that holds several slices
                    continue
                seen.add((image.instance, image.frame))
            kept.append(item)
            _rename(item, of)
        if len(kept) != len(element.value):
            element.value = kept


def complete(ds: Dataset, who: Dataset, report: Report, kind: str) -> None:
    """Last before it is sealed: identity, and dates from the case record."""
    ds.update(who)
    if ds.Modality != "SEG" and "FrameOfReferenceUID" in ds:
        del ds.FrameOfReferenceUID
    ds.SpecificCharacterSet = CHARACTERS
    date, time = uids.moment(report.created, who.get("TimezoneOffsetFromUTC", ""))
    for name in ("InstanceCreation", "Content", "Series"):
        setattr(ds, f"{name}Date", date)
        setattr(ds, f"{name}Time", time)
    for item in header.items(ds, "ContributingEquipmentSequence"):
        item.ContributionDateTime = date + time
    ds.SeriesInstanceUID = uids.from_words("series", report.case, report.created, kind)
