"""What is reported of one study: plain facts, and what the writers of outputs receive.

Owns `Report`, `Case`, `PictureCase`, the verdicts and their words. Knows no file format. Invariants: a verdict is one
of three and never "normal"; refused and failed studies have none; the same facts go into every output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from medrec.changes import Change, Repeatability
from medrec.findings import SIDE_UNKNOWN, Finding
from medrec.pictures import PictureCard, PicturePrediction
from medrec.prediction import Decision, ModelCard, Prediction
from medrec.series import Visit
from medrec.volume import Volume

UNKNOWN = Visit()
DISCLAIMER = "Research use; not a medical device."


class Status(StrEnum):
    """What became of a case."""

    ANALYSED = "analysed"
    REFUSED = "refused"
    FAILED = "failed"
    ALREADY_DONE = "already done"
    WAITING = "waiting"


class Verdict(StrEnum):
    """What an analysed study is said to show."""

    FINDING = "finding"
    NOTHING_MARKED = "nothing marked"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class SeriesUse:
    """One series of the study as the report names it: by number and allow-listed words, never by free text."""

    number: int | None
    modality: str
    words: tuple[str, ...]
    files: int
    role: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One single image: `input` is the SHA-256 of its file, `size_px` (rows, columns).

    `probabilities` are those of the card's classes by name. What is outlined is one region, or nothing: then its
    numbers are 0 and its places None. Places are (row, column), sizes pixels from edge to edge; the `_mm` are None
    unless a region of the file calibrates all that is outlined. `probability` is the mean over the outlined pixels.
    """

    input: str
    size_px: tuple[int, int]
    probabilities: Mapping[str, float]
    outlined: bool
    area_px: int
    longest_px: float
    perpendicular_px: float
    centroid_px: tuple[float, float] | None
    box_px: tuple[tuple[int, int], tuple[int, int]] | None
    probability: float
    area_mm2: float | None
    longest_mm: float | None
    perpendicular_mm: float | None
    calipers: int


@dataclass(frozen=True, slots=True)
class Prior:
    """An earlier study of the same patient beside this one; `reason` says why nothing is compared, "" where it is.

    `case` is that of the earlier study, "" where none is chosen; `model` what measured it, name and version; `days` lie
    between both. `similarity`, `overlap` and `disagreement_mm` are those of `medrec.registration.Registration`;
    `caution` says why no lesion is called grown, shrunk, new or gone although all are held against each other.
    """

    case: str
    model: str
    days: int | None
    reason: str
    caution: str = ""
    similarity: float | None = None
    overlap: float | None = None
    disagreement_mm: float | None = None
    rotation_deg: float | None = None
    repeatability: Repeatability | None = None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The facts of one case. Everything in it may be stored, shown and logged: no identity, no path."""

    case: str
    study: str
    patient: str
    batch: str
    created: str
    status: Status
    reason: str
    verdict: Verdict | None
    verdict_text: str
    flags: tuple[str, ...]
    findings: tuple[Finding, ...]
    slice_probability: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    shape: tuple[int, ...]
    geometry_nominal: bool
    lossy: bool
    series: tuple[SeriesUse, ...]
    inputs: tuple[str, ...]
    refused_inputs: Mapping[str, str]
    pixels_sha256: Mapping[str, str]
    model_name: str
    model_version: str
    card_sha256: str
    weights_sha256: Mapping[str, str]
    licence: str
    config_sha256: str
    code_version: str
    device: str
    images: tuple[ImageFacts, ...] = ()
    # Of the classes of a whole study, by name, where the card tells any.
    probabilities: Mapping[str, float] = field(default_factory=dict)
    prior: Prior | None = None

    def facts(self) -> dict[str, Any]:
        """JSON-able copy."""
        return asdict(self)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A report with what the writers need beside it; the last five are None for a study without analysis.

    `volumes` are the inputs by name, all on the grid of `card.grid`; `labels` (i, j, k) int32 numbers the lesions.
    `visit` is what a later study of the patient is compared by.
    """

    report: Report
    card: ModelCard | None
    volumes: Mapping[str, Volume]
    prediction: Prediction | None
    labels: npt.NDArray[np.int32] | None
    visit: Visit = UNKNOWN


@dataclass(frozen=True, slots=True, eq=False)
class Pictured:
    """One image as it was analysed: `brightness` and `shown` (rows, columns) float32 in 0..1.

    `shown` may be drawn and stored: its text is covered, or it is black where text could not be looked for.
    """

    input: str
    pixels_sha256: str
    brightness: npt.NDArray[np.float32]
    shown: npt.NDArray[np.float32]
    prediction: PicturePrediction


@dataclass(frozen=True, slots=True, eq=False)
class PictureCase:
    """A report on single images with what the writers need beside it, in the order of `report.images`."""

    report: Report
    card: PictureCard
    pictures: tuple[Pictured, ...]


AnyCase = Case | PictureCase


