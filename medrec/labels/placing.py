"""What somebody drew, put on the grid of a known image: to the voxel, or refused.

Owns the geometry of labels. Marks may be turned, mirrored and cropped along the axes of the grid, never resampled or
resized; an outline marks the voxels whose centres it encloses. Everything that does not fit is a DataError that says by
how much.
"""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
import numpy.typing as npt
from skimage.draw import polygon2mask

from medrec.dicom.marked import Contour, Plane
from medrec.errors import DataError
from medrec.store import Known
from medrec.volume import LPS_TO_RAS, spacing_mm, to_world

# Positions are written with 0.01 mm, directions with six digits; of a voxel that is far less than a hundredth.
TOLERANCE_MM, TOLERANCE_VOXELS = 1e-2, 1e-2
# Tools round contours to 0.1 mm; a tenth of a slice still leaves no doubt which slice is meant.
BESIDE_SLICE = 0.1
# Of two outlines in one slice: less in common is a shared edge, more lies within the other.
SHARED, WITHIN = 0.05, 0.95
Marks = npt.NDArray[np.bool_]
Affine = npt.NDArray[np.float64]


def grid_of(known: Known) -> Affine:
    """4x4 affine from (i, j, k) to LPS mm. Raises DataError for a single image."""
    if known.affine is None:
        raise DataError("it lies in space, and its image is a single one without a place in the patient")
    return np.reshape(known.affine, (4, 4))


def _inverse(affine: Affine) -> Affine:
    return np.asarray(np.linalg.inv(affine), np.float64)


def planes_on(planes: Sequence[Plane], known: Known) -> Marks:
    """Frames of a segmentation on a volume's grid, (i, j, k), or on a single image, (rows, columns)."""
    marks: Marks = np.zeros(known.shape, np.bool_)
    for plane in planes:
        if known.affine is None:
            _check_picture(plane, known)
            marks |= plane.marks
        else:
            _put(plane, known, marks)
    return marks


def _check_picture(plane: Plane, known: Known) -> None:
    if plane.instance not in known.instances:
        raise DataError("a frame of it does not name the image that it was drawn on")
    fits(plane.marks.shape, known)


def fits(shape: tuple[int, ...], known: Known) -> None:
    """Raises DataError where a mask (rows, columns) has not the size of its image."""
    if shape != known.shape:
        raise DataError(f"it has {_size(shape)} pixels (rows x columns), its image {_size(known.shape)}")


def _put(plane: Plane, known: Known, marks: Marks) -> None:
    if plane.position_mm is None or plane.orientation is None or plane.spacing_mm is None:
        raise DataError("a frame of it does not say where it lies")
    grid = grid_of(known)
    rows, columns = plane.marks.shape
    across_mm = np.array(plane.orientation[:3]) * plane.spacing_mm[1]
    down_mm = np.array(plane.orientation[3:]) * plane.spacing_mm[0]
    corner_mm = np.array(plane.position_mm)
    ends_mm = np.array([corner_mm, corner_mm + across_mm * (columns - 1), corner_mm + down_mm * (rows - 1)])
    ends = to_world(_inverse(grid), ends_mm)
    whole = np.rint(ends)
    _check_off(ends - whole, grid)
    if (whole < 0).any() or (whole >= known.shape).any():
        raise DataError("a frame of it reaches beyond its series")
    across, down = np.abs(whole[1:] - whole[0])
    if across.tolist() == [columns - 1, 0, 0] and down.tolist() == [0, rows - 1, 0]:
        i_end, j_end, turned = 1, 2, plane.marks.T
    elif across.tolist() == [0, columns - 1, 0] and down.tolist() == [rows - 1, 0, 0]:
        i_end, j_end, turned = 2, 1, plane.marks
    else:
        raise DataError("the pixels of a frame have another size than those of its series, or lie across its slices")
    k = int(whole[0, 2])
    _check_drawn_on(plane.instance, k, known)
    i, j = (
        np.linspace(whole[0, n], whole[end, n], turned.shape[n]).astype(int) for n, end in enumerate((i_end, j_end))
    )
    marks[np.ix_(i, j, np.array([k]))] |= turned[..., None]


def _check_off(off_voxels: npt.NDArray[np.float64], grid: Affine) -> None:
    off_mm = np.linalg.norm(off_voxels @ grid[:3, :3].T, axis=1)
    worst = int(off_mm.argmax())
    if off_mm[worst] > TOLERANCE_MM and np.abs(off_voxels[worst]).max() > TOLERANCE_VOXELS:
        spacing = " x ".join(f"{mm:.3g}" for mm in spacing_mm(grid))
        raise DataError(
            f"it lies {off_mm[worst]:.2f} mm off the grid of its series, whose voxels have {spacing} mm: it was drawn "
            "on another grid; export it on the series itself"
        )


