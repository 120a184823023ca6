"""The outlines as a DICOM Segmentation (PS3.3 A.51), one segment for each lesion, on the grid of the series.

A segment is called what it is, a lesion among morphologically abnormal structures, whatever the network was trained
on. BINARY unless the card asks for FRACTIONAL (the network's probability within each lesion); never LABELMAP, which
viewers do not read yet. Nothing is written where nothing was marked: a segmentation needs a segment.
"""

import highdicom as hd
import numpy as np
import numpy.typing as npt
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from scipy import ndimage

from medrec import __version__
from medrec.dicom import Source
from medrec.objects import carried, uids
from medrec.objects.carried import NotReturnableError
from medrec.prediction import Coded, ModelCard
from medrec.report import Case, Report

SERIES_NUMBER = 9001
Boxes = list[tuple[int, tuple[slice, slice, slice]]]
"""The number of each lesion and the box (i, j, k) that it lies in."""
FRACTIONAL_LIMIT_BYTES = 2**30  # probabilities of all lesions on all their slices, at once in memory


def write(case: Case, source: Source) -> Dataset | None:
    """The segmentation; None where nothing was marked.

    Raises NotReturnableError when source and labels do not fit, or FRACTIONAL would take too much memory.
    """
    card, labels = case.card, case.labels
    findings = case.report.findings
    if card is None or labels is None or not findings:
        return None
    if labels.shape != (source.columns, source.rows, len(source.images)):
        raise NotReturnableError("the labels do not lie on the grid of the source")
    who = carried.identity(source)
    boxes = [(n, box) for n, box in enumerate(ndimage.find_objects(labels), 1) if box is not None]
    slices = _marked(labels, boxes)
    fractional = card.returned.segmentation == "fractional"
    pixels = _probabilities(case, slices) if fractional else _segments(labels, slices, boxes)
    seg = Segmentation(
        source_images=carried.stand_ins(source, who, slices.tolist()),
        pixel_array=pixels,
        segmentation_type="FRACTIONAL" if fractional else "BINARY",
        segment_descriptions=[_segment(f.number, card, case.report) for f in findings],
        series_instance_uid=uids.UNKNOWN,
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids.UNKNOWN,
        instance_number=1,
        manufacturer="medrec",
        manufacturer_model_name="medrec",
        software_versions=__version__,
        device_serial_number=card.digest[:16],
        content_label="LESIONS",
        content_description=f"{card.title}"[:64],
        series_description=f"AI, unreviewed: {card.finding}"[:64],
    )
    carried.named(seg, source)
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = carried.references(source)  # those without lesions too
    _own_dimensions(seg, case.report)
    carried.complete(seg, who, case.report, "seg")
    return seg


def tracking(case: str, created: str, number: int) -> tuple[str, str]:
    """(Tracking UID, Tracking ID) of a lesion of a case: the same in its segmentation and its report."""
    return uids.from_words("lesion", case, created, str(number)), f"{case[:12]} lesion {number}"


def code(coded: Coded) -> hd.sr.CodedConcept:
    """A card's concept as highdicom takes it."""
    return hd.sr.CodedConcept(coded.value, coded.scheme, coded.meaning)


def _marked(labels: npt.NDArray[np.int32], boxes: Boxes) -> npt.NDArray[np.int64]:
    """The slices k in which a lesion has a voxel."""
    marked = np.zeros(labels.shape[2], bool)
    for number, box in boxes:
        marked[box[2]] |= (labels[box] == number).any(axis=(0, 1))
    return np.flatnonzero(marked)


def _segments(
    labels: npt.NDArray[np.int32], slices: npt.NDArray[np.int64], boxes: Boxes
) -> npt.NDArray[np.uint8 | np.uint16]:
    """(slices, rows, columns): labels (i, j, k) in the order of a DICOM frame, as small as they can be.

    Lesions are small beside their volume: only their boxes are read, which saves a second on 512 x 512 x 300.
    """
    most = boxes[-1][0]
    if most > np.iinfo(np.uint16).max:
        raise NotReturnableError("more lesions than a segmentation can number")
    small = np.uint8 if most <= np.iinfo(np.uint8).max else np.uint16
    frames = np.zeros((len(slices), labels.shape[1], labels.shape[0]), small)
    place = np.full(labels.shape[2], -1)
    place[slices] = np.arange(len(slices))
    for number, (i, j, k) in boxes:
        inside = labels[i, j, k] == number
        here = inside.any(axis=(0, 1))
        at = place[k][here]
        part = frames[at, j, i]
        part[inside[:, :, here].transpose(2, 1, 0)] = number
        frames[at, j, i] = part
    return frames


def _probabilities(case: Case, slices: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """(slices, rows, columns, segments): the network's probability within each lesion, 0 outside of it."""
    assert case.labels is not None
    assert case.prediction is not None
    labels = case.labels[:, :, slices].transpose(2, 1, 0)
    probability = case.prediction.probability[:, :, slices].transpose(2, 1, 0)
    count = len(case.report.findings)
    if labels.size * count * 4 > FRACTIONAL_LIMIT_BYTES:
        raise NotReturnableError(f"{count} lesions are too many for a fractional segmentation; the card can say binary")
    return np.stack([np.where(labels == n, probability, 0) for n in range(1, count + 1)], axis=-1).astype(np.float32)


def _segment(number: int, card: ModelCard, report: Report) -> SegmentDescription:
    uid, words = tracking(report.case, report.created, number)
    return SegmentDescription(
        segment_number=number,
        segment_label=f"{number}: {card.finding}"[:64],
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type="AUTOMATIC",
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=f"medrec {card.name}",
            family=codes.DCM.ArtificialIntelligence,
            version=card.version,
            source="medrec",
            parameters={"weights sha256": card.weights_digest, "card sha256": card.digest},
        ),
        tracking_uid=uid,
        tracking_id=words,
        anatomic_regions=[code(card.returned.site)] if card.returned.site is not None else None,
    )


def _own_dimensions(seg: Dataset, report: Report) -> None:
    """highdicom draws a random UID for the dimension organisation; ours follows from the case."""
    uid = uids.from_words("dimensions", report.case, report.created)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
