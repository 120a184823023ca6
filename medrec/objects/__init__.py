"""DICOM objects that carry a result back to the study that it came from: segmentation, report, pages, rejection.

Beside `dicom`, the one room that knows whose study it is: a `Source` comes in, files go to the outbox, nothing else.
Refuses what cannot be returned by name (`NotReturnableError`). Invariants: a UID is a function of content and dates
come from the case record, so that writing again gives the same bytes; refused and failed studies have no objects.

`uids` names, `carried` knows what every object carries, `dicom_seg`, `dicom_sr` and `encapsulated_pdf` (with `page`)
write one kind each, `rejection` takes one back; `outbox` puts them on the disk.
"""

from medrec.objects.carried import NotReturnableError
from medrec.objects.outbox import FILES, REASON, Written, make, place, refusal

__all__ = ["FILES", "REASON", "NotReturnableError", "Written", "make", "place", "refusal"]
