"""Which pictures a report shows of a case, with everything drawn on them; no page, no words for people.

Owns `Scene` and `Picture`. Lengths within a picture are mm from its top left corner, so that a page can
draw them at any size in true aspect. Invariants: every picture of one input has the same window; nothing is
marked where the case has no labels; what is too large is shrunk to a `Detail`, never cropped.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from medrec.findings import Finding
from medrec.outputs.views import Outline, View, Window, cut, grey, letters, outline, png, scale_bar_mm, window
from medrec.report import Case
from medrec.volume import Volume

SLICE_AXIS = 2
DISPLAY_ORDER = ("axial", "coronal", "sagittal")
NUMBER_GAP_MM = 4.0  # between a lesion's edge and its number


@dataclass(frozen=True, slots=True)
class Detail:
    """How much a page may hold: pixels on a picture's longer side, characters of an outline, rows of a table.

    `thumbnail_px` 0 leaves the pictures of the montage out.
    """

    picture_px: int
    thumbnail_px: int
    outline_characters: int
    thumbnail_outline_characters: int
    rows: int


@dataclass(frozen=True, slots=True)
class Diameter:
    """A measured line on a picture: its ends in mm, its length, and at which end its label has more room."""

    kind: str
    ends_mm: tuple[tuple[float, float], tuple[float, float]]
    length_mm: float
    label_end: int

    @property
    def outward(self) -> tuple[float, float]:
        """Unit vector that leaves the line at the label's end."""
        (x0, y0), (x1, y1) = self.ends_mm
        sign = 1 if self.label_end else -1
        length = float(np.hypot(x1 - x0, y1 - y0)) or 1.0
        return sign * (x1 - x0) / length, sign * (y1 - y0) / length


@dataclass(frozen=True, slots=True)
class Number:
    """The number of a lesion, beside it."""

    number: int
    place_mm: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Picture:
    """One view: its PNG as a data URI and what is drawn over it; the other planes cut it at `focus_mm`."""

    view: View
    image: str
    bar_mm: float
    outline: Outline | None = None
    diameters: tuple[Diameter, ...] = ()
    numbers: tuple[Number, ...] = ()
    focus_mm: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice of the montage, counted from 0; `picture` is None where the page had no room for it."""

    index: int
    picture: Picture | None
    probability: float | None
    outlined: bool


@dataclass(frozen=True, slots=True)
class Other:
    """Another input's same slice, in its own window."""

    name: str
    window: Window
    unit: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class Scene:
    """All pictures of a case; `chosen` says why this is the key slice, `marked` is None without a finding."""

    name: str
    unit: str
    window: Window
    key_slice: int
    chosen: str
    plain: Picture
    marked: Picture | None
    planes: tuple[Picture, ...]
    others: tuple[Other, ...]
    slices: tuple[Slice, ...]
    runs_from: str
    runs_to: str

    @property
    def coarse(self) -> bool:
        """Whether any outline had to be simplified."""
        pictures = [self.marked, *self.planes, *(s.picture for s in self.slices)]
        return any(p.outline.step_px > 1 for p in pictures if p is not None and p.outline is not None)


def scene(case: Case, detail: Detail) -> Scene | None:
    """The pictures of a case, or None when it has no volume."""
    if not case.volumes:
        return None
    name = case.card.grid if case.card is not None else min(case.volumes)
    grid = case.volumes[name]
    shown = window(grid.voxels)
    key, chosen = key_slice(case, grid)
    focus = _focus(case, grid, key)
    plain = _picture(grid, shown, SLICE_AXIS, key, detail.picture_px)
    along = grid.affine_ijk_to_lps[:, SLICE_AXIS][:3] / grid.spacing_mm[SLICE_AXIS]
    return Scene(
        name=name,
        unit=grid.unit,
        window=shown,
        key_slice=key,
        chosen=chosen,
        plain=plain,
        marked=_marked(case, grid, shown, key, detail),
        planes=_planes(case, grid, shown, focus, detail),
        others=tuple(
            _other(other, case.volumes[other], key, detail) for other in sorted(case.volumes) if other != name
        ),
        slices=_montage(case, grid, shown, detail),
        runs_from=letters(-along),
        runs_to=letters(along),
    )


def key_slice(case: Case, grid: Volume) -> tuple[int, str]:
    """The slice that stands for a case, counted from 0, and why it was chosen."""
    probability = case.report.slice_probability
    if case.report.findings:
        return case.report.findings[0].axial_slice, "where the largest lesion is longest"
    if len(probability) == grid.voxels.shape[SLICE_AXIS]:
        return int(np.argmax(probability)), "the slice with the highest slice probability"
    return grid.voxels.shape[SLICE_AXIS] // 2, "the middle slice"


