"""Lesions of two studies of one patient, held against each other where the heads lie on each other.

Owns `Change` and `compare`. A lesion is another's where they overlap; what only lies close by is said to be neither
the same nor new. Invariants: every lesion of both studies is in exactly one change; "grown" and "shrunk" are said only
of what differs by more than a repeated measurement does, "new" and "gone" only where the other image reaches; swapping
the studies swaps the words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from medrec.findings import Finding
from medrec.volume import to_world

Floats = npt.NDArray[np.float64]
Kind = Literal["same", "split", "merged", "regrouped", "only now", "only before"]
Word = Literal["grown", "shrunk", "no change beyond repeatability", "new", "gone", "not told"]

SHARE = 0.1  # of the smaller of two lesions must lie within the other: less is what a misplacement of a voxel makes
NEAR_MM = 5.0  # lesions of both studies that do not overlap and are no farther apart may be one after all
REACHED = 0.99  # of a lesion must lie where the other image reaches


@dataclass(frozen=True, slots=True)
class Repeatability:
    """By how much two measurements of what did not change differ in 95 of 100 pairs.

    Of a volume it is `volume_relative` of the mean of both, and never less than a shell of `shell_mm` around a ball of
    that volume; of a diameter `diameter_mm`. Regions below `region_mm3` come and go. `source` says from where.
    """

    volume_relative: float
    shell_mm: float
    diameter_mm: float
    region_mm3: float
    source: str

    def volume_mm3(self, before_mm3: float, now_mm3: float) -> float:
        """What two volumes may differ by."""
        mean = (before_mm3 + now_mm3) / 2
        surface_mm2: float = math.pi ** (1 / 3) * (6 * mean) ** (2 / 3)
        return max(self.volume_relative * mean, self.shell_mm * surface_mm2)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """The lesions of one study: `labels` (i, j, k) numbers the `findings`; `minimum_mm3` is the smallest told."""

    labels: npt.NDArray[np.int32]
    affine_ijk_to_lps: Floats
    findings: tuple[Finding, ...]
    minimum_mm3: float


@dataclass(frozen=True, slots=True)
class Change:
    """One lesion, or several that cannot be told apart, in both studies; `why` says why there is no word.

    `now` and `before` are the lesions' numbers in the two reports. `overlap` is the share of the smaller side that lies
    within the other. Diameters are those of single lesions, None for several; `_repeatability` is beside what it is of.
    """

    kind: Kind
    word: Word
    why: str
    now: tuple[int, ...]
    before: tuple[int, ...]
    overlap: float
    volume_now_mm3: float
    volume_before_mm3: float
    volume_change_mm3: float
    volume_change_percent: float | None
    volume_repeatability_mm3: float
    longest_axial_change_mm: float | None
    perpendicular_change_mm: float | None
    longest_3d_change_mm: float | None
    diameter_repeatability_mm: float


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """A lesion's voxels: centres in LPS mm of its own study and of the other, and how far each study shows it whole."""

    finding: Finding
    own: Floats
    other: Floats
    hits: npt.NDArray[np.int32]
    reached: float
    cut: bool


def compare(now: Measured, before: Measured, now_to_before: Floats, repeatability: Repeatability) -> tuple[Change, ...]:
    """What became of every lesion, those of now first, largest first; `now_to_before` is 4x4, LPS mm to LPS mm."""
    here = _placed(now, before, now_to_before)
    there = _placed(before, now, _inverse(now_to_before))
    groups = _groups(here, there)
    near = _near(here, there)
    found = [_changed(group, here, there, near, now, before, repeatability) for group in groups]
    return tuple(sorted(found, key=lambda c: (not c.now, min(c.now or c.before))))


def _placed(own: Measured, other: Measured, to_other: Floats) -> list[_Placed]:
    into = _inverse(other.affine_ijk_to_lps)
    boxes = ndimage.find_objects(own.labels)
    placed = []
    for finding in own.findings:
        box = boxes[finding.number - 1]
        ijk = np.argwhere(own.labels[box] == finding.number) + [s.start for s in box]
        world = to_world(own.affine_ijk_to_lps, ijk)
        beyond = to_world(to_other, world)
        index = np.rint(to_world(into, beyond)).astype(int)
        inside = ((index >= 0) & (index < other.labels.shape)).all(1)
        hits = np.zeros(len(ijk), np.int32)
        hits[inside] = other.labels[tuple(index[inside].T)]
        ends = ijk[:, 2].min() == 0 or ijk[:, 2].max() == own.labels.shape[2] - 1
        placed.append(_Placed(finding, world, beyond, hits, float(inside.mean()), bool(ends)))
    return placed


def _inverse(affine: Floats) -> Floats:
    inverse: Floats = np.linalg.inv(affine).astype(np.float64)
    return inverse


def _overlaps(here: Sequence[_Placed], there: Sequence[_Placed]) -> Floats:
    """(now, before): the share of the smaller lesion within the other, the larger of both directions' counts."""
    shares = np.zeros((len(here), len(there)))
    for a, one in enumerate(here):
        for b, other in enumerate(there):
            forth = float((one.hits == other.finding.number).sum()) / len(one.hits)
            back = float((other.hits == one.finding.number).sum()) / len(other.hits)
            shares[a, b] = max(forth, back)
    return shares


