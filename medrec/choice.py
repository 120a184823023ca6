"""Which cases teach most when somebody labels them next: where networks disagree, what is unlike all that is labelled.

Owns `Candidate`, `Chosen` and `choose`: greedy k-centres (Gonzalez 1985; Sener & Savarese 2018) on robustly scaled
features, with disagreement as a bonus of at most the greatest distance. Pure. Invariants: one of a patient; each is
chosen for a reason in words; the order of the candidates is irrelevant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FAR = 0.5  # of the greatest distance: from there on a case is called unlike
DOUBT = 0.2  # of disagreement, from 0 to 1: from there on it is named
NAMED = 2  # features that are named as unlike
LIMIT = 5.0  # scaled features are cut off there: one broken number must not choose for all

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One case; `doubts` are disagreements from 0 to 1, by what to call them."""

    case: str
    patient: str
    features: Mapping[str, float]
    doubts: Mapping[str, float]

    @property
    def doubt(self) -> float:
        """The greatest of them."""
        return max(self.doubts.values(), default=0.0)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A case with its distance to what is labelled or was chosen before it, and why it was chosen."""

    candidate: Candidate
    distance: float
    why: tuple[str, ...]


def choose(candidates: Sequence[Candidate], labelled: Sequence[Mapping[str, float]], count: int) -> tuple[Chosen, ...]:
    """At most `count` cases of as many patients, the most telling first; `labelled` are features of what has labels."""
    left = sorted(candidates, key=lambda c: c.case)
    if not left:
        return ()
    names, scaled = _scaled([c.features for c in left], labelled)
    points, centres = list(scaled[: len(left)]), list(scaled[len(left) :])
    greatest = max((_nearest(p, centres)[0] for p in points), default=0.0) if centres else 0.0
    chosen: list[Chosen] = []
    while left and len(chosen) < count:
        distances = [_nearest(p, centres)[0] for p in points]
        greatest = greatest or max(distances)
        scores = [d / (greatest or 1.0) + c.doubt for d, c in zip(distances, left, strict=True)]
        if not centres:  # nothing is labelled: what is doubtful, else what is most like the others
            scores = [c.doubt - float(np.linalg.norm(p)) / 1e6 for p, c in zip(points, left, strict=True)]
        best = int(np.argmax(scores))
        why = _why(left[best], points[best], centres, greatest, names, begun=len(chosen))
        chosen.append(Chosen(left[best], round(distances[best], 3) if centres else 0.0, why))
        centres.append(points[best])
        keep = [n for n, c in enumerate(left) if c.patient != left[best].patient]
        left, points = [left[n] for n in keep], [points[n] for n in keep]
    return tuple(chosen)


def _scaled(first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]) -> tuple[list[str], Values]:
    """Names, and (cases, names) features around their median in units of their spread; what is absent is 0."""
    every = [*first, *second]
    names = sorted({name for features in every for name in features})
    table = np.array([[features.get(name, np.nan) for name in names] for features in every]).reshape(len(every), -1)
    middle = np.nanmedian(table, axis=0)
    spread = np.nanpercentile(table, 75, axis=0) - np.nanpercentile(table, 25, axis=0)
    spread = np.where(spread > 0, spread, np.nanstd(table, axis=0))
    scaled = (table - middle) / np.where(spread > 0, spread, 1.0)
    return names, np.clip(np.nan_to_num(scaled), -LIMIT, LIMIT)


def _nearest(point: Values, centres: Sequence[Values]) -> tuple[float, int]:
    if not centres:
        return 0.0, -1
    distances = np.linalg.norm(np.stack(centres) - point, axis=1)
    return float(distances.min()), int(distances.argmin())


def _why(
    candidate: Candidate, point: Values, centres: Sequence[Values], greatest: float, names: Sequence[str], begun: int
) -> tuple[str, ...]:
    told = [text for text, doubt in sorted(candidate.doubts.items(), key=lambda d: -d[1]) if doubt >= DOUBT]
    distance, nearest = _nearest(point, centres)
    if nearest < 0:
        return (*told, "nothing is labelled yet") if told else ("nothing is labelled yet: it is like most others",)
    if greatest and distance >= FAR * greatest:
        apart = np.abs(point - centres[nearest])
        most = [names[n] for n in np.argsort(-apart)[:NAMED] if apart[n] > 0]
        others = "what is labelled" + (" and the ones before it" if begun else "")
        told.append(f"unlike {others}: {' and '.join(most)}")
    return tuple(told) or ("the most telling of what is left",)