def _focus(case: Case, grid: Volume, key: int) -> npt.NDArray[np.int64]:
    """(3,) voxel that all planes share: the largest lesion's centroid, or the middle of the key slice."""
    shape = np.array(grid.voxels.shape)
    if not case.report.findings:
        return np.array([shape[0] // 2, shape[1] // 2, key])
    centroid = np.array([*case.report.findings[0].centroid_lps_mm, 1.0])
    voxel = np.rint((np.linalg.inv(grid.affine_ijk_to_lps) @ centroid)[:3]).astype(np.int64)
    inside: npt.NDArray[np.int64] = np.clip(voxel, 0, shape - 1)
    return inside


def _picture(
    volume: Volume,
    shown: Window,
    axis: int,
    index: int,
    longest_px: int,
    labels: npt.NDArray[np.int32] | None = None,
    characters: int = 0,
) -> Picture:
    view = cut(volume.affine_ijk_to_lps, volume.voxels.shape, axis, index)
    image = png(grey(view.pixels(volume.voxels), shown), longest_px)
    edge = None if labels is None else outline(view.pixels(labels) > 0, characters)
    return Picture(view, image, scale_bar_mm(view.width_mm), edge)


def _marked(case: Case, grid: Volume, shown: Window, key: int, detail: Detail) -> Picture | None:
    if case.labels is None or not case.report.findings:
        return None
    picture = _picture(grid, shown, SLICE_AXIS, key, detail.picture_px, case.labels, detail.outline_characters)
    return replace(
        picture,
        diameters=_diameters(picture.view, case.report.findings[0]),
        numbers=_numbers(picture.view, case.labels),
    )


def _diameters(view: View, finding: Finding) -> tuple[Diameter, ...]:
    lines = (
        ("longest", finding.longest_axial_ends_ijk, finding.longest_axial_mm),
        ("perpendicular", finding.perpendicular_ends_ijk, finding.perpendicular_mm),
    )
    return tuple(_diameter(view, *line) for line in lines)


def _diameter(view: View, kind: str, ends_ijk: tuple[tuple[float, ...], ...], length_mm: float) -> Diameter:
    ends = (view.place_mm(ends_ijk[0]), view.place_mm(ends_ijk[1]))
    room = [min(x, view.width_mm - x, y, view.height_mm - y) for x, y in ends]
    return Diameter(kind, ends, length_mm, int(room[1] > room[0]))


def _numbers(view: View, labels: npt.NDArray[np.int32]) -> tuple[Number, ...]:
    """Each lesion's number at the upper left of its part of this slice; nothing to tell apart, no number."""
    shown = view.pixels(labels)
    if labels.max() < 2:
        return ()
    places = []
    for number in np.unique(shown[shown > 0]):
        rows, columns = np.nonzero(shown == number)
        x_mm, y_mm = columns.min() * view.spacing_mm[1], rows.min() * view.spacing_mm[0]
        places.append(Number(int(number), (float(x_mm - NUMBER_GAP_MM), float(y_mm - NUMBER_GAP_MM))))
    return tuple(places)


def _planes(
    case: Case, grid: Volume, shown: Window, focus: npt.NDArray[np.int64], detail: Detail
) -> tuple[Picture, ...]:
    """Three planes through the largest lesion; without one, the key image itself stands for its plane."""
    found = bool(case.report.findings)
    pictures = []
    for axis in range(3) if found else range(SLICE_AXIS):
        index, labels = int(focus[axis]), case.labels
        picture = _picture(grid, shown, axis, index, detail.picture_px, labels, detail.outline_characters)
        pictures.append(replace(picture, focus_mm=picture.view.place_mm(focus) if found else None))
    return tuple(sorted(pictures, key=lambda p: DISPLAY_ORDER.index(p.view.plane)))


def _other(name: str, volume: Volume, key: int, detail: Detail) -> Other:
    shown = window(volume.voxels)
    return Other(name, shown, volume.unit, _picture(volume, shown, SLICE_AXIS, key, detail.picture_px // 2))


def _montage(case: Case, grid: Volume, shown: Window, detail: Detail) -> tuple[Slice, ...]:
    return tuple(_slice(case, grid, shown, detail, k) for k in range(grid.voxels.shape[SLICE_AXIS]))


def _slice(case: Case, grid: Volume, shown: Window, detail: Detail, k: int) -> Slice:
    probability, labels = case.report.slice_probability, case.labels
    longest_px, characters = detail.thumbnail_px, detail.thumbnail_outline_characters
    return Slice(
        index=k,
        picture=_picture(grid, shown, SLICE_AXIS, k, longest_px, labels, characters) if longest_px else None,
        probability=float(probability[k]) if k < len(probability) else None,
        outlined=labels is not None and bool((labels[:, :, k] > 0).any()),
    )
