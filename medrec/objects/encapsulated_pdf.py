"""The report's pages as an Encapsulated PDF (DICOM PS3.3 A.45.1)."""

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from medrec import __version__
from medrec.dicom import Source
from medrec.objects import carried, page, uids
from medrec.objects.page import Pages
from medrec.report import Case

SERIES_NUMBER = 9003
TITLE, ACCEPTED = "AI report, unreviewed", "AI report, accepted"


def write(case: Case, source: Source, pages: Pages) -> Dataset:
    """The pages of an analysed case, with the patient's name on them."""
    card = case.card
    assert card is not None
    who = carried.identity(source)
    ds: Dataset = hd.base.SOPClass(
        study_instance_uid=who.StudyInstanceUID,
        series_instance_uid=uids.UNKNOWN,
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids.UNKNOWN,
        sop_class_uid=EncapsulatedPDFStorage,
        instance_number=1,
        modality="DOC",
        manufacturer="medrec",
        manufacturer_model_name="medrec",
        software_versions=__version__,
        device_serial_number=card.digest[:16],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=f"AI, unreviewed: {card.finding}"[:64],
    )
    ds.ConversionType = "WSD"
    ds.BurnedInAnnotation = "YES"
    ds.DocumentTitle, ds.VerificationFlag = TITLE, "UNVERIFIED"
    ds.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(codes.cid7021.ImagingMeasurementReport)]
    ds.AcquisitionDateTime = ""
    ds.SourceInstanceSequence = carried.references(source)
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    _put(ds, page.render(pages, _lines(who)))
    carried.complete(ds, who, case.report, "pdf")
    return ds


def accept(ds: Dataset, pages: Pages, reviewer: str, day: str) -> None:
    """Draw the pages of a document again, with who accepted them and when (YYYY-MM-DD)."""
    name = " ".join(reviewer.replace("^", " ").split())
    _put(ds, page.render(pages, _lines(ds), f"made by a network, accepted by {name} on {day}"))
    ds.DocumentTitle, ds.VerificationFlag = ACCEPTED, "VERIFIED"


def _put(ds: Dataset, pdf: bytes) -> None:
    ds.EncapsulatedDocumentLength = len(pdf)
    ds.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)


def _lines(who: Dataset) -> dict[str, str]:
    name = str(who.PatientName).replace("^", " ").strip()
    return {"Name": name, "ID": str(who.PatientID), "Born": str(who.PatientBirthDate), "Study": str(who.StudyDate)}
