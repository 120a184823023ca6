"""The DICOM network: associations and DICOMweb. The one room that opens a connection to a PACS.

Beside `dicom` and `objects` it sees names and UIDs; what it says in errors and results is peers by their configured
name, counts and status codes. Invariants: a peer that is away is a `WorldError`, one that refuses us a `RefusedError`;
what is sent is what lies in the file.

`contexts` says what is negotiated (`conformance` writes it down), `association` opens and secures connections, `dimse`
and `web` speak to a PACS in either way behind `pacs`, `listener` is spoken to, `commitment` hears confirmations.
"""

from medrec.network.pacs import (
    Outcome,
    Pacs,
    Person,
    RefusedError,
    SeriesFound,
    StudyFound,
    UnansweredError,
    UnreachableError,
    Wanted,
)
from medrec.network.speaking import reach

__all__ = [
    "Outcome",
    "Pacs",
    "Person",
    "RefusedError",
    "SeriesFound",
    "StudyFound",
    "UnansweredError",
    "UnreachableError",
    "Wanted",
    "reach",
]
