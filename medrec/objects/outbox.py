"""The objects of a case on the disk: `<outbox>/<case>/` (0700), one file each (0600), whole or not at all.

Invariant: a folder under its final name holds everything that the case returns; a draft that a killed night left is
overwritten.
"""

import gc
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from medrec import disk
from medrec.dicom import Source
from medrec.errors import WorldError
from medrec.objects import dicom_seg, dicom_sr, uids
from medrec.objects.carried import NotReturnableError
from medrec.report import Case, Status

REASON = "reason.txt"  # why a case has no objects
FILES = {"seg": "seg.dcm", "sr": "sr.dcm", "pdf": "report.dcm"}
PAGES = "pages.json"  # what the PDF was drawn from: it is drawn again once somebody has accepted it


@dataclass(frozen=True, slots=True)
class Written:
    """One file of the outbox as bytes; `instance` is its SOP Instance UID, which follows from them, "" of no object."""

    name: str
    instance: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.content).hexdigest()


def make(case: Case, source: Source, predecessor: Path | None = None, anchor: str = "") -> tuple[Written, ...]:
    """The objects that the case's card asks for; `predecessor` is the folder of the case that it supersedes.

    `anchor` is where the ledger ended before: the report carries it to the archive, a witness outside of the home.

    Raises NotReturnableError when the source does not allow it: what a header holds is never quoted.
    """
    if case.report.status is not Status.ANALYSED or case.card is None:
        return ()
    wanted = case.card.returned.objects
    try:
        with _uncollected():
            seg = dicom_seg.write(case, source) if "seg" in wanted else None
            found = [written(FILES["seg"], seg)] if seg is not None else []
            if "sr" in wanted:  # it refers to the segmentation by the UID that sealing gave it
                report = dicom_sr.write(case, source, seg, _predecessors(predecessor, source), anchor)
                found.append(written(FILES["sr"], report))
            if "pdf" in wanted:
                from medrec.objects import encapsulated_pdf, page  # reportlab takes most of a second

                pages = page.of(case)
                found.append(written(FILES["pdf"], encapsulated_pdf.write(case, source, pages)))
                found.append(Written(PAGES, "", page.pack(pages)))
            return tuple(found)
    except (NotReturnableError, MemoryError):
        raise
    except Exception as error:  # a crafted header may make a library raise anything, with its values in the text
        raise NotReturnableError(f"its header does not allow it ({type(error).__name__})") from None


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of cycles: a hundred lesions are 40,000 small elements, gone through again and again."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


@dataclass(frozen=True, slots=True, repr=False)
class Label:
    """What an object on the disk says of itself, for whoever sends it."""

    study_uid: str
    series_uid: str
    instance: str
    patient: tuple[str, str, str, str, str]  # id, issuer of the id, name, birth date, sex


def label(path: Path) -> Label:
    """Read an object's label, once it is sure that the object is what was written.

    Raises NotReturnableError when its bytes do not give its UID any more, WorldError when it is gone.
    """
    try:
        content = path.read_bytes()
        ds = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
        told = str(ds.SOPInstanceUID)
        same = uids.holds(content, told)
    except FileNotFoundError:
        raise WorldError(f"{path.name} of the outbox is gone") from None
    except Exception as error:  # whatever a changed file makes the parser raise
        raise NotReturnableError(f"{path.name} of the outbox cannot be read ({type(error).__name__})") from None
    if not same:
        raise NotReturnableError(f"{path.name} of the outbox is not what was written")
    keys = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
    who = tuple(str(ds.get(key) or "") for key in keys)
    return Label(str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), told, who)  # type: ignore[arg-type]


def refusal(why: NotReturnableError) -> Written:
    """What lies in the outbox in place of objects that could not be made."""
    return Written(REASON, "", f"{why}\n".encode())


def place(objects: Sequence[Written], folder: Path) -> None:
    """Put objects into `folder`, all or none; what lay there under this name goes.

    Raises WorldError when the disk does not take them.
    """
    draft = folder.with_name(f".draft-{folder.name}")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700, parents=True)
        for one in objects:
            descriptor = os.open(draft / one.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(one.content)
                file.flush()
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        disk.flush(folder.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise WorldError(f"the outbox cannot be written: {os.strerror(error.errno or 0)}") from error


def written(name: str, ds: Dataset) -> Written:
    """A finished data set, sealed."""
    content = uids.seal(ds)
    return Written(name, str(ds.SOPInstanceUID), content)


def _predecessors(folder: Path | None, source: Source) -> list[Dataset]:
    """The reports that a case takes the place of, as first written and as accepted, when they are of the same study."""
    if folder is None:
        return []
    paths = [at / FILES["sr"] for at in (folder, folder.with_name(f"{folder.name}-accepted"))]
    found = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths if path.is_file()]
    return [ds for ds in found if ds.StudyInstanceUID == source.header.get("StudyInstanceUID")]
