"""From a header with pixel data to numbers: stored values, and values rescaled by DICOM's rule."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from medrec.dicom import header
from medrec.dicom.decoders import PixelError, available, decode, syntax_of
from medrec.dicom.frames import is_mosaic, mosaic_of
from medrec.dicom.header import Place
from medrec.series import Reason

MAX_SIDE_PX = 16384
MAX_PIXEL_BYTES = 2 * 2**30  # in one file, decoded


@dataclass(frozen=True, slots=True)
class Native:
    """How one plain frame lies in its file: `offset` in bytes, `kind` as numpy names it; `slope` None: as stored."""

    offset: int
    rows: int
    columns: int
    kind: str
    bits: int
    slope: float | None
    intercept: float | None

    def read(self, data: bytes | memoryview) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """(stored values, rescaled values), both (rows, columns), of the file's bytes."""
        count = self.rows * self.columns
        stored = np.frombuffer(data, self.kind, count, self.offset).reshape(self.rows, self.columns)
        stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        spare = 8 * stored.itemsize - self.bits
        if spare:  # what lies above BitsStored may be anything (PS3.5 8.1.1), and is dropped
            stored = (stored << spare) >> spare
        return stored, _line(stored, self.slope, self.intercept)


def native(ds: pydicom.FileDataset, place: Place) -> Native | None:
    """How the pixels of an uncompressed single greyscale frame lie; None for all other files, which `read` decodes."""
    syntax = syntax_of(ds)
    plain = (
        not syntax.is_encapsulated
        and not header.is_deflated(ds)
        and place.keyword == "PixelData"
        and (header.whole(ds, "NumberOfFrames") or 1) == 1
        and header.whole(ds, "SamplesPerPixel") == 1
        and not is_mosaic(ds)
        and not any(name in ds for name in ("PerFrameFunctionalGroupsSequence", "ModalityLUTSequence"))
    )
    allocated, stored = header.whole(ds, "BitsAllocated"), header.whole(ds, "BitsStored")
    if not plain or allocated not in (8, 16, 32) or stored is None or not 0 < stored <= allocated:
        return None
    sign = header.whole(ds, "PixelRepresentation")
    if sign not in (0, 1):
        return None
    # PS3.5 A.3: big endian files of 8 bits hold them in words only where the VR is OW; pydicom knows how.
    if not syntax.is_little_endian and allocated == 8:
        return None
    try:
        slope, intercept = _scale(ds)
    except PixelError:
        return None
    kind = f"{'<' if syntax.is_little_endian else '>'}{'i' if sign else 'u'}{allocated // 8}"
    return Native(place.offset, int(ds.Rows), int(ds.Columns), kind, stored, slope, intercept)


def problem(ds: pydicom.FileDataset, place: Place | None, size: int) -> tuple[Reason, str] | None:
    """What keeps the pixels of a file of `size` bytes from being read, as far as it shows without decoding them."""
    if place is None or place.length == 0 or place.offset >= size:
        return Reason.NO_PIXELS, "the file holds no pixel data, or ends before it"
    names = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel")
    sizes = [header.whole(ds, name) for name in names]
    if any(s is None or s <= 0 for s in sizes):
        return Reason.BROKEN, "Rows, Columns, BitsAllocated or SamplesPerPixel is absent or not positive"
    rows, columns, bits, samples = (int(s or 0) for s in sizes)
    frames = header.whole(ds, "NumberOfFrames") or 1
    if max(rows, columns) > MAX_SIDE_PX:
        return Reason.TOO_LARGE, f"{columns} x {rows} pixels; at most {MAX_SIDE_PX} on a side are read"
    expected = math.ceil(rows * columns * samples * frames * bits / 8)
    if not 0 < expected <= MAX_PIXEL_BYTES:
        return Reason.TOO_LARGE, f"more than {MAX_PIXEL_BYTES // 2**30} GiB of pixels in one file"
    syntax = syntax_of(ds)
    if not available(syntax):
        return Reason.NO_DECODER, syntax.name if syntax.is_transfer_syntax else "unknown transfer syntax"
    stored, high = header.whole(ds, "BitsStored"), header.whole(ds, "HighBit")
    if place.keyword == "PixelData" and stored is not None and high is not None and high != stored - 1:
        return Reason.BROKEN, "HighBit is not BitsStored - 1: which bits hold the value is not said"  # PS3.5 8.1.1
    if syntax.is_encapsulated or header.is_deflated(ds):
        return None
    if place.length is None:  # PS3.5 A.4
        return Reason.BROKEN, "its pixels are packed into items, which its transfer syntax does not know"
    if header.code(ds, "PhotometricInterpretation") == "YBR_FULL_422":
        expected = expected * 2 // 3  # PS3.3 C.7.6.3.1.2: two pixels share their colour
    there = min(place.length, size - place.offset)
    if there < expected:
        return Reason.TRUNCATED, f"{there} of {expected} bytes of pixels are there"
    return None


def read(ds: pydicom.FileDataset) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """(stored values, rescaled values) of a file, both (slices, rows, columns); a mosaic is taken apart.

    Raises PixelError; decoders raise anything.
    """
    stored = decode(ds)
    if is_mosaic(ds):
        mosaic = mosaic_of(ds)
        if mosaic is None or len(stored) != 1:
            raise PixelError("the mosaic cannot be taken apart")
        stored = mosaic.taken_apart(stored[0])
    values = rescaled(stored, ds)
    if not np.isfinite(values).all():
        raise PixelError("the pixels hold values that are not numbers")
    return stored, values


def rescaled(stored: npt.NDArray[Any], ds: Dataset) -> npt.NDArray[np.float32]:
    """Stored value x slope + intercept (DICOM PS3.3 C.11.1.1.2), frame by frame where frames have their own.

    Computed in double precision; a Modality LUT is looked up (C.11.1.1.1).
    """
    shared = header.item(ds, "SharedFunctionalGroupsSequence")
    own = list(header.items(ds, "PerFrameFunctionalGroupsSequence"))
    name = "PixelValueTransformationSequence"
    if len(own) == len(stored) and any(name in group for group in [shared, *own]):
        groups = [header.item(group if name in group else shared, name) for group in own]
        return np.stack([_line(s, *_scale(g)) for s, g in zip(stored, groups, strict=True)])
    if any(True for _ in header.items(ds, "ModalityLUTSequence")):
        return np.asarray(apply_modality_lut(stored, ds), np.float32)
    return _line(stored, *_scale(ds))


def _scale(ds: Dataset) -> tuple[float | None, float | None]:
    """(slope, intercept), (None, None) where stored values are not rescaled. Raises PixelError for half a rescale."""
    if not header.text(ds, "RescaleSlope") and not header.text(ds, "RescaleIntercept"):
        return None, None
    slope, intercept = header.number(ds, "RescaleSlope"), header.number(ds, "RescaleIntercept")
    if slope is None or intercept is None:  # each is required where the other is (type 1): neither is made up
        raise PixelError("RescaleSlope and RescaleIntercept are not both there and numbers")
    return slope, intercept


def _line(stored: npt.NDArray[Any], slope: float | None, intercept: float | None) -> npt.NDArray[np.float32]:
    if slope is None or intercept is None:
        return stored.astype(np.float32)
    if slope == 1.0 and intercept == int(intercept):  # exact in single precision, and faster
        return stored.astype(np.float32) + np.float32(intercept)
    return (stored * slope + intercept).astype(np.float32)
