"""Single greyscale images of a folder, by the digest of their file: no geometry is asked for and none is made up.

`read` decodes in the process that calls it (`Archive.stills` in one that may be killed). Refuses colour, several frames
and what cannot be decoded; `read_folder`, for labelled images, which somebody chose, leaves it out.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medrec.dicom import header, pixels
from medrec.dicom.decoders import PixelError
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.pictures import Region

GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """One image: pixels (rows, columns) float32, black 0 and white 1; `instance` and `patient` are pseudonyms.

    `pixels_sha256` is the digest of the stored values with their shape, whatever the file's header and compression.
    `regions` are the calibrated and uncalibrated parts of an ultrasound image.
    """

    sha256: str
    instance: str
    patient: str
    pixels: npt.NDArray[np.float32]
    pixels_sha256: str
    regions: tuple[Region, ...] = ()


def read(data: bytes, pseudonyms: Pseudonyms) -> Still:
    """One file's bytes to its image. Raises PixelError when it is not a whole greyscale image of one frame."""
    head = header.parse_head(data)
    ds = None if head is None else header.parse(data)
    if head is None or ds is None:
        raise PixelError("not DICOM")
    problem = pixels.problem(ds, head[1], len(data))
    if problem is not None:
        raise PixelError(f"{problem[0]}: {problem[1]}")
    photometric, bits = header.code(ds, "PhotometricInterpretation"), header.whole(ds, "BitsStored") or 0
    if photometric not in GREY or (header.whole(ds, "NumberOfFrames") or 1) != 1:
        raise PixelError("not one greyscale image")
    if not 1 <= bits <= 16 or header.whole(ds, "PixelRepresentation") != 0:
        raise PixelError("grey levels are not whole numbers from 0 up")
    stored, _ = pixels.read(ds)
    brightness = stored[0].astype(np.float32) / (2**bits - 1)
    if photometric == "MONOCHROME1":  # DICOM PS3.3 C.7.6.3.1.2: the smallest value is white
        brightness = 1 - brightness
    digest = hashlib.sha256(f"{stored[0].shape}".encode())
    digest.update(np.ascontiguousarray(stored[0], "<i4").tobytes())
    of = pseudonyms.of
    return Still(
        hashlib.sha256(data).hexdigest(),
        of("instance", header.text(ds, "SOPInstanceUID")),
        of("patient", header.text(ds, "IssuerOfPatientID"), header.text(ds, "PatientID")),
        brightness,
        digest.hexdigest(),
        regions_of(ds),
    )


def regions_of(ds: Dataset) -> tuple[Region, ...]:
    """The two-dimensional regions of an ultrasound image, those without a scale in centimetres included.

    DICOM PS3.3 C.8.5.5: spatial format 1 is two-dimensional, unit 3 is centimetres; a region whose place cannot be
    read covers the whole image and has no scale.
    """
    found = []
    for region in header.items(ds, "SequenceOfUltrasoundRegions"):
        if header.whole(region, "RegionSpatialFormat") != 1:
            continue
        names = ("MinY0", "MinX0", "MaxY1", "MaxX1")
        box = [header.whole(region, f"RegionLocation{name}") for name in names]
        units = [header.whole(region, f"PhysicalUnits{axis}Direction") for axis in "XY"]
        x, y = (header.number(region, f"PhysicalDelta{axis}") for axis in "XY")
        top, left, bottom, right = (n if n is not None else -1 for n in box)
        if min(top, left) < 0 or bottom < top or right < left:
            found.append(Region(0, 0, int(ds.Rows) - 1, int(ds.Columns) - 1, None))
            continue
        scale = (10 * abs(y), 10 * abs(x)) if units == [3, 3] and x and y else None
        found.append(Region(top, left, bottom, right, scale))
    return tuple(found)


def read_folder(folder: Path, pseudonyms: Pseudonyms) -> Iterator[Still]:
    """Every file below a folder that `read` takes, in the order of its path."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            yield read(path.read_bytes(), pseudonyms)
        except Exception:  # decoders raise anything; the text may quote a header, so it is dropped
            continue
