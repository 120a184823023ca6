"""How a grid is shown on a screen: planes, letters, true aspect, grey levels, outlines and scale bars.

Owns `View`, `Window` and `Outline`; draws no page. The patient is shown as radiologists expect: the
patient's left on the viewer's right in axial and coronal views, anterior on the viewer's left in sagittal
ones, the head on top. Which voxel axis goes where, and which way round, is told by the affine alone, so
that oblique, reversed and permuted stacks are shown alike. Planes are those of the grid: nothing is
interpolated, and letters say where an oblique one leads.
"""

import base64
import io
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medrec.volume import spacing_mm

PLANES = ("sagittal", "coronal", "axial")  # the plane that one cuts across L, P and S
# For a plane across L, P or S: (world axis, direction) from left to right, and from top to bottom.
LAYOUT = {
    0: ((1, 1), (2, -1)),
    1: ((0, 1), (2, -1)),
    2: ((0, 1), (1, 1)),
}
TOWARDS = (("R", "L"), ("A", "P"), ("F", "H"))  # DICOM PS3.3 C.7.6.1.1.1
# Below this direction cosine (15 degrees) a second letter would only be noise to the reader.
LETTER_COSINE = 0.25
WINDOW_PERCENTILES = (1.0, 99.5)
JPEG_QUALITY = 82
SCALE_BARS_MM = (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1)
SCALE_BAR_SHARE = 0.34  # of the view's width at most


