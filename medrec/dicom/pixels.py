"""From a header with pixel data to numbers: stored values, and values rescaled by DICOM's rule."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut

from medrec.dicom import header
from medrec.dicom.decoders import PixelError, available, decode, syntax_of
from medrec.dicom.frames import is_mosaic, mosaic_of
from medrec.series import Reason

MAX_SIDE_PX = 16384
ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def problem(ds: pydicom.FileDataset) -> tuple[Reason, str] | None:
    """What keeps the pixels from being read, as far as it shows without decoding them."""
    element = next((ds[k] for k in ELEMENTS if k in ds), None)
    if element is None or not element.value:
        return Reason.NO_PIXELS, "the file holds no pixel data, or ends before it"
    sizes = [header.whole(ds, name) for name in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel")]
    if any(s is None or s <= 0 for s in sizes):
        return Reason.BROKEN, "Rows, Columns, BitsAllocated or SamplesPerPixel is absent or not positive"
    rows, columns, bits, samples = (int(s or 0) for s in sizes)
    if max(rows, columns) > MAX_SIDE_PX:
        return Reason.TOO_LARGE, f"{columns} x {rows} pixels; at most {MAX_SIDE_PX} on a side are read"
    syntax = syntax_of(ds)
    if not available(syntax):
        return Reason.NO_DECODER, syntax.name if syntax.is_transfer_syntax else "unknown transfer syntax"
    if syntax.is_encapsulated:
        return None
    frames = header.whole(ds, "NumberOfFrames") or 1
    expected = math.ceil(rows * columns * samples * frames * bits / 8)
    if header.code(ds, "PhotometricInterpretation") == "YBR_FULL_422":
        expected = expected * 2 // 3  # PS3.3 C.7.6.3.1.2: two pixels share their colour
    if len(element.value) < expected:
        return Reason.TRUNCATED, f"{len(element.value)} of {expected} bytes of pixels are there"
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
        return np.stack([_line(s, g) for s, g in zip(stored, groups, strict=True)])
    if any(True for _ in header.items(ds, "ModalityLUTSequence")):
        return np.asarray(apply_modality_lut(stored, ds), np.float32)
    return _line(stored, ds)


def _line(stored: npt.NDArray[Any], ds: Dataset) -> npt.NDArray[np.float32]:
    if not header.text(ds, "RescaleSlope") and not header.text(ds, "RescaleIntercept"):
        return stored.astype(np.float32)
    slope, intercept = header.number(ds, "RescaleSlope"), header.number(ds, "RescaleIntercept")
    if slope is None or intercept is None:  # each is required where the other is (type 1): neither is made up
        raise PixelError("RescaleSlope and RescaleIntercept are not both there and numbers")
    if slope == 1.0 and intercept == int(intercept):  # exact in single precision, and faster
        return stored.astype(np.float32) + np.float32(intercept)
    return (stored * slope + intercept).astype(np.float32)
