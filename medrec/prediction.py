"""What a model says of itself (its card) and of a scan (a prediction).

Owns `ModelCard`, `Prediction` and the `Predictor` protocol. A card is data: patterns, numbers and digests, never code.
Invariant: `ModelCard.digest` covers everything in a card, so that a case key that holds it changes with any of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from medrec.declared import EarlyStop, Gate, Robustness, Split
from medrec.fields import Count as Count
from medrec.fields import Frozen as Frozen
from medrec.fields import Name as Name
from medrec.fields import Pattern as Pattern
from medrec.fields import Positive as Positive
from medrec.fields import Sha256 as Sha256
from medrec.fields import Share as Share
from medrec.kinds import Kind
from medrec.volume import Volume

# The header fields that a card may route by. Free text is matched inside the DICOM room and never leaves it.
RoutedField = Literal[
    "BodyPartExamined",
    "ImageType",
    "MRAcquisitionType",
    "Manufacturer",
    "Modality",
    "ProtocolName",
    "ScanningSequence",
    "SequenceName",
    "SeriesDescription",
]


class InputRule(Frozen):
    """Which series is one input: every `match` pattern is found in its field, no `exclude` pattern is.

    `contrast` is what the images must prove to be, beyond what they are called (see `medrec.contrast`).
    """

    required: bool = False
    # Kinds of processed series that are no input (see `medrec.kinds`); others are used, and the report names them.
    refuse: tuple[Kind, ...] = ("localizer", "screenshot", "projection", "subtracted", "map")
    contrast: Literal["flair", "t1", "t2"] | None = None
    match: dict[RoutedField, Pattern] = Field(min_length=1)
    exclude: dict[RoutedField, Pattern] = Field(default_factory=dict)


class Envelope(Frozen):
    """What the model was made for; a study outside of it is not given a plain verdict."""

    max_tilt_from_axial_deg: Annotated[float, Field(gt=0, le=90)]
    min_coverage_mm: Positive
    slice_distance_mm: tuple[Positive, Positive]
    # Width and length of a head in the slice; None where the model is not made for whole heads.
    head_extent_mm: tuple[Positive, Positive] | None = None
    # How far slices may follow each other at an angle to their normal (CT with a tilted gantry): they are then read as
    # they lie, on a sheared grid, and nothing is resampled.
    max_gantry_tilt_deg: Annotated[float, Field(ge=0, le=45)] = 0
    # In-plane sizes are nominal when ImageType says SECONDARY (DICOM PS3.3 C.7.6.1.1.2): the pixels were made after
    # the examination by something that was not the scanner.
    nominal_when_secondary: bool = True
    # A series that covers less of the head-foot extent of an axial sibling in its frame of reference may be half of
    # what was acquired. 3D T1 reaches into the neck: FLAIR covers three quarters of it, and more, when whole.
    min_share_of_sibling: Share = 0.7


class Preprocessing(Frozen):
    """The square around the head is resampled to `size_px`; `neighbours` slices on each side are inputs as well.

    `neighbours` applies to the grid's own input only (2.5D). With `depth` networks see the whole volume (3D), resampled
    to so many slices. With `window` values of the grid's unit are cut off at both ends and counted from the lower one:
    CT needs one, whose air is not at 0 (HU).
    """

    size_px: Annotated[int, Field(ge=32, le=1024, multiple_of=16)]
    neighbours: Annotated[int, Field(ge=0, le=3)] = 0
    depth: Annotated[int, Field(ge=8, le=512, multiple_of=8)] | None = None
    window: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _window_runs_upwards(self) -> "Preprocessing":
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ValueError("window: the first number must be below the second")
        return self

    @model_validator(mode="after")
    def _neighbours_or_volume(self) -> "Preprocessing":
        if self.depth is not None and self.neighbours:
            raise ValueError("neighbours: a network that sees the whole volume (depth) has none")
        return self


class Recipe(Frozen):
    """How one network is trained: the same numbers give the same weights on the same machine.

    `sampling` draws slices as they come, or the patient first, so that a patient with many slices counts as one;
    `augmentation` "strong" adds gamma and blur; `overlap` is what Dice is taken over: the batch, or half the batch and
    half each slice; `average` is what the running average of the weights keeps at each step.
    """

    seed: int = 0
    batch: Count = 16
    learning_rate: Positive = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    sampling: Literal["slices", "patients"] = "slices"
    augmentation: Literal["plain", "strong"] = "plain"
    overlap: Literal["batch", "both"] = "batch"
    average: Share = 0.999


class Training(Recipe):
    """How the networks were, and can again be, trained."""

    segmentation_steps: Count
    classification_steps: Count


class OwnRecipe(Recipe):
    """The recipe of a network that is not trained as the card's `training` says."""

    steps: Count


