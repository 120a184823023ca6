"""Whether a probability means what it says: temperature, Brier score, slope and intercept of calibration."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import optimize

from medrec.statistics import CONFIDENCE, RESAMPLES, Interval, Values

SURE = 1e-6  # probabilities are kept this far from 0 and 1, where a logit ends
STEEPEST = 20.0  # a slope beyond this is that of classes that are told apart without an error


def logits(probabilities: Values) -> Values:
    """Log odds of probabilities, at most those of `SURE`."""
    p = np.clip(np.asarray(probabilities, float), SURE, 1 - SURE)
    return np.asarray(np.log(p / (1 - p)), np.float64)


def temperature(probabilities: Values, truth: npt.NDArray[np.bool_]) -> float:
    """What the logits are to be divided by, so that the truth is the least surprising (Guo et al., ICML 2017).

    1 where only one class is there, which fits any temperature.
    """
    if len(set(truth.tolist())) < 2:
        return 1.0
    z, y = logits(probabilities), truth.astype(float)

    def surprise(log_temperature: float) -> float:
        x = z / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, x) - y * x))

    found = optimize.minimize_scalar(surprise, bounds=(np.log(0.1), np.log(10)), method="bounded")
    return float(np.exp(found.x))


def tempered(probability: float, temperature: float) -> float:
    """A probability whose logit is divided by `temperature`."""
    if temperature == 1 or not 0 < probability < 1:
        return probability
    odds: float = (probability / (1 - probability)) ** (1 / temperature)
    return odds / (1 + odds)


def brier(probabilities: Values, truth: npt.NDArray[np.bool_]) -> float:
    """Mean squared distance of probability and truth."""
    return float(np.mean((np.asarray(probabilities, float) - truth) ** 2))


def slope_and_intercept(probabilities: Values, truth: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Of the logistic regression of the truth on the logit: 1 and 0 for a probability that means what it says."""
    z, y = logits(probabilities), truth.astype(float)

    def surprise(w: Values) -> float:
        x = w[0] * z + w[1]
        return float(np.mean(np.logaddexp(0, x) - y * x))

    bounds = [(-STEEPEST, STEEPEST), (-STEEPEST, STEEPEST)]
    found = optimize.minimize(surprise, np.array([1.0, 0.0]), method="L-BFGS-B", bounds=bounds)
    return float(found.x[0]), float(found.x[1])


def intervals(probabilities: Values, truth: npt.NDArray[np.bool_], seed: int = 0) -> dict[str, Interval]:
    """Brier score, slope and intercept of one probability per patient, each with a bootstrap interval over patients."""
    rng = np.random.default_rng(seed)
    sides = [np.flatnonzero(truth), np.flatnonzero(~truth)]

    def measured(pick: npt.NDArray[np.int64]) -> tuple[float, float, float]:
        return (brier(probabilities[pick], truth[pick]), *slope_and_intercept(probabilities[pick], truth[pick]))

    whole = measured(np.arange(len(truth)))
    draws = [measured(np.concatenate([rng.choice(side, len(side)) for side in sides])) for _ in range(RESAMPLES // 10)]
    ends = np.quantile(np.array(draws), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    names: Sequence[str] = ("Brier score", "calibration slope", "calibration intercept")
    return {n: Interval(v, float(lo), float(hi)) for n, v, lo, hi in zip(names, whole, *ends, strict=True)}
