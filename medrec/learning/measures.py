"""What a model did on each locked patient, in the measures that cards name.

Dice; surface distance (MONAI's symmetric average, in mm for volumes and pixels for pictures; where one of the two masks
is empty it is the diagonal of the image, not "undefined": a model that says nothing must not escape the mean);
lesion-wise sensitivity and false positives per study (26-connected components, one common voxel is a hit); and the
probability of a positive patient. Lesion sensitivity does not apply to a patient without lesion, which the truth alone
decides, so that two models always have the same patients. A patient counts once, however many images there are.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics import compute_average_surface_distance
from scipy import ndimage

from medrec.gate import Scores
from medrec.learning.cases import LabelledCase
from medrec.learning.pictures import LabelledPicture
from medrec.models.still import StillPredictor
from medrec.prediction import Predictor
from medrec.statistics import dice

Mask = npt.NDArray[np.bool_]
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the probability map, for FROC


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a model says of one image beside the truth: maps on its grid, and the chance that it is positive.

    `spacing` is that of the axes, in `unit`; `chance` is None without a classifier, `outlined` False without a mask.
    """

    patient: str
    probability: npt.NDArray[np.float32]
    mask: Mask
    truth: Mask
    spacing: tuple[float, ...]
    chance: float | None
    positive: bool
    outlined: bool


def answer(predictor: Predictor | StillPredictor, payload: LabelledCase | LabelledPicture) -> Answer:
    """One image through a predictor."""
    if isinstance(payload, LabelledPicture):
        assert isinstance(predictor, StillPredictor)
        said = predictor.predict(payload.pixels)
        outlined = payload.outlined and predictor.card.segmentation is not None
        return Answer(
            payload.patient, said.probability, said.mask, payload.mask, (1.0, 1.0),
            said.positive if payload.classed else None, payload.positive, outlined,
        )  # fmt: skip
    assert not isinstance(predictor, StillPredictor)
    found = predictor.predict({n: v for n, v in payload.inputs.items() if n in predictor.card.inputs})
    spacing = payload.inputs[predictor.card.grid].spacing_mm
    outlined = payload.outlined and predictor.card.segmentation is not None
    chance, positive = found.positive, bool(payload.positive)
    if predictor.card.tells_class:
        chance = None if payload.positive is None else chance
    elif found.slice_probability is not None and payload.outlined:
        chance, positive = float(found.slice_probability.max()), bool(payload.mask.any())
    return Answer(
        payload.patient, found.probability, found.mask, payload.mask, tuple(float(s) for s in spacing), chance,
        positive, outlined,
    )  # fmt: skip


def of_image(answer: Answer, distances: bool = True) -> dict[str, float]:
    """The measures of one image by name; those that do not apply are absent, and distances when they are not wanted."""
    values: dict[str, float] = {}
    if answer.outlined:
        values["dice"] = dice(answer.mask, answer.truth)
        if distances:  # they take longer than a network does
            values["surface_distance"] = surface_distance(answer.mask, answer.truth, answer.spacing)
        hits, lesions, false = lesions_found(answer.mask, answer.truth)
        values["false_positives"] = float(false)
        if lesions:
            values["lesion_sensitivity"] = hits / lesions
    if answer.chance is not None:
        values["brier"] = (answer.chance - answer.positive) ** 2
        values["auc"] = values["sensitivity"] = answer.chance
    return values


def scores(model: str, answers: Iterable[Answer], distances: bool = True) -> Scores:
    """The measures by patient, each the mean over the patient's images; positive is who has one positive image."""
    of: dict[str, dict[str, list[float]]] = {}
    truth: dict[str, bool] = {}
    for one in answers:
        for name, value in of_image(one, distances).items():
            of.setdefault(name, {}).setdefault(one.patient, []).append(value)
        if one.chance is not None:
            truth[one.patient] = truth.get(one.patient, False) or one.positive
    values = {name: {p: float(np.mean(v)) for p, v in patients.items()} for name, patients in of.items()}
    if "auc" in values:
        values["brier"] = {p: (chance - truth[p]) ** 2 for p, chance in values["auc"].items()}
    if len(set(truth.values())) < 2:  # all of one class: neither area nor sensitivity exist
        values = {name: v for name, v in values.items() if name not in ("auc", "sensitivity")}
    return Scores(model, values, truth)


def surface_distance(mask: Mask, truth: Mask, spacing: Sequence[float]) -> float:
    """Mean distance of the two outlines, symmetric, in the unit of `spacing`."""
    if not mask.any() and not truth.any():
        return 0.0
    if not mask.any() or not truth.any():
        return float(np.linalg.norm(np.array(mask.shape) * np.array(spacing)))
    box = tuple(
        slice(max(0, int(n.min()) - 1), int(n.max()) + 2) for n in np.nonzero(mask | truth)
    )  # the rest is empty, and MONAI would look at all of it
    a, b = (torch.from_numpy(np.ascontiguousarray(m[box]))[None, None].float() for m in (mask, truth))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument of its own
        return float(compute_average_surface_distance(a, b, True, symmetric=True, spacing=list(spacing)))


def lesions_found(mask: Mask, truth: Mask) -> tuple[int, int, int]:
    """How many true lesions were touched, how many there are, and how many marked regions touch none."""
    structure = np.ones((3,) * mask.ndim, bool)
    regions, marked = ndimage.label(mask, structure)
    lesions, true = ndimage.label(truth, structure)
    touched = np.unique(lesions[mask & truth])
    right = np.unique(regions[mask & truth])
    return len(touched), int(true), int(marked) - len(right)


def froc(answers: Sequence[Answer]) -> tuple[tuple[float, float, float], ...]:
    """(threshold, false positives per image, lesion sensitivity) where images without lesion exist; else nothing."""
    outlined = [a for a in answers if a.outlined]
    if not any(a.truth.any() for a in outlined) or all(a.truth.any() for a in outlined):
        return ()
    points = []
    for threshold in THRESHOLDS:
        found = [lesions_found(a.probability > threshold, a.truth) for a in outlined]
        lesions = sum(n for _, n, _ in found)
        points.append((threshold, sum(f for _, _, f in found) / len(found), sum(h for h, _, _ in found) / lesions))
    return tuple(points)


def by_subgroup(scores: Scores, group_of: Mapping[str, str], measure: str) -> dict[str, list[float]]:
    """The values of a measure by subgroup of patients."""
    found: dict[str, list[float]] = {}
    for patient, value in scores.values.get(measure, {}).items():
        found.setdefault(group_of.get(patient, "unknown"), []).append(value)
    return found