class Network(Frozen):
    """One network: a name that `medrec.models.networks.NETWORKS` knows, its settings, its weights and their digest.

    `weights` is a file beside the card, or else one that came with the package. `start` names published weights that
    its encoder started from (see `medrec.learning.starts`); None is from scratch.
    """

    kind: Name
    settings: dict[Name, int | float | tuple[int, ...]] = Field(default_factory=dict)
    weights: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+\.safetensors$")]
    sha256: Sha256
    start: Name | None = None
    training: OwnRecipe | None = None


class Decision(Frozen):
    """From probabilities to marks: the thresholds that change results.

    `class_threshold` is for the class of a whole study, and `temperature` divides its logit: fitted on patients who
    watched the training, so that the probability means what it says.
    """

    voxel_threshold: Share = 0.5
    minimum_volume_mm3: Positive = 1.0
    slice_threshold: Share = 0.5
    # A classifier this sure of this many neighbouring slices contradicts an empty mask.
    sure_slice_threshold: Share = 0.95
    sure_slices: Count = 3
    class_threshold: Share = 0.5
    temperature: Positive = 1.0


class Measured(Frozen):
    """One number with its interval; `on` says on whom or what."""

    what: str
    value: float
    low: float
    high: float
    on: str


class Coded(Frozen):
    """A concept of a coding scheme, as DICOM writes it (PS3.3 8.8): SCT is SNOMED CT."""

    value: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,16}$")]
    scheme: Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$")]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]


class Returned(Frozen):
    """What goes back to the archive that the study came from; nothing unless the card says so.

    `site` is where in the body everything lies that the model marks; without it no site is coded.
    """

    objects: tuple[Literal["seg", "sr", "pdf"], ...] = ()
    segmentation: Literal["binary", "fractional"] = "binary"
    site: Coded | None = None

    @model_validator(mode="after")
    def _report_points_at_segmentation(self) -> "Returned":
        if "sr" in self.objects and "seg" not in self.objects:
            raise ValueError("objects: sr needs seg, whose segments its measurements refer to")
        return self


class Running(Frozen):
    """How the networks are run. Cards that do not say run as their numbers were measured before this was a choice.

    `mirrored` also sees each slice's mirror image, and averages. `autocast` computes in half precision on a GPU, where
    `channels_last` is the layout too. A device whose answers on a stored sample are farther than `tolerance` from plain
    ones (float32, CPU) is not used.
    """

    mirrored: bool = True
    autocast: Literal["float16", "bfloat16"] | None = None
    channels_last: bool = False
    tolerance: Share = 0.02


class Priors(Frozen):
    """By how much two measurements of an unchanged lesion differ in 95 of 100 pairs; `source` says who found that.

    "Grown" and "shrunk" are said beyond it only; a card without these takes the wide default of `medrec.priors`.
    """

    repeatability_volume_relative: Share | None = None
    repeatability_diameter_mm: Positive | None = None
    # Regions below it come and go where nothing has changed: they are called neither new nor gone.
    smallest_new_ml: Positive | None = None
    source: str = ""

    @model_validator(mode="after")
    def _numbers_have_a_source(self) -> "Priors":
        given = (self.repeatability_volume_relative, self.repeatability_diameter_mm)
        if any(given) and not (all(given) and self.source.strip()):
            raise ValueError("priors: needs both repeatabilities and the source that they are from")
        return self


