"""What is left of a case: one file per writer, each named here and nowhere else.

A writer gets a finished `Case` and a folder, and writes exactly the file of its name (the mask is left out
where nothing was segmented). Invariants: the same case gives the same bytes, so that the ledger's digests
can be checked by writing again; writers know neither each other nor the clock; nothing that identifies a
patient reaches them.
"""

from collections.abc import Callable
from pathlib import Path

from medrec.outputs import as_json, html, nifti
from medrec.report import Case

Writer = Callable[[Case, Path], None]

OUTPUTS: dict[str, Writer] = {
    "report.html": html.write,
    "report.json": as_json.write,
    "segmentation.nii.gz": nifti.write,
}
