"""How far a volume may be off: intervals that held the truth as often as they say, on patients who were held out.

Owns `Uncertainty`, a card's factors, and their calibration by split-conformal prediction: the factors are quantiles of
how the true volume relates to the marked one, on patients from whom the networks did not learn. Invariants: no
interval without enough held-out patients; an interval never reaches below 0.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from medrec.fields import Frozen, NotNegative, Positive

Floats = npt.NDArray[np.float64]
FEWEST = 20  # with fewer the quantile of one side in twenty is not there: (n + 1) * 0.95 is more than n
LEVEL = 0.9
OFFSET_ML = 1.0  # added to both volumes, so that a lesion that was missed has a ratio as well
CONFIDENCE = 0.95


class Held(Frozen):
    """How often the truth lay within the interval, of `patients` held out, with an exact 95% interval of that share."""

    patients: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(ge=0, le=1)]
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]
    on: str = ""


class Uncertainty(Frozen):
    """The interval of a volume: from `low` to `high` times what is marked, with `offset_ml` added before, off after.

    `held` says what it is worth, `by_size` the same for patients with less and with more marked than the median.
    """

    level: Annotated[float, Field(gt=0, lt=1)] = LEVEL
    offset_ml: NotNegative = OFFSET_ML
    low: Positive
    high: Positive
    held: Held
    by_size: tuple[tuple[str, Held], ...] = ()

    @model_validator(mode="after")
    def _runs_upwards(self) -> "Uncertainty":
        if not self.low <= self.high:
            raise ValueError("low must not be above high")
        return self

    def interval_ml(self, marked_ml: float) -> tuple[float, float]:
        """Where the true volume lies, as often as `held` says."""
        moved = marked_ml + self.offset_ml
        return max(0.0, moved * self.low - self.offset_ml), max(0.0, moved * self.high - self.offset_ml)


def calibrated(
    true_ml: Floats, marked_ml: Floats, folds: Sequence[int], on: str, level: float = LEVEL
) -> Uncertainty | None:
    """From held-out volumes (n,); `folds` says whose networks were the same, for none of them judges itself.

    What is stated of the coverage is measured fold by fold, with factors from the other folds (one patient at a time
    where there is one fold only). None with fewer than `FEWEST` patients.
    """
    if len(true_ml) < FEWEST:
        return None
    ratios = np.log((true_ml + OFFSET_ML) / (marked_ml + OFFSET_ML))
    groups = np.asarray(folds)
    groups = groups if len(np.unique(groups)) > 1 else np.arange(len(ratios))
    inside = np.zeros(len(ratios), bool)
    for group in np.unique(groups):
        low, high = _factors(ratios[groups != group], level)
        inside[groups == group] = (ratios[groups == group] >= low) & (ratios[groups == group] <= high)
    low, high = _factors(ratios, level)
    middle = float(np.median(marked_ml))
    smaller = marked_ml < middle
    sizes = ((f"below {middle:.0f} ml marked", smaller), (f"from {middle:.0f} ml marked", ~smaller))
    return Uncertainty(
        level=level,
        low=round(float(np.exp(low)), 4),
        high=round(float(np.exp(high)), 4),
        held=held(inside, on),
        by_size=tuple((words, held(inside[some])) for words, some in sizes if some.any()),
    )


def held(inside: npt.NDArray[np.bool_], on: str = "") -> Held:
    """The share of patients (n,) with the exact interval of Clopper and Pearson (1934)."""
    low, high = exact(int(inside.sum()), len(inside))
    return Held(patients=len(inside), share=round(float(inside.mean()), 3), low=low, high=high, on=on)


def exact(hits: int, of: int) -> tuple[float, float]:
    """Clopper and Pearson's 95% interval of a share, to three digits."""
    from scipy import stats  # most of a second, which no night needs

    found = stats.binomtest(hits, of).proportion_ci(CONFIDENCE, method="exact")
    return round(float(found.low), 3), round(float(found.high), 3)


def _factors(ratios: Floats, level: float) -> tuple[float, float]:
    """The logs of both factors: conformal quantiles, half of what may miss on either side."""
    side = (1 - level) / 2
    rank = min(len(ratios), int(np.ceil((len(ratios) + 1) * (1 - side))))
    ordered = np.sort(ratios)
    return float(ordered[len(ratios) - rank]), float(ordered[rank - 1])
