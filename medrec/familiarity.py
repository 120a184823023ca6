"""How far an image lies from those that a model learnt from, and what a limit on that is worth.

Owns `Familiar`, the shape of a training set in a few numbers of each patient, its distance, and the curve of risk over
coverage. Knows no network: rows of numbers come in. Invariants: a limit comes from distances of patients who did not
shape what they are measured against; nothing of a single patient can be read back from what is kept.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Brightness, after the card's normalisation, in steps over the range that networks see; and how sharp the image is.
BRIGHTNESS = np.linspace(-4.0, 8.0, 25)
SHARPNESS_PERCENTILES = (50, 90, 99)
LOOKS = len(BRIGHTNESS) - 1 + len(SHARPNESS_PERCENTILES) + 2  # the numbers of a row that no network made
ALARMS = 0.05  # the share of familiar patients that may lie beyond the limit: one in twenty
MISTAKES = 0.025  # and of those that may be taken for another sequence: one in forty
FEWEST = 20  # patients, below which no limit is told
MOST_FITS = 100
PARTS = ("means", "spread", "precision", "shared")
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
    """What rows of training patients look like, of each kind of image that a card knows: the one that is judged first.

    means (kinds, d), spread (d,), and the precisions (d, d) of what is scaled: that of the first kind, and the one
    that all kinds share, by which they are told apart.
    """

    means: Floats
    spread: Floats
    precision: Floats
    shared: Floats

    def distance(self, row: Floats) -> float:
        """Mahalanobis' distance of a row (d,), by the root of d: about 1 where a patient is like the others."""
        return float(np.sqrt(_square((row - self.means[0]) / self.spread, self.precision)))

    def margin(self, row: Floats) -> tuple[float, int]:
        """How much nearer a row (d,) is to its own kind than to the nearest other, and which that is; (inf, 0) alone.

        In squares of `distance`; below 0 it is nearer to the other: linear discriminant analysis.
        """
        own, *others = (_square(z, self.shared) for z in (row - self.means) / self.spread)
        if not others:
            return float("inf"), 0
        nearest = int(np.argmin(others))
        return float(others[nearest] - own), nearest + 1

    def strangest(self, row: Floats) -> str:
        """In what a row (d,) is least like the others, in plain words."""
        z = ((row - self.means[0]) / self.spread) ** 2
        parts = {
            "its brightness": z[: len(BRIGHTNESS) - 1],
            "its sharpness and noise": z[len(BRIGHTNESS) - 1 : LOOKS],
            "its texture, as the network sees it": z[LOOKS:],
        }
        return max(parts, key=lambda name: float(parts[name].mean()) if len(parts[name]) else 0.0)

    def arrays(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """For a file."""
        return {n: getattr(self, n).astype(np.float32) for n in PARTS}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[np.float32]]) -> "Familiar":
        """From a file. Raises ValueError when it holds something else."""
        if set(arrays) != set(PARTS):
            raise ValueError(f"{', '.join(PARTS)} are needed")
        found = cls(*(np.asarray(arrays[n], np.float64) for n in PARTS))
        size = len(found.spread)
        shapes = (found.means.shape[1:], found.precision.shape, found.shared.shape)
        if shapes != ((size,), (size, size), (size, size)):
            raise ValueError(f"{', '.join(PARTS)} are of different sizes")
        if not all(np.isfinite(a).all() for a in (found.means, found.spread, found.precision, found.shared)):
            raise ValueError("there are values that are no numbers")
        if not (len(found.means) and (found.spread > 0).all()):
            raise ValueError("a spread is not above 0")
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What patients look like: `rows` (n, d), whose `kinds` (n,) is 0 for images to be judged, `patients` (n,)."""

    rows: Floats
    kinds: npt.NDArray[np.int64]
    patients: tuple[str, ...]

    def part(self, chosen: npt.NDArray[np.bool_]) -> "Rows":
        """Those that are chosen (n,)."""
        names = tuple(p for p, c in zip(self.patients, chosen, strict=True) if c)
        return Rows(self.rows[chosen], self.kinds[chosen], names)

    def of(self, patients: Collection[str]) -> npt.NDArray[np.bool_]:
        """Which rows are these patients' (n,)."""
        return np.isin(self.patients, list(patients))


def fit(known: Rows) -> Familiar:
    """The shape of each kind."""
    means = np.array([known.rows[known.kinds == kind].mean(0) for kind in range(known.kinds.max() + 1)])
    rest = known.rows - means[known.kinds]
    spread, precision = _precision(rest[known.kinds == 0])
    of_all, shared = _precision(rest)
    return Familiar(means, spread, precision, shared * np.outer(spread / of_all, spread / of_all))


def _precision(rest: Floats) -> tuple[Floats, Floats]:
    """Spread (d,) and precision (d, d) of what is scaled by it, of rows around 0; few rows, many numbers: shrunk."""
    from sklearn.covariance import ledoit_wolf  # Ledoit and Wolf 2004; two seconds, which no night needs

    spread = rest.std(0)
    spread = spread + FLAT * spread.mean() + EMPTY
    return spread, np.linalg.inv(ledoit_wolf(rest / spread, assume_centered=True)[0])


def _square(z: Floats, precision: Floats) -> float:
    return max(0.0, float(z @ precision @ z) / len(z))


def held_out(known: Rows) -> tuple[Floats, Floats]:
    """Distances and margins of the rows to be judged, each from a fit without its patient; both (n of kind 0,)."""
    distances, margins = np.zeros(len(known.rows)), np.zeros(len(known.rows))
    for away in _folds(known):
        familiar = fit(known.part(~away))
        for n in np.flatnonzero(away & (known.kinds == 0)):
            distances[n], margins[n] = familiar.distance(known.rows[n]), familiar.margin(known.rows[n])[0]
    judged = known.kinds == 0
    return distances[judged], margins[judged]


def limit(values: Floats, alarms: float) -> float:
    """The value that at most `alarms` of patients like these pass: the conformal quantile, the largest at most."""
    ordered = np.sort(values)
    rank = int(np.ceil((len(ordered) + 1) * (1 - alarms)))
    return float(ordered[min(rank, len(ordered)) - 1])


def risk_coverage(
    distances: Floats, scores: Floats, shares: Sequence[float] = (1.0, 0.95, 0.9, 0.75, 0.5)
) -> tuple[tuple[float, float], ...]:
    """The mean score of the most familiar share of patients, for each share: what abstaining would buy."""
    order = np.argsort(distances, kind="stable")
    kept = [max(1, round(share * len(order))) for share in shares]
    return tuple((share, float(scores[order[:n]].mean())) for share, n in zip(shares, kept, strict=True))


def _folds(known: Rows) -> Iterator[npt.NDArray[np.bool_]]:
    """Who is away: one patient at a time, of many patients a part of them."""
    names = np.unique(known.patients)
    for part in np.array_split(names, min(len(names), MOST_FITS)):
        yield known.of(part.tolist())
