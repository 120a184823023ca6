"""Regions that somebody marked on a series: DICOM Segmentation (PS3.3 A.51) and RT Structure Set (A.19).

`read` parses what another tool wrote into frames or contours in the patient's space, under pseudonyms; whether they fit
a series is for others to say. Refuses, by PixelError, what leaves a choice: probabilities, several regions of which
none is named, a region that is no closed outline. Names of regions are free text and stay here: patterns come in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

from medrec.dicom import header
from medrec.dicom.decoders import PixelError, decode
from medrec.dicom.pixels import MAX_PIXEL_BYTES, MAX_SIDE_PX
from medrec.dicom.pseudonyms import Pseudonyms

SEGMENTATION, LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
EVERY = "all"  # what a person says for each of them
NOT_A_LABEL = "it is neither a DICOM Segmentation nor an RT Structure Set"
MAX_POINTS = 5_000_000  # of one structure set: a thousand slices of five thousand points
OUTLINES = {"CLOSED_PLANAR": False, "CLOSEDPLANAR_XOR": True}
Bits = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """One frame of a segment: marks (rows, columns), and where it lies as in `ScanFile`; None where it does not say.

    `instance` is the pseudonym of the image that it was drawn on, "" where it names none.
    """

    instance: str
    position_mm: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    marks: Bits


@dataclass(frozen=True, slots=True, eq=False)
class Contour:
    """One closed outline: corners (n, 3) in LPS mm; `alternates` where it takes away from what others enclose."""

    instance: str
    points_mm: npt.NDArray[np.float64]
    alternates: bool


@dataclass(frozen=True, slots=True, eq=False)
class Marked:
    """What one object marks, and of whom: planes of a segmentation, or contours of a structure set.

    `series` and `instances` are those that it refers to.
    """

    study: str
    patient: str
    series: frozenset[str]
    instances: frozenset[str]
    planes: tuple[Plane, ...] = ()
    contours: tuple[Contour, ...] = ()


def read(data: bytes, pseudonyms: Pseudonyms, wanted: Sequence[str]) -> Marked:
    """An object's regions; `wanted` are the numbers or names of those that count, none where there is only one.

    Raises PixelError with a phrase for people; parsers raise anything.
    """
    ds = header.parse(data)
    if ds is None:
        raise PixelError("it is not DICOM")
    kind = header.text(ds, "SOPClassUID")
    if kind in (SEGMENTATION, LABEL_MAP):
        return _segmentation(ds, pseudonyms, wanted)
    if kind == STRUCTURES:
        return _structures(ds, pseudonyms, wanted)
    raise PixelError(NOT_A_LABEL)


def _chosen(names: dict[int, str], wanted: Sequence[str], what: str) -> set[int]:
    """The numbers of the regions that count. Raises PixelError where that is not said."""
    if not names:
        raise PixelError(f"it holds no {what}")
    there = f"it holds {len(names)} {what}s, numbers {_listed(sorted(names))}"
    if not wanted:
        if len(names) > 1:
            raise PixelError(f"{there}: say with --segment which of them count")
        return set(names)
    chosen = set()
    for one in wanted:
        said = one.casefold()
        fits = {n for n, name in names.items() if said in (str(n), name.casefold()) or said == EVERY}
        if not fits:
            raise PixelError(f"{there}, and none that is called {one!r}")
        chosen |= fits
    return chosen


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:20])) + (" and more" if len(numbers) > 20 else "")


# Segmentation


def _segmentation(ds: pydicom.FileDataset, pseudonyms: Pseudonyms, wanted: Sequence[str]) -> Marked:
    segments = {
        number: header.text(s, "SegmentLabel")
        for s in header.items(ds, "SegmentSequence")
        if (number := header.whole(s, "SegmentNumber")) is not None and number > 0
    }
    chosen = _chosen(segments, wanted, "segment")
    kind = header.code(ds, "SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise PixelError("its SegmentationType is none of BINARY, FRACTIONAL and LABELMAP")
    own = list(header.items(ds, "PerFrameFunctionalGroupsSequence"))
    stored = _frames(ds, len(own))
    shared = header.item(ds, "SharedFunctionalGroupsSequence")
    planes = []
    for frame, group in zip(stored, own, strict=True):
        marks = _marks(frame, kind, chosen, _segment_of(group, shared), _full(ds))
        if marks is not None:
            planes.append(_plane(marks, group, shared, pseudonyms))
    series = frozenset(
        pseudonyms.of("series", header.text(s, "SeriesInstanceUID"))
        for s in header.items(ds, "ReferencedSeriesSequence")
    )
    instances = frozenset(p.instance for p in planes if p.instance)
    return Marked(*_whose(ds, pseudonyms), series, instances, planes=tuple(planes))


def _frames(ds: pydicom.FileDataset, groups: int) -> npt.NDArray[Any]:
    """Stored values (frames, rows, columns)."""
    rows, columns, frames = (header.whole(ds, n) for n in ("Rows", "Columns", "NumberOfFrames"))
    if rows is None or columns is None or not 0 < rows <= MAX_SIDE_PX or not 0 < columns <= MAX_SIDE_PX:
        raise PixelError("its Rows or Columns are absent or impossible")
    if frames is None or frames != groups:
        raise PixelError(f"it promises {frames} frames and describes {groups}")
    if rows * columns * frames > MAX_PIXEL_BYTES:
        raise PixelError("its frames are more than are read from one file")
    stored = decode(ds)
    if stored.shape != (frames, rows, columns):
        raise PixelError("its pixels have another size than its header says")
    return stored


def _full(ds: Dataset) -> int:
    return header.whole(ds, "MaximumFractionalValue") or 0


def _segment_of(group: Dataset, shared: Dataset) -> int | None:
    name = "SegmentIdentificationSequence"
    return header.whole(header.item(group if name in group else shared, name), "ReferencedSegmentNumber")


def _marks(frame: npt.NDArray[Any], kind: str, chosen: set[int], segment: int | None, full: int) -> Bits | None:
    """What a frame marks of the chosen segments; None where it is another one's."""
    if kind == "LABELMAP":
        return np.isin(frame, sorted(chosen))
    if segment is None:
        raise PixelError("one of its frames does not say which segment it is of")
    if segment not in chosen:
        return None
    if not np.isin(frame, (0, full if kind == "FRACTIONAL" else 1)).all():
        raise PixelError(
            "it is fractional: it holds probabilities, and a label says yes or no; "
            "export it as BINARY from the tool that made it"
        )
    return np.asarray(frame > 0)


