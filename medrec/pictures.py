"""Single greyscale images without a place in the patient: ultrasound stills, and what a model says of them.

Owns `PictureCard` and `PicturePrediction`. There is no millimetre here: sizes are pixels, because the files give no
scale and none is invented. Invariant: a prediction lies on the pixels of its image.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from medrec.prediction import Count, Frozen, InputRule, Measured, Name, Network, Positive, Sha256, Share, Training


class PicturePreprocessing(Frozen):
    """The whole image is stretched to a square of `size_px` to outline; `crop` times the outline's box to classify.

    `paint_out_marks` hides calipers from both networks (see `medrec.models.marks`).
    """

    size_px: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    crop: Positive = 1.6
    paint_out_marks: bool = True


class PictureDecision(Frozen):
    """From probabilities to marks: the thresholds that change results."""

    pixel_threshold: Share = 0.5
    minimum_area_px: Count = 50


class PictureCard(Frozen):
    """Everything that medrec knows of a model of pictures: YAML on disk, data here.

    `classification` tells the class `positive` from all others; `class_column` is where a table of labels names it.
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
    segmentation: Network
    classification: Network | None = None
    positive: Name | None = None
    class_column: Name | None = None
    decision: PictureDecision = PictureDecision()
    training: Training
    measured: tuple[Measured, ...]
    trained_on: tuple[Sha256, ...]

    @property
    def networks(self) -> dict[str, Network]:
        """Every network by its place in the card."""
        parts = {"segmentation": self.segmentation}
        return parts if self.classification is None else parts | {"classification": self.classification}

    @property
    def digest(self) -> str:
        """sha256 of all that the card says; comments and layout of the YAML do not count."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()


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
