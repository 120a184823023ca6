"""DICOM objects that carry a result back to the study that it came from: segmentation, report, pages, rejection.

Beside `dicom`, the one room that knows whose study it is: a `Source` comes in, files go to the outbox, nothing else.
Refuses what cannot be returned by name (`NotReturnableError`). Invariants: a UID is a function of content and dates
come from the case record, so that writing again gives the same bytes; refused and failed studies have no objects.

`uids` names, `carried` knows what every object carries, `dicom_seg`, `dicom_sr` and `encapsulated_pdf` (with `page`)
write one kind each; `outbox` puts them on the disk, `reviewed` writes them again once a person accepted them or said
which lesions are known, `rejection`
takes them back.
"""

import logging
import warnings

from medrec.objects.carried import NotReturnableError
from medrec.objects.dicom_seg import tracking
from medrec.objects.outbox import FILES, REASON, Label, Written, label, make, place, refusal
from medrec.objects.rejection import reject
from medrec.objects.reviewed import accept, match

# Whatever highdicom has to say would quote the header.
warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")
logging.getLogger("highdicom").addHandler(logging.NullHandler())
logging.getLogger("highdicom").propagate = False

__all__ = [
    "FILES",
    "REASON",
    "Label",
    "NotReturnableError",
    "Written",
    "accept",
    "label",
    "make",
    "match",
    "place",
    "refusal",
    "reject",
    "tracking",
]