def _groups(here: Sequence[_Placed], there: Sequence[_Placed]) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """Places of lesions that hang together by overlap: (of now, of before, least overlap); each is in one group."""
    shares = _overlaps(here, there)
    rows, columns = np.nonzero(shares >= SHARE)
    count = len(here) + len(there)
    links = coo_array((np.ones(len(rows)), (rows, columns + len(here))), shape=(count, count))
    _, group = connected_components(links, directed=False)
    found = []
    for number in range(int(group.max()) + 1 if count else 0):
        members = np.flatnonzero(group == number)
        a = tuple(int(m) for m in members if m < len(here))
        b = tuple(int(m) - len(here) for m in members if m >= len(here))
        linked = [shares[x, y] for x in a for y in b if shares[x, y] >= SHARE]
        found.append((a, b, float(min(linked, default=0.0))))
    return found


def _near(here: Sequence[_Placed], there: Sequence[_Placed]) -> tuple[set[int], set[int]]:
    """Places of lesions that lie close to one of the other study."""
    now, before = set(), set()
    for b, other in enumerate(there):
        tree = cKDTree(other.own)
        for a, one in enumerate(here):
            if tree.query(one.other, distance_upper_bound=NEAR_MM)[0].min() <= NEAR_MM:
                now.add(a)
                before.add(b)
    return now, before


def _changed(
    group: tuple[tuple[int, ...], tuple[int, ...], float],
    here: Sequence[_Placed],
    there: Sequence[_Placed],
    near: tuple[set[int], set[int]],
    now: Measured,
    before: Measured,
    repeatability: Repeatability,
) -> Change:
    a, b, overlap = group
    ones, others = [here[x] for x in a], [there[x] for x in b]
    change = _numbers(ones, others, overlap, repeatability)
    word, why = change.word, ""
    if a and b:
        why = _cut(ones, others)
    elif a:
        why = _unsure(ones[0], a[0] in near[0], before, repeatability, "earlier")
    else:
        why = _unsure(others[0], b[0] in near[1], now, repeatability, "later")
    return replace(change, word="not told" if why else word, why=why)


def _cut(ones: Sequence[_Placed], others: Sequence[_Placed]) -> str:
    """Why lesions cannot be measured against each other although they are the same."""
    if any(p.cut for p in (*ones, *others)):
        return "it reaches the first or last slice of a study, and may go on beyond it"
    if min(p.reached for p in (*ones, *others)) < REACHED:
        return "one of the studies does not show all of it"
    return ""


def _unsure(lesion: _Placed, near: bool, other: Measured, repeatability: Repeatability, which: str) -> str:
    """Why a lesion that only one study shows cannot be called new or gone."""
    volume = lesion.finding.volume_mm3
    if lesion.reached < REACHED:
        return f"the {which} study does not reach this place"
    if near:
        return f"a lesion of the {which} study lies within {NEAR_MM:g} mm: they may be one"
    if volume - other.minimum_mm3 <= repeatability.volume_mm3(volume, other.minimum_mm3):
        return f"it is hardly larger than the smallest that the {which} study reports"
    if volume < repeatability.region_mm3:
        return f"regions below {repeatability.region_mm3 / 1000:g} ml come and go when nothing has changed"
    return ""


def _numbers(
    ones: Sequence[_Placed], others: Sequence[_Placed], overlap: float, repeatability: Repeatability
) -> Change:
    now_mm3 = sum(p.finding.volume_mm3 for p in ones)
    before_mm3 = sum(p.finding.volume_mm3 for p in others)
    limit_mm3, difference = repeatability.volume_mm3(before_mm3, now_mm3), now_mm3 - before_mm3
    single = (ones[0].finding, others[0].finding) if len(ones) == len(others) == 1 else None

    def diameter(name: str) -> float | None:
        return float(getattr(single[0], name) - getattr(single[1], name)) if single is not None else None

    return Change(
        kind=_kind(len(ones), len(others)),
        word=_word(bool(ones), bool(others), difference, limit_mm3),
        why="",
        now=tuple(p.finding.number for p in ones),
        before=tuple(p.finding.number for p in others),
        overlap=round(overlap, 3),
        volume_now_mm3=now_mm3,
        volume_before_mm3=before_mm3,
        volume_change_mm3=difference,
        volume_change_percent=100 * difference / before_mm3 if before_mm3 and now_mm3 else None,
        volume_repeatability_mm3=limit_mm3,
        longest_axial_change_mm=diameter("longest_axial_mm"),
        perpendicular_change_mm=diameter("perpendicular_mm"),
        longest_3d_change_mm=diameter("longest_3d_mm"),
        diameter_repeatability_mm=repeatability.diameter_mm,
    )


def _kind(now: int, before: int) -> Kind:
    if not before:
        return "only now"
    if not now:
        return "only before"
    if now == before == 1:
        return "same"
    return "split" if before == 1 else "merged" if now == 1 else "regrouped"


def _word(now: bool, before: bool, difference_mm3: float, limit_mm3: float) -> Word:
    if not before:
        return "new"
    if not now:
        return "gone"
    if abs(difference_mm3) <= limit_mm3:
        return "no change beyond repeatability"
    return "grown" if difference_mm3 > 0 else "shrunk"
