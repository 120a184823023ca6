"""Who a report is about: the archive is searched with the key, because no table of names is kept anywhere.

What is found is for the terminal of an authorised operator alone; the caller writes the look-up into the ledger before
anything is shown. Slow on purpose of safety, not of design: a header takes about a millisecond.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom

from medrec.dicom import header
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.dicom.reading import ZIP, Part, parts_of, walk

HEAD_BYTES = 2**20  # a header ends long before


@dataclass(frozen=True, slots=True)
class Identity:
    """What identifies a study for those who treat the patient; not to be stored, logged or sent."""

    name: str
    patient_id: str
    issuer: str
    birth_date: str
    accession: str
    study_date: str
    study_uid: str


def whois(folder: Path, pseudonyms: Pseudonyms, study: str) -> Identity | None:
    """The identity of a study by its pseudonym, from the first of its files that is met; None when none is there."""
    for ds in _headers(folder):
        if pseudonyms.of("study", header.text(ds, "StudyInstanceUID")) == study:
            return Identity(
                name=header.text(ds, "PatientName"),
                patient_id=header.text(ds, "PatientID"),
                issuer=header.text(ds, "IssuerOfPatientID"),
                birth_date=header.text(ds, "PatientBirthDate"),
                accession=header.text(ds, "AccessionNumber"),
                study_date=header.text(ds, "StudyDate"),
                study_uid=header.text(ds, "StudyInstanceUID"),
            )
    return None


def find(folder: Path, pseudonyms: Pseudonyms, accession: str) -> tuple[str, ...]:
    """The pseudonyms of all studies with this accession number, in the order in which they are met."""
    found = (
        pseudonyms.of("study", header.text(ds, "StudyInstanceUID"))
        for ds in _headers(folder)
        if header.text(ds, "AccessionNumber") == accession.strip()
    )
    return tuple(dict.fromkeys(found))


def patient_of(pseudonyms: Pseudonyms, patient_id: str, issuer: str = "") -> str:
    """The pseudonym of a patient's id, as `parsing` gives it."""
    return pseudonyms.of("patient", issuer.strip(), patient_id.strip())


def _headers(folder: Path) -> Iterator[pydicom.Dataset]:
    for path in walk(folder):
        try:
            with path.open("rb") as file:
                start = file.read(HEAD_BYTES)
            if start.startswith(ZIP):
                parts = [part for part in parts_of(path, 0) if isinstance(part, Part)]
                yield from (ds for part in parts if (ds := header.parse(part.data)) is not None)
            elif start[128:132] == b"DICM":
                yield pydicom.dcmread(io.BytesIO(start), stop_before_pixels=True)
            elif (ds := header.parse(path.read_bytes())) is not None:
                yield ds
        except Exception:  # a spoilt file identifies nobody
            continue