@dataclass(frozen=True, slots=True)
class View:
    """One plane of a grid as it is shown: cut across voxel axis `axis` at `index`.

    `across` and `down` are the voxel axes that run to the viewer's right and down, or against it where
    `flip_*` says so; `shape_px` is (rows, columns), `spacing_mm` (between rows, between columns); letters
    name the edges.
    """

    plane: str
    axis: int
    index: int
    across: int
    down: int
    flip_across: bool
    flip_down: bool
    shape_px: tuple[int, int]
    spacing_mm: tuple[float, float]
    left: str
    right: str
    top: str
    bottom: str

    @property
    def width_mm(self) -> float:
        """From the outer edge of the first column to that of the last."""
        return self.shape_px[1] * self.spacing_mm[1]

    @property
    def height_mm(self) -> float:
        """From the outer edge of the first row to that of the last."""
        return self.shape_px[0] * self.spacing_mm[0]

    def pixels(self, voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(rows, columns) of the plane, from voxels (i, j, k)."""
        plane = np.take(voxels, self.index, axis=self.axis)
        upright = plane.T if self.across < self.down else plane
        shown: npt.NDArray[Any] = upright[:: -1 if self.flip_down else 1, :: -1 if self.flip_across else 1]
        return shown

    def place_mm(self, ijk: npt.ArrayLike) -> tuple[float, float]:
        """(x, y) in mm from the top left corner of the view of a point in (fractional) voxel indices."""
        point = np.asarray(ijk, float)
        column, row = point[self.across] + 0.5, point[self.down] + 0.5
        column = self.shape_px[1] - column if self.flip_across else column
        row = self.shape_px[0] - row if self.flip_down else row
        return float(column * self.spacing_mm[1]), float(row * self.spacing_mm[0])


@dataclass(frozen=True, slots=True)
class Window:
    """The values that are shown black and white."""

    lower: float
    upper: float

    @property
    def level(self) -> float:
        """The value shown as middle grey."""
        return (self.lower + self.upper) / 2

    @property
    def width(self) -> float:
        """From black to white."""
        return self.upper - self.lower


@dataclass(frozen=True, slots=True)
class Outline:
    """The edge of a mask as an SVG path in steps of `step_px` pixels from the view's top left corner.

    `step_px` is 1 unless the exact edge was too long to be stored.
    """

    path: str
    step_px: int


def cut(affine_ijk_to_lps: npt.NDArray[np.float64], shape: tuple[int, ...], axis: int, index: int) -> View:
    """The view of the plane across voxel axis `axis` at `index`, of a grid of this affine and shape."""
    mm = spacing_mm(affine_ijk_to_lps)
    cosines = affine_ijk_to_lps[:3, :3] / mm
    world_of = max(permutations(range(3)), key=lambda w: sum(abs(cosines[w[v], v]) for v in range(3)))
    (world_across, sign_across), (world_down, sign_down) = LAYOUT[world_of[axis]]
    across, down = world_of.index(world_across), world_of.index(world_down)
    flip_across = bool(cosines[world_across, across] * sign_across < 0)
    flip_down = bool(cosines[world_down, down] * sign_down < 0)
    rightwards = cosines[:, across] * (-1 if flip_across else 1)
    downwards = cosines[:, down] * (-1 if flip_down else 1)
    return View(
        plane=PLANES[world_of[axis]],
        axis=axis,
        index=index,
        across=across,
        down=down,
        flip_across=flip_across,
        flip_down=flip_down,
        shape_px=(shape[down], shape[across]),
        spacing_mm=(float(mm[down]), float(mm[across])),
        left=letters(-rightwards),
        right=letters(rightwards),
        top=letters(-downwards),
        bottom=letters(downwards),
    )


def letters(direction: npt.NDArray[np.float64]) -> str:
    """Where a unit vector in LPS leads: its main letter first, others where they matter."""
    order = np.argsort(-np.abs(direction), kind="stable")
    kept = [a for n, a in enumerate(order) if n == 0 or abs(direction[a]) >= LETTER_COSINE]
    return "".join(TOWARDS[a][int(direction[a] > 0)] for a in kept)


def window(voxels: npt.NDArray[np.float32]) -> Window:
    """From the 1st to the 99.5th percentile of what is not zero: blanked background does not count."""
    tissue = voxels[np.isfinite(voxels) & (voxels != 0)]
    if not tissue.size:
        return Window(0.0, 1.0)
    lower, upper = (float(x) for x in np.percentile(tissue, WINDOW_PERCENTILES))
    return Window(lower, upper) if upper > lower else Window(lower, lower + 1)


def grey(pixels: npt.NDArray[np.float32], shown: Window) -> npt.NDArray[np.uint8]:
    """Values (rows, columns) as 8-bit grey levels; what is not a number is black."""
    share = (np.nan_to_num(pixels, nan=shown.lower) - shown.lower) / shown.width
    levels: npt.NDArray[np.uint8] = np.rint(255 * np.clip(share, 0, 1)).astype(np.uint8)
    return levels


def png(levels: npt.NDArray[np.uint8], longest_px: int) -> str:
    """Grey levels (rows, columns) as a data URI, shrunk to at most `longest_px` pixels on its longer side."""
    packed = io.BytesIO()
    _shrunk(levels, longest_px).save(packed, "PNG", compress_level=6)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def jpeg(levels: npt.NDArray[np.uint8], longest_px: int) -> str:
    """The same with loss, at a quarter of the size: to recognise a picture by, not to read it."""
    packed = io.BytesIO()
    _shrunk(levels, longest_px).save(packed, "JPEG", quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def _shrunk(levels: npt.NDArray[np.uint8], longest_px: int) -> Image.Image:
    image = Image.fromarray(levels)
    factor = longest_px / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(n * factor)) for n in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def outline(mask: npt.NDArray[np.bool_], longest_characters: int) -> Outline:
    """The edge of a mask (rows, columns) along the edges of its pixels, the image's border included.

    A mask whose edge does not fit is coarsened by twos until it does; coarse pixels cover every marked one.
    """
    path, step = _edges(mask), 1
    while len(path) > longest_characters and max(mask.shape) > 1:
        mask, step = _coarse(mask), 2 * step
        path = _edges(mask)
    return Outline(path, step)


def _edges(mask: npt.NDArray[np.bool_]) -> str:
    padded = np.pad(mask, 1)
    level = np.diff(padded[:, 1:-1], axis=0)  # (rows + 1, columns): above and below differ
    upright = np.diff(padded[1:-1], axis=1).T  # (columns + 1, rows): left and right differ
    strokes = [f"M{a} {y}h{b - a}" for y, a, b in _runs(level)]
    return "".join(strokes + [f"M{x} {a}v{b - a}" for x, a, b in _runs(upright)])


def _runs(lines: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Line, first index and one past the last of each run of True, in the order of the lines (lines, length)."""
    line, at = np.nonzero(np.diff(np.pad(lines, ((0, 0), (1, 1))), axis=1))
    return list(zip(line[::2].tolist(), at[::2].tolist(), at[1::2].tolist(), strict=True))


def _coarse(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    rows, columns = mask.shape
    even = np.pad(mask, ((0, rows % 2), (0, columns % 2)))
    blocks = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2)
    return np.asarray(blocks.any((1, 3)), np.bool_)


def scale_bar_mm(width_mm: float) -> float:
    """The longest round length that takes at most a third of a view of this width."""
    fitting = [mm for mm in SCALE_BARS_MM if mm <= SCALE_BAR_SHARE * width_mm]
    return float(fitting[0] if fitting else SCALE_BARS_MM[-1])
