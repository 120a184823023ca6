"""segmentation.nii.gz: the mask on the grid of the series it was made from, for any NIfTI viewer.

Invariants: 1 inside of a reported lesion and 0 elsewhere; voxel [i, j, k] is the volume's voxel [i, j, k];
the same mask gives the same bytes.
"""

import gzip
import io
from pathlib import Path

import nibabel
import numpy as np

from medrec.report import Case
from medrec.volume import LPS_TO_RAS, is_sheared

NAME = "segmentation.nii.gz"
SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT: coordinates are those of the scanner (nifti1.h)


def write(case: Case, folder: Path) -> None:
    """Write the mask (i, j, k) uint8 into `folder`; nothing when the case has no labels, or the card outlines none."""
    if case.labels is None or case.card is None or case.card.segmentation is None:
        return
    affine = LPS_TO_RAS @ case.volumes[case.card.grid].affine_ijk_to_lps
    image = nibabel.Nifti1Image((case.labels > 0).astype(np.uint8), affine)
    image.set_sform(affine, SCANNER)
    # A qform knows no shear: programs that prefer it would show a tilted stack upright.
    image.set_qform(affine, 0 if is_sheared(affine) else SCANNER)
    image.header.set_xyzt_units("mm")
    (folder / NAME).write_bytes(_gzip(image.to_bytes()))


def _gzip(content: bytes) -> bytes:
    packed = io.BytesIO()
    # Neither a file name nor a time: both would change the bytes (RFC 1952, section 2.3).
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as stream:
        stream.write(content)
    return packed.getvalue()
