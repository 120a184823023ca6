"""A volume at about 3 mm, small enough to be kept with a report: what a later study is registered with.

Owns `Coarse`. Invariants: its axes run along L, P and S; equal volumes give equal bytes; where the image does not reach
is told from what is dark, because a lesion can be new only where the earlier image could have shown it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medrec.volume import HU, Volume, foreground, spacing_mm, to_world

SPACING_MM = 3.0  # a head is found to a fraction of it
MOST_VOXELS = 1_500_000  # of a whole body the distance grows instead
OUTSIDE, AIR = 0, 1  # levels that are no brightness
BRIGHTEST = 200  # level of the 99th percentile of the tissue; what is brighter has room above
AIR_HU = -1000.0
DARK_SHARE = 0.06  # of the brightest: the noise of air is not worth keeping


@dataclass(frozen=True, slots=True, eq=False)
class Coarse:
    """levels (x, y, z) uint8: `OUTSIDE`, `AIR`, or brightness above; `affine_ijk_to_lps` 4x4, in mm."""

    levels: npt.NDArray[np.uint8]
    affine_ijk_to_lps: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        self.levels.setflags(write=False)
        self.affine_ijk_to_lps.setflags(write=False)

    @property
    def spacing_mm(self) -> float:
        """Distance of its voxels."""
        return float(spacing_mm(self.affine_ijk_to_lps)[0])


def coarse_of(volume: Volume) -> Coarse:
    """The volume at about 3 mm along L, P and S; what is averaged away is finer than that."""
    values = volume.voxels - AIR_HU if volume.unit == HU else volume.voxels
    values, affine = _averaged(values, volume.affine_ijk_to_lps)
    size, grid = _grid(values.shape, affine)
    mapping = np.linalg.inv(affine) @ grid
    sampled, inside = _sampled(values, mapping, size)
    tissue = foreground(values)
    top = float(np.percentile(values[tissue], 99)) if tissue.any() else 0.0
    share = sampled / top if top > 0 else np.zeros_like(sampled)
    bright = np.clip(np.rint(share * BRIGHTEST), AIR + 1, 255)
    levels = np.where(inside, np.where(share > DARK_SHARE, bright, AIR), OUTSIDE).astype(np.uint8)
    return Coarse(levels, grid)


def _averaged(
    voxels: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Blocks of voxels that are finer than the coarse grid, averaged; a rest at the end of an axis is left out."""
    blocks = [min(n, max(1, round(SPACING_MM / s))) for n, s in zip(voxels.shape, spacing_mm(affine), strict=True)]
    whole = [n // b for n, b in zip(voxels.shape, blocks, strict=True)]
    for axis, (count, block) in enumerate(zip(whole, blocks, strict=True)):
        if block > 1:
            cut = voxels.take(range(count * block), axis)
            shape = (*cut.shape[:axis], count, block, *cut.shape[axis + 1 :])
            voxels = cut.reshape(shape).mean(axis + 1, dtype=np.float32)
    middle = to_world(affine, np.array([[(b - 1) / 2 for b in blocks]]))[0]
    grown = affine.copy()
    grown[:3, :3] = affine[:3, :3] * blocks
    grown[:3, 3] = middle
    return voxels, grown


def _grid(
    shape: tuple[int, ...], affine: npt.NDArray[np.float64]
) -> tuple[tuple[int, int, int], npt.NDArray[np.float64]]:
    """Size and affine of the grid along L, P and S that holds all of another one."""
    corners = to_world(affine, np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * shape - 0.5)
    low, high = corners.min(0), corners.max(0)
    step = max(SPACING_MM, float(np.prod(high - low) / MOST_VOXELS) ** (1 / 3))
    size = np.maximum(1, np.ceil((high - low) / step - 1e-6)).astype(int)
    grid = np.diag([step, step, step, 1.0])
    grid[:3, 3] = (low + high) / 2 - step * (size - 1) / 2
    return (int(size[0]), int(size[1]), int(size[2])), grid


def _sampled(
    values: npt.NDArray[np.float32], mapping: npt.NDArray[np.float64], size: tuple[int, int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Values on the coarse grid, linearly interpolated, and where it lies inside of the image, voxel edges included."""
    from scipy import ndimage

    sampled = ndimage.affine_transform(
        values, mapping[:3, :3], mapping[:3, 3], size, order=1, output=np.float32, mode="nearest"
    )
    x, y, z = np.ogrid[tuple(slice(n) for n in size)]
    inside = np.ones(size, bool)
    for row, count in zip(mapping[:3], values.shape, strict=True):
        index = row[0] * x + row[1] * y + row[2] * z + row[3]
        inside &= (index >= -0.5 - 1e-6) & (index <= count - 0.5 + 1e-6)
    return sampled, inside
