"""Single greyscale images of a folder, by the digest of their file: no geometry is asked for and none is made up.

For labelled images, which somebody chose: unlike `Archive` it decodes in its own process. Refuses colour, several
frames and what cannot be decoded, by leaving it out.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medrec.dicom import header, pixels
from medrec.dicom.decoders import PixelError
from medrec.dicom.pseudonyms import Pseudonyms

GREY = ("MONOCHROME1", "MONOCHROME2")


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """One image: pixels (rows, columns) float32, black 0 and white 1; `instance` and `patient` are pseudonyms.

    `pixels_sha256` is the digest of the stored values with their shape, whatever the file's header and compression.
    """

    sha256: str
    instance: str
    patient: str
    pixels: npt.NDArray[np.float32]
    pixels_sha256: str


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
    )


def read_folder(folder: Path, pseudonyms: Pseudonyms) -> Iterator[Still]:
    """Every file below a folder that `read` takes, in the order of its path."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            yield read(path.read_bytes(), pseudonyms)
        except Exception:  # decoders raise anything; the text may quote a header, so it is dropped
            continue
