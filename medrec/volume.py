"""Voxels on a physical grid, and all geometry.

Owns `Volume`. Voxel axes are i (along a row: the column index), j (the row index) and k (the slice); world axes are
LPS in mm, as in DICOM. Refuses what would need a guess. Invariants: voxels and affine are read-only; an affine is
invertible; nothing here flips, rounds or resizes silently.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medrec.errors import ScanError
from medrec.series import Series

PERPENDICULAR = 5e-3  # cosine between axes; positions and directions are rounded
HEAD_IS_CUT = 0.05  # share of tissue in the outermost plane; noise and an ear touch less of it
HU = "HU"  # the unit of CT: air is at -1000
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI counts towards right, anterior, superior


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """voxels (i, j, k) float32 in `unit`; `affine_ijk_to_lps` 4x4, from voxel centres to LPS mm.

    `pixels_sha256` is the digest of the decoded stored values in slice order, with their shape: two archives that
    hold the same pixels under different headers, names or compressions agree on it.
    """

    voxels: npt.NDArray[np.float32]
    affine_ijk_to_lps: npt.NDArray[np.float64]
    unit: str
    series: str
    pixels_sha256: str

    def __post_init__(self) -> None:
        affine = self.affine_ijk_to_lps
        if affine.shape != (4, 4):
            raise ScanError(f"affine must be 4x4, got {affine.shape}")
        if self.voxels.ndim != 3:
            raise ScanError(f"voxels must be (i, j, k), got {self.voxels.ndim} axes")
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise ScanError("affine must be finite and invertible")
        self.voxels.setflags(write=False)
        affine.setflags(write=False)

    @property
    def spacing_mm(self) -> npt.NDArray[np.float64]:
        """(3,) distance of neighbouring voxel centres along i, j, k in mm."""
        return spacing_mm(self.affine_ijk_to_lps)


def spacing_mm(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(3,) lengths of the columns of an affine, in mm."""
    lengths: npt.NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def voxel_volume_mm3(affine: npt.NDArray[np.float64]) -> float:
    """Volume of one voxel in mm3, oblique and sheared grids included."""
    return abs(float(np.linalg.det(affine[:3, :3])))


def is_sheared(affine: npt.NDArray[np.float64]) -> bool:
    """Whether the axes of a grid are not perpendicular: the slices of a tilted gantry."""
    axes = affine[:3, :3] / spacing_mm(affine)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > PERPENDICULAR)


def affine_of(series: Series) -> npt.NDArray[np.float64]:
    """4x4 affine from (i, j, k) to LPS mm of a stack.

    DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1: the first triple of ImageOrientationPatient is the direction in
    which the column index grows, and goes with PixelSpacing's second value (the distance of columns).
    """
    first = series.first
    if first.orientation is None or first.spacing_mm is None or first.position_mm is None:
        raise ScanError("a series without spacing, orientation or position has no affine")
    between_rows_mm, between_columns_mm = first.spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * between_columns_mm
    affine[:3, 1] = np.array(first.orientation[3:]) * between_rows_mm
    affine[:3, 2] = series.direction_mm
    affine[:3, 3] = first.position_mm
    return affine


def to_world(affine: npt.NDArray[np.float64], ijk: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(n, 3) voxel indices, fractions allowed, to (n, 3) LPS mm."""
    world: npt.NDArray[np.float64] = np.asarray(ijk, float) @ affine[:3, :3].T + affine[:3, 3]
    return world


def resample(moving: Volume, fixed: Volume) -> npt.NDArray[np.float32]:
    """Values of `moving` on the grid of `fixed`, linearly interpolated; 0 outside of `moving`.

    Both must lie in one frame of reference: the caller has checked that; nothing is registered here.
    Returns (i, j, k) float32 in the shape of `fixed`. Over the outermost voxel's width it fades to 0, so that an
    edge slice survives a position that is rounded otherwise.
    """
    if moving.voxels.shape == fixed.voxels.shape and np.allclose(
        moving.affine_ijk_to_lps, fixed.affine_ijk_to_lps, atol=1e-3
    ):
        return moving.voxels
    from scipy import ndimage  # half a second to import, which whoever only reads scans need not wait for

    mapping = np.linalg.inv(moving.affine_ijk_to_lps) @ fixed.affine_ijk_to_lps
    values: npt.NDArray[np.float32] = ndimage.affine_transform(
        moving.voxels,
        mapping[:3, :3],
        mapping[:3, 3],
        fixed.voxels.shape,
        order=1,
        output=np.float32,
        mode="grid-constant",  # "constant" blanks a whole edge slice for a shift of 1e-9
    )
    return values


def on_grid(moving: Volume, fixed: Volume) -> Volume:
    """`moving` resampled to the grid of `fixed`; its digest stays that of the pixels that came in."""
    return replace(moving, voxels=resample(moving, fixed), affine_ijk_to_lps=fixed.affine_ijk_to_lps)


def tilt_from_axial_deg(affine: npt.NDArray[np.float64]) -> float:
    """Angle between the slice normal and the head-foot axis in degrees: 0 axial, 90 sagittal or coronal."""
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    cosine = abs(normal[2]) / np.linalg.norm(normal)
    return float(np.degrees(np.arccos(min(1.0, cosine))))


def foreground(voxels: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """(i, j, k) bool: where there is tissue and not air.

    The threshold is 12% of the 99.5th percentile: air and its noise lie below it, tissue of any contrast above.
    """
    mask: npt.NDArray[np.bool_] = voxels > 0.12 * np.percentile(voxels, 99.5)
    return mask


def midplane_left_mm(volume: Volume) -> float | None:
    """The L coordinate (mm) of the head's middle: halfway between its outermost left and right tissue.

    None where the image cuts the head off on one side only: then its middle is not the middle of what is seen.

    Half a percent of the tissue on either side does not count, so that stray noise does not move the middle.
    """
    tissue = foreground(volume.voxels)
    if not tissue.any():
        raise ScanError("no tissue: the image is empty")
    i, j, k = (np.arange(n, dtype=float) for n in tissue.shape)
    left = volume.affine_ijk_to_lps[0]
    coordinates = left[0] * i[:, None, None] + left[1] * j[:, None] + left[2] * k + left[3]
    axis = int(np.abs(left[:3]).argmax())
    ends = [float(tissue.take(end, axis).mean()) > HEAD_IS_CUT for end in (0, -1)]
    if ends[0] != ends[1]:
        return None
    low, high = np.percentile(coordinates[tissue], [0.5, 99.5])
    return float((low + high) / 2)


def head_box(tissue: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(first i, end i, first j, end j): the rectangle that holds the tissue of all slices.

    A row or column belongs to it when at least 1% of it, over all slices, is tissue: noise does not widen it.
    Raises ScanError when there is no tissue.
    """
    rows = np.flatnonzero(tissue.mean((1, 2)) > 0.01)
    columns = np.flatnonzero(tissue.mean((0, 2)) > 0.01)
    if not len(rows) or not len(columns):
        raise ScanError("no tissue: the image is empty")
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
