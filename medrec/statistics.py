"""Numbers with their uncertainty: intervals by patient, areas under curves.

Owns nothing but functions; scikit-learn and scipy do the work. A patient, not an image or a slice, is what is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 2000

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(hits: int, of: int) -> Interval:
    """How many of so many, with the exact interval of Clopper and Pearson; `of` is at least 1."""
    from scipy import stats  # most of a second, which no night needs

    interval = stats.binomtest(hits, of).proportion_ci(CONFIDENCE, "exact")
    return Interval(hits / of, float(interval.low), float(interval.high))


def mean(values: Sequence[float], statistic: Callable[..., float] = np.mean, seed: int = 0) -> Interval:
    """A statistic of one value per patient, with a percentile bootstrap interval over patients."""
    from scipy import stats  # most of a second, which no night needs

    data = np.asarray(values, float)
    result = stats.bootstrap(
        (data,),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(statistic(data)), float(low), float(high))


def mean_of_images(
    values: Sequence[float], patients: Sequence[str], statistic: Callable[..., float] = np.mean, seed: int = 0
) -> Interval:
    """A statistic of one value per image; the interval draws whole patients, with all images that they have.

    `values` and `patients` hold one entry per image.
    """
    data, names = np.asarray(values, float), np.asarray(patients)
    images = [np.flatnonzero(names == name) for name in np.unique(names)]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(images), len(images))
        draws.append(float(statistic(data[np.concatenate([images[n] for n in drawn])])))
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(data)), float(low), float(high))


def pooled_auc(scores: Sequence[Values], truths: Sequence[npt.NDArray[np.bool_]], seed: int = 0) -> Interval:
    """Area under the ROC curve over the slices of all patients; the interval draws whole patients.

    `scores` and `truths` hold one array per patient, (slices,) each.
    """
    from sklearn.metrics import roc_auc_score  # two seconds, which no night needs

    rng = np.random.default_rng(seed)

    def auc(patients: npt.NDArray[np.int64]) -> float:
        truth = np.concatenate([truths[p] for p in patients])
        return float(roc_auc_score(truth, np.concatenate([scores[p] for p in patients])))

    everyone = np.arange(len(scores))
    draws = [auc(rng.choice(everyone, len(everyone))) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(auc(everyone), float(low), float(high))


def auc(scores: Values, truth: npt.NDArray[np.bool_], seed: int = 0) -> Interval:
    """Area under the ROC curve of one score per patient, both (patients,), with a bootstrap interval over patients.

    A draw that holds one class only has no area and is drawn again.
    """
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(seed)
    draws: list[float] = []
    while len(draws) < RESAMPLES:
        pick = rng.integers(0, len(truth), len(truth))
        if truth[pick].any() and not truth[pick].all():
            draws.append(float(roc_auc_score(truth[pick], scores[pick])))
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(roc_auc_score(truth, scores)), float(low), float(high))


def dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Dice overlap of two masks of one shape; two empty ones agree fully."""
    total = int(a.sum()) + int(b.sum())
    return 1.0 if total == 0 else 2 * int((a & b).sum()) / total


def pooled(
    scores: Values,
    truth: npt.NDArray[np.bool_],
    statistic: Callable[[Values, npt.NDArray[np.bool_]], Values],
    seed: int = 0,
) -> Interval:
    """A statistic of all patients together, one score each (patients,), with a bootstrap interval over patients.

    `statistic` takes rows of scores (draws, patients) and the truth (patients,). Patients are drawn within their class,
    so that a draw always holds both.
    """
    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    order = np.concatenate(sides)
    draws = np.concatenate([rng.choice(side, (RESAMPLES, len(side))) for side in sides], 1)
    values = statistic(scores[draws], truth[order])
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(scores[None], truth)[0]), float(low), float(high))
