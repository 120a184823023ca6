"""The measurements as a TID 1500 report (DICOM PS3.16), in a Comprehensive 3D SR (PS3.3 A.35.13).

Owns the report's words: the verdict stands as text, as it stands in report.html, because no code says "marked by a
network, unreviewed". Invariants: never a code for normal or absent; nothing but lesions that were measured is coded;
UNVERIFIED and PRELIMINARY until a person has reviewed it.
"""

from collections.abc import Iterator, Sequence

from highdicom import sr
from highdicom.sr import CodedConcept, ContentSequence, RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medrec import __version__
from medrec.dicom import Source
from medrec.findings import Finding
from medrec.objects import carried, uids
from medrec.objects.dicom_seg import code, tracking
from medrec.prediction import ModelCard
from medrec.report import DISCLAIMER, Case, Verdict

SERIES_NUMBER = 9002
UNREVIEWED = f"Made by a network and not reviewed by a person. {DISCLAIMER}"
CONTAINS = RelationshipTypeValues.CONTAINS
ENGLISH = CodedConcept("en-US", "RFC5646", "English (United States)")
# PS3.16 TID 1500, row 10: the container of what is said and not measured.
QUALITATIVE = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
PROCEDURES = {"MR": codes.cid100.MRIUnspecifiedBodyRegion, "CT": codes.cid100.CTUnspecifiedBodyRegion}
# PS3.16 CID 244; a lesion whose side is not told gets none.
SIDES = {
    "left": codes.SCT.Left,
    "right": codes.SCT.Right,
    "both sides of the midline": CodedConcept("51440002", "SCT", "Right and left"),
}


def write(
    case: Case, source: Source, seg: Dataset | None, predecessors: Sequence[Dataset], anchor: str = ""
) -> Dataset:
    """The report of an analysed case; `seg` is its segmentation, None where nothing was marked.

    `predecessors` are the reports that this one takes the place of; `anchor` is the ledger's end in words.
    """
    card = case.card
    assert card is not None
    who = carried.identity(source)
    (first,) = carried.stand_ins(source, who, [0])
    document = sr.Comprehensive3DSR(
        evidence=[first, *([seg] if seg is not None else [])],
        content=ContentSequence([_root()], is_root=True),
        series_instance_uid=uids.UNKNOWN,
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids.UNKNOWN,
        instance_number=1,
        manufacturer="medrec",
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        series_description=f"AI, unreviewed: {card.finding}"[:64],
        manufacturer_model_name="medrec",
        software_versions=__version__,
        device_serial_number=card.digest[:16],
        specific_character_set=carried.CHARACTERS,
        previous_versions=list(predecessors) or None,
    )
    # Put in afterwards: the constructor copies all content and searches it, which takes seconds for many lesions.
    document.ContentSequence = _content(case, card, first, seg, anchor).ContentSequence
    for study in document.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            if series.SeriesInstanceUID == first.SeriesInstanceUID:
                series.ReferencedSOPSequence = carried.references(source)
    carried.complete(document, who, case.report, "sr")
    return document


def _root() -> sr.ContainerContentItem:
    root = sr.ContainerContentItem(name=codes.cid7021.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = ContentSequence()
    return root


def _content(case: Case, card: ModelCard, first: Dataset, seg: Dataset | None, anchor: str) -> sr.ContainerContentItem:
    """TID 1500. highdicom's own template refuses a report without measurements; "nothing marked" is one."""
    root = _root()
    for part in (
        sr.LanguageOfContentItemAndDescendants(ENGLISH),
        sr.ObservationContext(observer_device_context=_observer(card)),
        [_procedure(str(first.Modality))],
    ):
        root.ContentSequence.extend(part)
    if seg is not None:
        measured = sr.ContainerContentItem(name=codes.DCM.ImagingMeasurements, relationship_type=CONTAINS)
        measured.ContentSequence = ContentSequence()
        for finding in case.report.findings:
            measured.ContentSequence.extend(_group(finding, case, card, first, seg))
        root.ContentSequence.append(measured)
    said = sr.ContainerContentItem(name=QUALITATIVE, relationship_type=CONTAINS)
    said.ContentSequence = ContentSequence()
    for name, text in (*_said(case, card), *([(codes.DCM.Comment, anchor)] if anchor else [])):
        said.ContentSequence.append(sr.TextContentItem(name=name, value=text, relationship_type=CONTAINS))
    root.ContentSequence.append(said)
    return root


def _said(case: Case, card: ModelCard) -> Iterator[tuple[CodedConcept, str]]:
    """The verdict and its reasons, in the words of the report."""
    report = case.report
    assert report.verdict is not None
    yield codes.DCM.Conclusion, f"{report.verdict.capitalize()}. {report.verdict_text}"
    for flag in report.flags:
        yield codes.DCM.Comment, flag
    if report.geometry_nominal and report.verdict is not Verdict.NOTHING_MARKED:
        yield codes.DCM.Comment, "All sizes are nominal: the file says that its pixels were not made by the scanner."
    yield codes.DCM.Comment, f"What is marked is called a {card.finding}; it can also be: {', '.join(card.mimics)}."
    yield codes.DCM.Comment, UNREVIEWED


def _observer(card: ModelCard) -> sr.ObserverContext:
    attributes = sr.DeviceObserverIdentifyingAttributes(
        uid=uids.from_words("device", __version__, card.digest),
        name="medrec",
        manufacturer_name="medrec",
        model_name=f"medrec {__version__}",
        serial_number=card.digest[:16],
    )
    return sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=attributes)


def _procedure(modality: str) -> sr.CodeContentItem:
    return sr.CodeContentItem(
        name=codes.DCM.ProcedureReported,
        value=PROCEDURES.get(modality, codes.cid100.ImagingProcedure),
        relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
    )


def _group(
    finding: Finding, case: Case, card: ModelCard, source: Dataset, seg: Dataset
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """TID 1411: one lesion."""
    uid, words = tracking(case.report.case, case.report.created, finding.number)
    site = card.returned.site
    algorithm = sr.AlgorithmIdentification(
        name=f"medrec {card.name}",
        version=card.version,
        parameters=[f"weights sha256 {card.weights_digest}", f"card sha256 {card.digest}"],
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=uid, identifier=words),
        referenced_segment=sr.ReferencedSegment(
            sop_class_uid=seg.SOPClassUID,
            sop_instance_uid=seg.SOPInstanceUID,
            segment_number=finding.number,
            source_series=sr.SourceSeriesForSegmentation(source.SeriesInstanceUID),
        ),
        finding_category=codes.SCT.MorphologicallyAbnormalStructure,
        finding_type=codes.SCT.Lesion,
        algorithm_id=algorithm,
        finding_sites=None if site is None else [sr.FindingSite(code(site), laterality=SIDES.get(finding.side))],
        measurements=[
            sr.Measurement(codes.SCT.Volume, round(finding.volume_mm3, 3), codes.UCUM.CubicMillimeter),
            sr.Measurement(codes.SCT.LongAxis, round(finding.longest_axial_mm, 4), codes.UCUM.Millimeter),
            sr.Measurement(codes.SCT.ShortAxis, round(finding.perpendicular_mm, 4), codes.UCUM.Millimeter),
            sr.Measurement(
                codes.cid7470.Maximum3DDiameterOfAMesh, round(finding.longest_3d_mm, 4), codes.UCUM.Millimeter
            ),
        ],
    )