def _check_drawn_on(instance: str, k: int, known: Known) -> None:
    """A frame or contour that names its image must lie where that image lies."""
    here = known.instances[k]
    if instance and instance not in (here, here.partition(".")[0].rstrip("+")):
        there = [n for n, name in enumerate(known.instances) if instance in (name, name.partition(".")[0])]
        where = f"slice {there[0] + 1}" if there else "an image that is not of this series"
        raise DataError(f"it names {where} and lies at slice {k + 1}: one of the two is wrong")


def contours_on(contours: Sequence[Contour], known: Known) -> tuple[Marks, str]:
    """Outlines in space as marks (i, j, k), and what is to be said of slices between them, "" where nothing.

    An outline within another is a hole, as all tools read it (PS3.3 C.8.8.6.3 asks for a keyhole instead).
    """
    grid = grid_of(known)
    backward = _inverse(grid)
    by_slice: dict[int, list[tuple[Marks, bool]]] = {}
    for contour in contours:
        ijk = to_world(backward, contour.points_mm)
        k = int(np.rint(ijk[:, 2].mean()))
        if np.abs(ijk[:, 2] - k).max() > BESIDE_SLICE:
            raise DataError(f"one of its outlines lies between slices, {ijk[:, 2].mean() + 1:.2f} counted from 1")
        if not 0 <= k < known.shape[2]:
            raise DataError("one of its outlines lies beyond the series")
        if (ijk[:, :2] < -0.5 - TOLERANCE_VOXELS).any() or (ijk[:, :2] > np.array(known.shape[:2]) - 0.5 + 1e-2).any():
            raise DataError(f"an outline in slice {k + 1} reaches beyond the image")
        _check_drawn_on(contour.instance, k, known)
        mask: Marks = polygon2mask(known.shape[:2], ijk[:, :2])  # type: ignore[no-untyped-call]
        by_slice.setdefault(k, []).append((mask, contour.alternates))
    marks = np.zeros(known.shape, bool)
    for k, masks in by_slice.items():
        marks[:, :, k] = _together(masks, k)
    gaps = max(by_slice) - min(by_slice) + 1 - len(by_slice) if by_slice else 0
    return marks, f"{gaps} slices between its outlines have none; nothing was filled in" if gaps else ""


def _together(masks: list[tuple[Marks, bool]], k: int) -> Marks:
    """The outlines of one slice: beside each other, or one within the other, which takes away from it."""
    whole = np.zeros_like(masks[0][0])
    for mask, alternates in sorted(masks, key=lambda pair: -int(pair[0].sum())):
        share = float((whole & mask).sum()) / max(1, int(mask.sum()))
        if alternates or share >= WITHIN:
            whole ^= mask
        elif share <= SHARED:
            whole |= mask
        else:
            raise DataError(f"outlines in slice {k + 1} cross each other: it is open what they enclose together")
    return whole


def values_on(image: nib.nifti1.Nifti1Pair, known: Known) -> npt.NDArray[np.generic]:
    """The values of a NIfTI image on the axes of a volume's grid, (i, j, k): turned or mirrored, never resampled.

    They are read only after shape and affine were found to fit.
    """
    grid = grid_of(known)
    target, affine = LPS_TO_RAS @ grid, np.asarray(image.affine, float)
    shape = image.shape[:3]
    if image.ndim not in (3, 4) or image.shape[3:] not in ((), (1,)):
        raise DataError(f"it has {_size(image.shape)} voxels; a mask has three axes")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError("its affine is no affine: it has no place in the patient")
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.io_orientation(target)
    )
    turned = affine @ nib.orientations.inv_ornt_aff(turn, shape)
    order = [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in range(3)]
    if tuple(shape[n] for n in order) != known.shape:
        raise DataError(f"it has {_size(shape)} voxels, its series {_size(known.shape)}")
    corners = np.array(np.meshgrid(*([0, n - 1] for n in known.shape))).reshape(3, -1).T
    _check_off(to_world(_inverse(target), to_world(turned, corners)) - corners, grid)
    values: npt.NDArray[np.generic] = np.asanyarray(image.dataobj).reshape(shape)
    return np.asarray(nib.orientations.apply_orientation(values, turn))


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
