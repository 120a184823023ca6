"""How far an image lies from those that a model learnt from, and what a limit on that is worth.

Owns `Familiar`, the shape of a training set in a few numbers of each patient, its distance, and the curve of risk over
coverage. Knows no network: rows of numbers come in. Invariants: a limit comes from distances of patients who did not
shape what they are measured against; nothing of a single patient can be read back from what is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Brightness, after the card's normalisation, in steps over the range that networks see; and how sharp the image is.
BRIGHTNESS = np.linspace(-4.0, 8.0, 25)
SHARPNESS_PERCENTILES = (50, 90, 99)
LOOKS = len(BRIGHTNESS) - 1 + len(SHARPNESS_PERCENTILES) + 2  # the numbers of a row that no network made
ALARMS = 0.025  # the share of familiar patients that may be flagged: one in forty
FEWEST = 20  # patients, below which no limit is told
FOLDS = 20  # a fit for each patient up to so many, then for each twentieth
FLAT = 0.02  # of the typical spread: a number that never varied in training may vary by so much
EMPTY = 1e-6


def looks(images: npt.NDArray[np.float32]) -> Floats:
    """(k, y, x) as networks see them to (LOOKS,): shares of each brightness (their roots), edges and fine grain."""
    shares = np.histogram(images, BRIGHTNESS)[0] / images.size
    steps = np.hypot(*np.gradient(images, axis=(1, 2)))
    grain = np.abs(
        4 * images[:, 1:-1, 1:-1]
        - images[:, :-2, 1:-1]
        - images[:, 2:, 1:-1]
        - images[:, 1:-1, :-2]
        - images[:, 1:-1, 2:]
    )
    fine = [steps.mean(), grain.mean(), *np.percentile(grain, SHARPNESS_PERCENTILES)]
    return np.concatenate([np.sqrt(shares), np.log(np.array(fine) + EMPTY)])


@dataclass(frozen=True, slots=True, eq=False)
class Familiar:
    """What rows of training patients look like: mean (d,), spread (d,), and the precision (d, d) of what is scaled."""

    mean: Floats
    spread: Floats
    precision: Floats

    def distance(self, row: Floats) -> float:
        """Mahalanobis' distance of a row (d,), by the root of d: about 1 where a patient is like the others."""
        z = (row - self.mean) / self.spread
        return float(np.sqrt(max(0.0, z @ self.precision @ z) / len(z)))

    def strangest(self, row: Floats) -> str:
        """In what a row (d,) is least like the others, in plain words."""
        z = ((row - self.mean) / self.spread) ** 2
        parts = {
            "its brightness": z[: len(BRIGHTNESS) - 1],
            "its sharpness and noise": z[len(BRIGHTNESS) - 1 : LOOKS],
            "its texture, as the network sees it": z[LOOKS:],
        }
        return max(parts, key=lambda name: float(parts[name].mean()) if len(parts[name]) else 0.0)

    def arrays(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """For a file."""
        return {n: getattr(self, n).astype(np.float32) for n in ("mean", "spread", "precision")}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> "Familiar":
        """From a file. Raises ValueError when it holds something else."""
        if set(arrays) != {"mean", "spread", "precision"}:
            raise ValueError("mean, spread and precision are needed")
        found = cls(*(np.asarray(arrays[n], np.float64) for n in ("mean", "spread", "precision")))
        size = len(found.mean)
        if found.mean.shape != (size,) or found.spread.shape != (size,) or found.precision.shape != (size, size):
            raise ValueError("mean, spread and precision are of different sizes")
        if not all(np.isfinite(a).all() for a in (found.mean, found.spread, found.precision)):
            raise ValueError("there are values that are no numbers")
        if not (found.spread > 0).all():
            raise ValueError("a spread is not above 0")
        return found


def fit(rows: Floats) -> Familiar:
    """The shape of (n, d) rows; few patients and many numbers: the covariance is shrunk (Ledoit and Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf  # two seconds, which no night needs

    mean, spread = rows.mean(0), rows.std(0)
    spread = spread + FLAT * spread.mean() + EMPTY
    covariance, _ = ledoit_wolf((rows - mean) / spread)
    return Familiar(mean, spread, np.linalg.inv(covariance))


def held_out(rows: Floats, patients: Sequence[str]) -> Floats:
    """(n,) distances of rows (n, d), each from a fit without its patient."""
    found = np.empty(len(rows))
    for away in _folds(patients):
        familiar = fit(rows[~away])
        found[away] = [familiar.distance(row) for row in rows[away]]
    return found


def limit(distances: Floats, alarms: float = ALARMS) -> float:
    """The distance that at most `alarms` of patients like these pass (the conformal quantile, the largest at most)."""
    ordered = np.sort(distances)
    rank = int(np.ceil((len(ordered) + 1) * (1 - alarms)))
    return float(ordered[min(rank, len(ordered)) - 1])


def risk_coverage(
    distances: Floats, scores: Floats, shares: Sequence[float] = (1.0, 0.95, 0.9, 0.75, 0.5)
) -> tuple[tuple[float, float], ...]:
    """The mean score of the most familiar share of patients, for each share: what abstaining would buy."""
    order = np.argsort(distances, kind="stable")
    kept = [max(1, round(share * len(order))) for share in shares]
    return tuple((share, float(scores[order[:n]].mean())) for share, n in zip(shares, kept, strict=True))


def _folds(patients: Sequence[str]) -> Iterator[npt.NDArray[np.bool_]]:
    names = np.asarray(patients)
    known = np.unique(names)
    for part in np.array_split(known, min(len(known), max(FOLDS, 1)) if len(known) > 100 else len(known)):
        yield np.isin(names, part)
