"""What objects that go back to a patient's study must carry: read here, opaque to every room without DICOM.

Owns `Source`. It holds a name and UIDs, so that it never shows itself in text. Invariants: it is read from the very
files that were analysed (the first by its digest, each by its instance's pseudonym); nothing is filled in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from medrec.dicom import frames, header
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.errors import WorldError
from medrec.series import ScanFile, Series, Triple

_SOP_INSTANCE = Tag("SOPInstanceUID")


@dataclass(frozen=True, slots=True, repr=False)
class SourceImage:
    """One slice: its SOP class and instance, its frame (from 1) where a file holds several, and where it lies."""

    sop_class: str
    instance: str
    frame: int | None
    position_mm: Triple


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Source:
    """The header of a series' first file, without its pixels, and its slices in the order of `Series.slices`.

    `orientation` is ImageOrientationPatient, `spacing_mm` (between rows, between columns), `distance_mm` of
    slices along their normal, which a tilted gantry does not follow.
    """

    header: Dataset
    images: tuple[SourceImage, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, float]
    distance_mm: float
    rows: int
    columns: int


def source_of(series: Series, first: bytes, opened: Callable[[ScanFile], BinaryIO], names: Pseudonyms) -> Source:
    """Read what must be carried: `first` are the bytes of the first slice's file, `opened` opens that of any slice.

    Raises WorldError when a file is not the one that was analysed.
    """
    ds = header.parse(first)
    if ds is None:
        raise WorldError("the first file of a series is no longer DICOM")
    mosaic = frames.is_mosaic(ds)
    uids: dict[tuple[int, int], tuple[str, str]] = {}
    images = []
    for copies in series.slices:
        file = copies[0]
        place = file.ordinal, file.member
        if place not in uids:
            uids[place] = _identity(file, opened, names)
        several = "." in file.instance and not mosaic
        assert file.position_mm is not None
        images.append(SourceImage(*uids[place], file.frame + 1 if several else None, file.position_mm))
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "PerFrameFunctionalGroupsSequence"):
        if keyword in ds:
            del ds[keyword]
    shape = series.first
    assert shape.orientation is not None
    assert shape.spacing_mm is not None
    normal = np.cross(shape.orientation[:3], shape.orientation[3:])
    step_mm = abs(float(np.dot(series.direction_mm, normal)))
    return Source(ds, tuple(images), shape.orientation, shape.spacing_mm, step_mm, shape.rows, shape.columns)


def _identity(file: ScanFile, opened: Callable[[ScanFile], BinaryIO], names: Pseudonyms) -> tuple[str, str]:
    """(SOP class, SOP instance), which must be those of the file that was indexed; the pixels are not read."""

    def beyond(tag: BaseTag, vr: str | None, length: int) -> bool:
        return bool(tag > _SOP_INSTANCE)

    with opened(file) as stream:
        ds = read_partial(stream, stop_when=beyond, force=True)
    instance = header.text(ds, "SOPInstanceUID")
    if names.of("instance", instance) != file.instance.split(".")[0]:
        raise WorldError(f"file {file.ordinal} of the input changed while it was being analysed")
    return header.text(ds, "SOPClassUID"), instance
