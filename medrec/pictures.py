"""Single greyscale images without a place in the patient: ultrasound stills, and what a model says of them.

Owns `PictureCard`, `PicturePrediction` and `Region`, and `Card`, which is a card of either kind. Sizes are pixels: a
millimetre is only what a region of the image calibrates, and none is invented. Invariant: a prediction lies on the
pixels of its image.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from medrec.declared import EarlyStop, Gate, Robustness, Split
from medrec.prediction import (
    Count,
    Frozen,
    InputRule,
    Measured,
    ModelCard,
    Name,
    Network,
    Positive,
    Sha256,
    Share,
    Training,
    digest_of_weights,
    without_defaults,
)

IMAGE = "image"  # the one input of a card of pictures


class PicturePreprocessing(Frozen):
    """The whole image is stretched to a square of `size_px` to outline; `crop` times the outline's box to classify.

    The classifier sees it in `classify_px` where that is told, from each of the distances `looks` (times `crop`), and
    the answers are averaged. `paint_out_marks` hides calipers from both networks (see `medrec.models.marks`).
    """

    size_px: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    classify_px: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] | None = None
    crop: Positive = 1.6
    looks: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    paint_out_marks: bool = True


class Softened(Frozen):
    """Classes to learn from are moved by `share` towards how often the value in `column` of the labels was positive.

    An examiner's grading says how much an image looks like its class; the test set and every measure know the class
    alone.
    """

    column: Name
    share: Share


class PictureDecision(Frozen):
    """From probabilities to marks: the thresholds that change results.

    From `class_threshold` on a card that outlines nothing calls an image positive. `temperature` divides the
    classifier's logit: fitted on patients who watched the training, so that the probability means what it says.
    """

    temperature: Positive = 1.0
    pixel_threshold: Share = 0.5
    minimum_area_px: Count = 50
    class_threshold: Share = 0.5


class PictureCard(Frozen):
    """Everything that medrec knows of a model of pictures: YAML on disk, data here.

    `classification` tells the class `positive` from all others; `class_column` is where a table of labels names it,
    and `classes` are all words that it may hold there.
    """

    name: Name
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    title: str
    finding: str
    intended_use: str
    limits: tuple[str, ...]
    mimics: tuple[str, ...]
    data: str
    licence: str
    input: InputRule
    preprocessing: PicturePreprocessing
    segmentation: Network | None = None
    classification: Network | None = None
    positive: Name | None = None
    class_column: Name | None = None
    softened: Softened | None = None
    classes: tuple[str, ...] = ()
    decision: PictureDecision = PictureDecision()
    training: Training
    measured: tuple[Measured, ...]
    trained_on: tuple[Sha256, ...]
    split: Split = Split()
    early_stop: EarlyStop = EarlyStop()
    gate: Gate | None = None
    robustness: Robustness | None = None

    @model_validator(mode="after")
    def _does_something(self) -> "PictureCard":
        if self.segmentation is None and self.classification is None:
            raise ValueError("segmentation, classification: the card names no network")
        if self.classification is not None and (self.positive is None or self.class_column is None):
            raise ValueError("classification: the card must name its positive class and its class_column")
        if self.classes and self.positive not in self.classes:
            raise ValueError(f"classes: {self.positive} is not among them")
        return self

    @property
    def networks(self) -> dict[str, Network]:
        """Every network by its place in the card."""
        parts = {"segmentation": self.segmentation, "classification": self.classification}
        return {place: network for place, network in parts.items() if network is not None}

    @property
    def inputs(self) -> dict[str, InputRule]:
        """What it asks for, by name, as cards of volumes have it."""
        return {IMAGE: self.input}

    @property
    def content(self) -> bytes:
        """The card as the bytes that `digest` is of; comments and layout of the YAML do not count."""
        fields = self.model_dump(mode="json")
        for name in without_defaults(self, "softened", "classes", "split", "early_stop", "gate", "robustness"):
            del fields[name]
        for name in without_defaults(self.preprocessing, "classify_px", "looks"):
            del fields["preprocessing"][name]
        for name in without_defaults(self.decision, "class_threshold"):
            del fields["decision"][name]
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """sha256 of `content`."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def weights_digest(self) -> str:
        """sha256 that stands for the weights of all networks of the card."""
        return digest_of_weights(self.networks.values())


Card = ModelCard | PictureCard


def card_of(fields: Any) -> Card:
    """The card that a file describes: one of pictures asks for an `input`, one of volumes for `inputs`.

    Raises pydantic's ValidationError, a ValueError.
    """
    pictures = isinstance(fields, dict) and "input" in fields
    return PictureCard.model_validate(fields) if pictures else ModelCard.model_validate(fields)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an image that shows tissue, bounds included; `spacing_mm` is (between rows, between columns).

    None where its scale is not told in millimetres along both axes. DICOM PS3.3 C.8.5.5.
    """

    first_row: int
    first_column: int
    last_row: int
    last_column: int
    spacing_mm: tuple[float, float] | None


def scale_at(mask: npt.NDArray[np.bool_], regions: tuple[Region, ...]) -> tuple[float, float] | None:
    """The scale in mm of what is marked: that of the one region which holds all of it and which no other touches."""
    if not mask.any():
        return None
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = rows[0], columns[0], rows[-1], columns[-1]
    touching = [
        r
        for r in regions
        if r.first_row <= box[2] and r.last_row >= box[0] and r.first_column <= box[3] and r.last_column >= box[1]
    ]
    if len(touching) != 1:
        return None
    (r,) = touching
    inside = r.first_row <= box[0] and r.first_column <= box[1] and r.last_row >= box[2] and r.last_column >= box[3]
    return r.spacing_mm if inside else None


@dataclass(frozen=True, slots=True, eq=False)
class PicturePrediction:
    """What the networks say of one image: probability (rows, columns) float32 in 0..1, mask (rows, columns) bool.

    `positive` is the probability of the card's positive class, None where the card has no classifier. `marks` is how
    many calipers were seen.
    """

    probability: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    positive: float | None
    marks: int

    def __post_init__(self) -> None:
        # NaN compares as "not above the threshold": it would read as "nothing marked".
        if not np.isfinite(self.probability).all() or (self.positive is not None and not np.isfinite(self.positive)):
            raise ArithmeticError("the networks returned values that are not numbers")


class PicturePredictor(Protocol):
    """What can turn an image into a prediction; `medrec.models` holds the real one."""

    card: PictureCard

    def predict(self, pixels: npt.NDArray[np.float32]) -> PicturePrediction:
        """One image (rows, columns), brightness in 0..1."""
        ...
