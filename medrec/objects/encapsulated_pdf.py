"""The report's pages as an Encapsulated PDF (DICOM PS3.3 A.45.1)."""

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from medrec import __version__
from medrec.dicom import Source
from medrec.objects import carried, page, uids
from medrec.report import Case

SERIES_NUMBER = 9003
TITLE = "AI report, unreviewed"


def write(case: Case, source: Source) -> Dataset:
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
    ds.DocumentTitle = TITLE
    ds.ConceptNameCodeSequence = [hd.sr.CodedConcept.from_code(codes.cid7021.ImagingMeasurementReport)]
    ds.AcquisitionDateTime = ""
    ds.SourceInstanceSequence = carried.references(source)
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    pages = page.render(case, _lines(who))
    ds.EncapsulatedDocumentLength = len(pages)
    ds.EncapsulatedDocument = pages + b"\0" * (len(pages) % 2)
    carried.complete(ds, who, case.report, "pdf")
    return ds


def _lines(who: Dataset) -> dict[str, str]:
    name = str(who.PatientName).replace("^", " ").strip()
    return {"Name": name, "ID": str(who.PatientID), "Born": str(who.PatientBirthDate), "Study": str(who.StudyDate)}