def _plane(marks: Bits, group: Dataset, shared: Dataset, pseudonyms: Pseudonyms) -> Plane:
    def value(sequence: str, name: str, count: int) -> tuple[float, ...] | None:
        return header.numbers(header.item(group if sequence in group else shared, sequence), name, count)

    return Plane(
        _drawn_on(group, pseudonyms),
        value("PlanePositionSequence", "ImagePositionPatient", 3),
        value("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        value("PixelMeasuresSequence", "PixelSpacing", 2),
        marks,
    )


def _drawn_on(group: Dataset, pseudonyms: Pseudonyms) -> str:
    """The one image, or frame of one, that a frame was drawn on; "" where it names none or several."""
    images = [
        image
        for derived in header.items(group, "DerivationImageSequence")
        for image in header.items(derived, "SourceImageSequence")
    ]
    return _instance(images[0], pseudonyms) if len(images) == 1 else ""


def _instance(reference: Dataset, pseudonyms: Pseudonyms) -> str:
    uid = header.text(reference, "ReferencedSOPInstanceUID")
    if not uid:
        return ""
    frame = header.whole(reference, "ReferencedFrameNumber")
    name = pseudonyms.of("instance", uid)
    return name if frame is None else f"{name}.{frame - 1}"


def _whose(ds: Dataset, pseudonyms: Pseudonyms) -> tuple[str, str]:
    """Pseudonyms of study and patient, as `parsing` gives them."""
    study = pseudonyms.of("study", header.text(ds, "StudyInstanceUID"))
    patient_id = header.text(ds, "PatientID")
    if not patient_id:
        return study, pseudonyms.of("nobody", study)
    return study, pseudonyms.of("patient", header.text(ds, "IssuerOfPatientID"), patient_id)


# Structure set


def _structures(ds: pydicom.FileDataset, pseudonyms: Pseudonyms, wanted: Sequence[str]) -> Marked:
    names = {
        number: header.text(roi, "ROIName")
        for roi in header.items(ds, "StructureSetROISequence")
        if (number := header.whole(roi, "ROINumber")) is not None
    }
    chosen = _chosen(names, wanted, "structure")
    contours: list[Contour] = []
    points = 0
    for roi in header.items(ds, "ROIContourSequence"):
        if header.whole(roi, "ReferencedROINumber") not in chosen:
            continue
        for item in header.items(roi, "ContourSequence"):
            contours.append(contour := _contour(item, pseudonyms))
            points += len(contour.points_mm)
            if points > MAX_POINTS:
                raise PixelError(f"its outlines have more than {MAX_POINTS} points")
    series = frozenset(
        pseudonyms.of("series", header.text(s, "SeriesInstanceUID"))
        for frame in header.items(ds, "ReferencedFrameOfReferenceSequence")
        for study in header.items(frame, "RTReferencedStudySequence")
        for s in header.items(study, "RTReferencedSeriesSequence")
    )
    instances = frozenset(c.instance for c in contours if c.instance)
    return Marked(*_whose(ds, pseudonyms), series, instances, contours=tuple(contours))


def _contour(item: Dataset, pseudonyms: Pseudonyms) -> Contour:
    """PS3.3 C.8.8.6: the corners of one outline, which closes itself."""
    kind = header.code(item, "ContourGeometricType")
    if kind not in OUTLINES:
        raise PixelError("a structure that counts is not made of closed planar outlines alone")
    count = header.whole(item, "NumberOfContourPoints")
    found = header.values(item, "ContourData")
    if len(found) > 3 * MAX_POINTS:
        raise PixelError(f"its outlines have more than {MAX_POINTS} points")
    values = header.numbers(item, "ContourData", len(found))
    if values is None or len(values) % 3 or (count is not None and 3 * count != len(values)):
        raise PixelError("the corners of one of its outlines cannot be read")
    if len(values) < 9:
        raise PixelError("one of its outlines has fewer than three corners")
    image = header.item(item, "ContourImageSequence")
    points = np.array(values, np.float64).reshape(-1, 3)
    return Contour(_instance(image, pseudonyms), points, OUTLINES[kind])