class ModelCard(Frozen):
    """Everything that medrec knows of a model: YAML on disk, data here."""

    name: Name
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    title: str
    finding: str
    intended_use: str
    limits: tuple[str, ...]
    mimics: tuple[str, ...]
    data: str
    licence: str
    inputs: dict[Name, InputRule] = Field(min_length=1)
    grid: Name
    envelope: Envelope
    preprocessing: Preprocessing
    # None: the card tells a class of the whole study, and outlines nothing.
    segmentation: Network | None = None
    # More networks that outline: the probabilities of all are averaged, each counting once.
    ensemble: tuple[Network, ...] = ()
    # Calls slices; with `preprocessing.depth` it sees the whole study, and tells the class `positive` from all others,
    # as `class_column` of a table of labels names them; `classes` are all words that it may hold there.
    classification: Network | None = None
    class_column: Name | None = None
    positive: Name | None = None
    classes: tuple[str, ...] = ()
    decision: Decision = Decision()
    training: Training
    measured: tuple[Measured, ...]
    trained_on: tuple[Sha256, ...]
    returned: Returned = Returned()
    split: Split = Split()
    early_stop: EarlyStop = EarlyStop()
    gate: Gate | None = None
    robustness: Robustness | None = None
    running: Running = Running()
    priors: Priors = Priors()

    @model_validator(mode="after")
    def _does_something(self) -> "ModelCard":
        if self.segmentation is None and not self.tells_class:
            raise ValueError("segmentation: the card names no network that outlines, and none for the whole study")
        if self.segmentation is None and (self.ensemble or self.returned.objects):
            raise ValueError("segmentation: without it there is neither an ensemble nor anything to be returned")
        if self.segmentation is not None and "minimum_volume_mm3" not in self.decision.model_fields_set:
            raise ValueError("decision.minimum_volume_mm3: say how large a region must be to be reported")
        return self

    @model_validator(mode="after")
    def _classes_are_of_studies(self) -> "ModelCard":
        named = self.class_column is not None and self.positive is not None
        if self.tells_class and not named:
            raise ValueError("classification: with preprocessing.depth it is of the study: name positive, class_column")
        if not self.tells_class and (self.class_column or self.positive or self.classes):
            raise ValueError("class_column, positive, classes: only for a classification with preprocessing.depth")
        if self.classes and self.positive not in self.classes:
            raise ValueError(f"classes: {self.positive} is not among them")
        return self

    @model_validator(mode="after")
    def _ranges_run_upwards(self) -> "ModelCard":
        for name in ("slice_distance_mm", "head_extent_mm"):
            limits = getattr(self.envelope, name)
            if limits is not None and not limits[0] < limits[1]:
                raise ValueError(f"envelope.{name}: the first number must be below the second")
        return self

    @model_validator(mode="after")
    def _networks_have_weights_of_their_own(self) -> "ModelCard":
        files = [n.weights for n in self.networks.values()]
        if len(set(files)) < len(files):
            raise ValueError("weights: two networks name the same file")
        return self

    @model_validator(mode="after")
    def _grid_is_a_required_input(self) -> "ModelCard":
        if self.grid not in self.inputs:
            raise ValueError(f"grid: {self.grid} is not one of the inputs {sorted(self.inputs)}")
        if not self.inputs[self.grid].required:
            raise ValueError(f"grid: the input {self.grid} must be required")
        return self

    @property
    def content(self) -> bytes:
        """The card as the bytes that `digest` is of; comments and layout of the YAML do not count.

        Keys are sorted but for those of `inputs`: their order is the order of the networks' channels.
        """
        fields = self.model_dump(mode="json")
        for name in without_defaults(self, *_LATER):
            del fields[name]
        for name in without_defaults(self.preprocessing, "depth", "window"):
            del fields["preprocessing"][name]
        for name in without_defaults(self.decision, "class_threshold", "temperature"):
            del fields["decision"][name]
        fields["inputs"] = {name: _sorted(rule) for name, rule in fields["inputs"].items()}
        ordered = {k: fields[k] if k == "inputs" else _sorted(fields[k]) for k in sorted(fields)}
        return json.dumps(ordered, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """sha256 of `content`."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def networks(self) -> dict[str, Network]:
        """Every network by its place in the card, those that outline first."""
        parts = {} if self.segmentation is None else {"segmentation": self.segmentation}
        parts |= {f"ensemble.{number}": network for number, network in enumerate(self.ensemble)}
        return parts if self.classification is None else parts | {"classification": self.classification}

    @property
    def tells_class(self) -> bool:
        """Whether its classification is of the whole study."""
        return self.classification is not None and self.preprocessing.depth is not None

    @property
    def weights_digest(self) -> str:
        """sha256 that stands for the weights of all networks of the card."""
        return digest_of_weights(self.networks.values())

    @property
    def minimum_volume_ml(self) -> float:
        """The smallest region that is reported, in ml."""
        return self.decision.minimum_volume_mm3 / 1000


# Fields that came after cards were written.
_LATER = (
    "returned", "split", "early_stop", "gate", "robustness", "running", "segmentation", "class_column", "positive",
    "classes", "priors",
)  # fmt: skip


def without_defaults(card: Frozen, *names: str) -> tuple[str, ...]:
    """Those of the fields that say nothing: cards from before them keep the digest that reports name them by."""
    return tuple(n for n in names if getattr(card, n) == type(card).model_fields[n].default)


def digest_of_weights(networks: Iterable[Network]) -> str:
    """sha256 that stands for the weights of several networks."""
    return hashlib.sha256(" ".join(n.sha256 for n in networks).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value)}
    return [_sorted(v) for v in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the networks of one card say, on the grid of the card's grid input.

    probability (i, j, k) float32 in 0..1; mask (i, j, k) bool; slice_probability (k,) float32 in 0..1 from the
    classifier, a network of its own, or None where the card has none. `positive` is the probability of the card's
    positive class for the whole study, None where the card tells none. `device` says what computed it where that is not
    what was asked for: memory ran out. `agreement` is the least Dice between the outlines of two networks, None where
    there are fewer.
    """

    probability: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    slice_probability: npt.NDArray[np.float32] | None
    device: str = ""
    positive: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        for values in (self.probability, self.slice_probability, self.positive):
            # NaN compares as "not above the threshold": it would read as "nothing marked".
            if values is not None and not np.isfinite(values).all():
                raise ArithmeticError("the networks returned values that are not numbers")


class Predictor(Protocol):
    """What can turn volumes into a prediction; `medrec.models` holds the real one."""

    card: ModelCard

    def predict(self, inputs: Mapping[str, Volume]) -> Prediction:
        """Inputs by their name in the card; absent optional ones are left out."""
        ...
