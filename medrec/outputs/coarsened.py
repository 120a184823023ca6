"""coarse.nii.gz: the grid's input at about 3 mm, for the registration of the patient's next study; never sent anywhere.

Made of the images as they may be shown (burned-in text covered). Invariants: the same case gives the same bytes; what
is read back is what was written.
"""

import gzip
import io
from pathlib import Path

import nibabel
import numpy as np

from medrec.coarse import Coarse, coarse_of
from medrec.report import Case
from medrec.volume import LPS_TO_RAS

NAME = "coarse.nii.gz"


def write(case: Case, folder: Path) -> None:
    """Write the coarse image (x, y, z) uint8 into `folder`; nothing when nothing was analysed."""
    if case.labels is None or case.card is None:
        return
    coarse = coarse_of(case.volumes[case.card.grid])
    image = nibabel.Nifti1Image(coarse.levels, LPS_TO_RAS @ coarse.affine_ijk_to_lps)
    image.header.set_xyzt_units("mm")
    packed = io.BytesIO()
    # Neither a file name nor a time: both would change the bytes (RFC 1952, section 2.3).
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
        stream.write(image.to_bytes())
    (folder / NAME).write_bytes(packed.getvalue())


def read(data: bytes) -> Coarse:
    """The coarse image in the bytes of a file. Raises ValueError or OSError when they are none."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    return Coarse(np.asarray(image.dataobj).astype(np.uint8), LPS_TO_RAS @ np.asarray(image.affine, np.float64))
