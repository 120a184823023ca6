"""What is left of a case: one file per writer, each named here and nowhere else.

A writer gets a finished case and a folder, and writes exactly the file or folder of its name (mask, coarse image,
visit and thumbnail are left out where nothing was analysed). Invariants: the same case gives the same bytes, so that
the ledger's digests can be checked by writing again; writers know neither each other nor the clock; nothing that
identifies a patient reaches them.
"""

from collections.abc import Callable
from pathlib import Path

from medrec.outputs import as_json, coarsened, html, masks, nifti, thumbnail, visit
from medrec.report import Case, PictureCase

Writer = Callable[[Case, Path], None]
PictureWriter = Callable[[PictureCase, Path], None]

OUTPUTS: dict[str, Writer] = {
    "report.html": html.write,
    "report.json": as_json.write,
    "segmentation.nii.gz": nifti.write,
    "coarse.nii.gz": coarsened.write,
    "visit.json": visit.write,
    "thumbnail.svg": thumbnail.write,
}

PICTURE_OUTPUTS: dict[str, PictureWriter] = {
    "report.html": html.write,
    "report.json": as_json.write,
    "masks": masks.write,
    "thumbnail.svg": thumbnail.write,
}