def decide(
    findings: Sequence[Finding],
    slice_probability: npt.NDArray[np.float32] | None,
    outside: Sequence[str],
    decision: Decision,
    called: bool = False,
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and in plain words why it is not a simple one.

    `outside` lists in what the study lies outside of the card; `slice_probability` is (k,) from the classifier;
    `called` says that a card which outlines nothing calls the study positive.
    """
    doubts = list(outside)
    if slice_probability is not None:
        doubts += _disagreement(findings, slice_probability, decision)
    if doubts:
        return Verdict.INCONCLUSIVE, tuple(doubts)
    return (Verdict.FINDING if findings or called else Verdict.NOTHING_MARKED), ()


def _disagreement(
    findings: Sequence[Finding], slice_probability: npt.NDArray[np.float32], decision: Decision
) -> list[str]:
    if findings:
        largest = findings[0]
        seen = float(slice_probability[largest.first_slice : largest.last_slice + 1].max())
        if seen >= decision.slice_threshold:
            return []
        return [
            f"the networks disagree: a region is outlined, but no slice of it is called positive (at most {seen:.2f})"
        ]
    sure = slice_probability >= decision.sure_slice_threshold
    run = longest = 0
    for hit in sure:
        run = run + 1 if hit else 0
        longest = max(longest, run)
    if longest < decision.sure_slices:
        return []
    return [f"the networks disagree: nothing is outlined, but {longest} neighbouring slices are called positive"]


def side_text(side: str) -> str:
    """Where a lesion is, as it stands in a sentence."""
    return f"on the {side}" if side in ("left", "right") else side if side == SIDE_UNKNOWN else f"on {side}"


def verdict_text(
    verdict: Verdict, findings: Sequence[Finding], card: ModelCard, nominal: bool, positive: float | None = None
) -> str:
    """The verdict in careful sentences; `nominal` is said beside every size, `positive` is the class's probability."""
    said = f" {study_class_text(positive, card)}" if positive is not None else ""
    if card.segmentation is None and verdict is not Verdict.INCONCLUSIVE:
        return called_text(verdict, card.finding) + said
    return _outlined_text(verdict, findings, card, nominal) + said


def called_text(verdict: Verdict, finding: str) -> str:
    """The verdict of a card that outlines nothing."""
    if verdict is Verdict.FINDING:
        return f"Called positive: {finding}. Nothing is outlined: this model does not say where."
    return f"Not called positive ({finding}); this does not exclude tumour. This model outlines nothing."


def study_class_text(positive: float, card: ModelCard) -> str:
    """What the classifier of whole studies says, which is no diagnosis."""
    return f"The network gives the class {card.positive} a probability of {positive:.2f}: this is no diagnosis."


def _outlined_text(verdict: Verdict, findings: Sequence[Finding], card: ModelCard, nominal: bool) -> str:
    ml = "ml (nominal)" if nominal else "ml"
    if verdict is Verdict.FINDING:
        total_ml = sum(f.volume_mm3 for f in findings) / 1000
        side = findings[0].side
        where = f"({side})" if side == SIDE_UNKNOWN else side_text(side)
        if len(findings) == 1:
            return f"One {card.finding} of {total_ml:.1f} {ml} {where}."
        return f"{len(findings)} {card.finding}s, {total_ml:.1f} {ml} in all; the largest {where}."
    if verdict is Verdict.NOTHING_MARKED:
        return (
            f"No region of at least {card.minimum_volume_ml:g} {ml} was marked; this does not exclude tumour; "
            "no tumour-free patients were tested."
        )
    regions = "1 region" if len(findings) == 1 else f"{len(findings)} regions"
    marked = f"{regions} outlined" if findings else "nothing outlined"
    return f"No verdict: {marked}, but the result cannot be relied on for the reasons given."


def picture_text(images: Sequence[ImageFacts], card: PictureCard) -> str:
    """What is said of a study of single images, in careful sentences."""
    marked = [i for i in images if i.outlined]
    count = "1 image" if len(images) == 1 else f"{len(images)} images"
    if card.segmentation is None:
        verdict = Verdict.FINDING if called(images, card) else Verdict.NOTHING_MARKED
        return f"{called_text(verdict, card.finding)} {class_text(images, card)}"
    if not marked:
        return (
            f"No region of at least {card.decision.minimum_area_px} pixels was marked in {count}; this does not "
            "exclude tumour; no images without a lesion were tested."
        )
    where = "in the image" if len(images) == 1 else f"in {len(marked)} of {count}"
    largest = max(marked, key=lambda i: i.area_px)
    size = f"{largest.longest_px:.0f} x {largest.perpendicular_px:.0f} pixels"
    if largest.longest_mm is not None and largest.perpendicular_mm is not None:
        size += f" ({largest.longest_mm:.1f} x {largest.perpendicular_mm:.1f} mm by the file's own calibration)"
    else:
        size += " (the file gives no scale)"
    said = f"A {card.finding} is outlined {where}, {'' if len(marked) == 1 else 'the largest '}{size}."
    return f"{said} {class_text(images, card)}".strip()


def called(images: Sequence[ImageFacts], card: PictureCard) -> bool:
    """Whether a card that outlines nothing calls any of the images positive."""
    if card.segmentation is not None or card.positive is None:
        return False
    return any(i.probabilities[card.positive] >= card.decision.class_threshold for i in images)


def class_text(images: Sequence[ImageFacts], card: PictureCard) -> str:
    """What the classifier says, which is no diagnosis; "" without a classifier."""
    if card.positive is None or card.classification is None:
        return ""
    says = sorted(i.probabilities[card.positive] for i in images)
    p = f"{says[0]:.2f}" if says[0] == says[-1] else f"{says[0]:.2f} to {says[-1]:.2f}"
    return f"The network gives the class {card.positive} a probability of {p}: this is no diagnosis."
