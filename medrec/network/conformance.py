"""The DICOM conformance statement (PS3.2), printed from the lists that the code negotiates."""

from collections.abc import Iterable

from pydicom.uid import UID

from medrec import __version__
from medrec.network import contexts

HEAD = f"""# DICOM conformance statement

medrec {__version__}. Printed by `medrec conformance` from the lists that the code negotiates; a test compares it with
what is negotiated on the wire. Research use; not a medical device.

## Roles

| application entity | starts associations | accepts associations |
|---|---|---|
| `medrec receive` (title: `intake.receive.title`) | no | C-ECHO, C-STORE (SCP), from the titles in `callers` |
| `medrec pull` (title: the peer's `ours`) | C-FIND, C-GET, C-MOVE (SCU) | C-STORE during C-MOVE, as `medrec receive` |
| `medrec deliver`, a night's end (title: the peer's `ours`) | C-FIND, C-STORE, N-ACTION (SCU) | N-EVENT-REPORT (SCU) |

Maximum PDU {contexts.MAX_PDU_BYTES} bytes; one operation at a time; TLS 1.2 or newer with certificates on both sides,
by configuration. The same over DICOMweb: QIDO-RS, WADO-RS and STOW-RS as a user agent.
"""
TAIL = """
## What is written

- Segmentation: BINARY or FRACTIONAL (probability), never LABELMAP; one segment a lesion, category 49755003 SCT
  "Morphologically Abnormal Structure", type 52988006 SCT "Lesion"; none where nothing was marked.
- Comprehensive 3D SR: TID 1500 with a TID 1411 group for each lesion (volume, long and short axis, longest 3D diameter)
  and the verdict as text under Qualitative Evaluations; always COMPLETE, UNVERIFIED and PRELIMINARY until accepted.
- Encapsulated PDF: the report's pages, with the patient's name on them.
- Key Object Selection: 113001 DCM or 113037 DCM, rejecting everything that a case has sent (IHE IOCM).
- Patient and study attributes are those of the source, in ISO_IR 192; malformed dates, times, sexes and ages are left
  empty. Dates and times of ours are in the source's TimezoneOffsetFromUTC, else in UTC.
- UIDs are 2.25 UUIDs of a SHA-256 of the content: equal objects have one, different ones never share one.
- Private attributes: none.

## What is not supported

Storage commitment over DICOMweb, C-CANCEL, extended negotiation, user identity, Modality Worklist, MPPS, relational
queries, Big Endian when sending.
"""


def statement() -> str:
    """The whole statement as Markdown."""
    parts = [HEAD, "\n## Sent\n\n", _table(contexts.SENT), "\nTransfer syntaxes: " + _names(contexts.NATIVE) + ".\n"]
    parts += ["\n## Received\n\n", _table(contexts.RECEIVED)]
    parts += ["\nTransfer syntaxes: " + _names(contexts.READABLE) + ".\n"]
    asked = (*contexts.ASKED, contexts.StorageCommitmentPushModel)
    parts += ["\n## Asked for\n\n", _table(map(UID, asked)), "\nTransfer syntaxes: " + _names(contexts.NATIVE) + ".\n"]
    return "".join([*parts, TAIL])


def _table(classes: Iterable[UID]) -> str:
    rows = "".join(f"| {one.name} | {one} |\n" for one in classes)
    return f"| SOP class | UID |\n|---|---|\n{rows}"


def _names(syntaxes: Iterable[UID]) -> str:
    return "; ".join(f"{one.name} ({one})" for one in syntaxes)
