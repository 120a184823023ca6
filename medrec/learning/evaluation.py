"""How good a card's networks are on patients that were not trained on.

The same predictor as in the nightly run, on the grid of the series. Slice position alone is measured beside the
classifier, because in these patients it already tells much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medrec import findings
from medrec.learning.cases import LabelledCase
from medrec.prediction import Measured, Predictor
from medrec.statistics import Values, dice, mean, pooled_auc
from medrec.volume import voxel_volume_mm3


@dataclass(frozen=True, slots=True, eq=False)
class CaseScore:
    """One patient: overlap, volumes, and per slice what the classifier says and what is true.

    `marked_ml` is what a report would say: regions below the card's smallest do not count.
    """

    study: str
    dice: float
    true_ml: float
    marked_ml: float
    slice_score: Values
    slice_truth: npt.NDArray[np.bool_]


def score(case: LabelledCase, predictor: Predictor) -> CaseScore:
    """Predict one case and compare it with its mask."""
    card = predictor.card
    prediction = predictor.predict(case.inputs)
    affine = case.inputs[card.grid].affine_ijk_to_lps
    voxel_ml = voxel_volume_mm3(affine) / 1000
    reported = findings.label(prediction.mask, affine, findings.Rules(card.decision.minimum_volume_mm3)) > 0
    scores = prediction.slice_probability
    return CaseScore(
        case.study,
        dice(prediction.mask, case.mask),
        float(case.mask.sum()) * voxel_ml,
        float(reported.sum()) * voxel_ml,
        np.zeros(0) if scores is None else scores.astype(np.float64),
        np.asarray(case.mask.any((0, 1))),
    )


def measured(scores: Sequence[CaseScore], on: str) -> tuple[Measured, ...]:
    """The numbers for a card, each with an interval over patients."""
    overlaps = [s.dice for s in scores]
    values = [("Dice, mean by patient", mean(overlaps)), ("Dice, median by patient", mean(overlaps, np.median))]
    if all(len(s.slice_score) for s in scores):
        truths = [s.slice_truth for s in scores]
        values += [
            ("slice AUC of the classifier", pooled_auc([s.slice_score for s in scores], truths)),
            ("slice AUC of slice position alone", pooled_auc([_middle(len(t)) for t in truths], truths)),
        ]
    return tuple(
        Measured(what=what, value=round(i.value, 3), low=round(i.low, 3), high=round(i.high, 3), on=on)
        for what, i in values
    )


def _middle(slices: int) -> Values:
    """How near each slice is to the middle of the stack, (slices,) in 0..1: what position alone can tell."""
    position = (np.arange(slices) + 0.5) / slices
    return np.asarray(1 - 2 * np.abs(position - 0.5), float)
