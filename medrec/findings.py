"""Lesions, measured on the physical grid.

Owns `Finding`, `Rules` and the conventions: a lesion is a 26-connected component of the mask; its edge is the edge of
its voxels (not their centres), so that one voxel of 1 mm measures 1.41 mm across its diagonal; volumes count voxels.
Anisotropic, oblique and sheared grids are measured in patient coordinates. Invariant: nothing here depends on the
order in which components are found; findings come largest first.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

from medrec.volume import to_world, voxel_volume_mm3

# A lesion counts as on one side when less than this share of it lies beyond the head's middle plane.
MIDLINE_SHARE = 0.1
SIDE_UNKNOWN = "side not certain"
# Diameters closer than this are equal: rounding must not choose between them.
TIE_MM = 1e-6


@dataclass(frozen=True, slots=True)
class Rules:
    """Components smaller than `minimum_volume_mm3` are not reported."""

    minimum_volume_mm3: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One lesion. Points and boxes are LPS mm; slices are counted from 0 along k; `side` is the patient's side.

    `longest_axial_mm` is the longest distance within one slice (slice `axial_slice`), its ends
    `longest_axial_ends_ijk`; `perpendicular_mm` the longest chord of the outline's convex hull at right angles to it
    on that slice. `longest_3d_mm` is the longest distance within the whole lesion.
    """

    number: int
    volume_mm3: float
    longest_axial_mm: float
    perpendicular_mm: float
    axial_slice: int
    longest_axial_ends_ijk: tuple[tuple[float, float, float], tuple[float, float, float]]
    perpendicular_ends_ijk: tuple[tuple[float, float, float], tuple[float, float, float]]
    longest_3d_mm: float
    centroid_lps_mm: tuple[float, float, float]
    box_lps_mm: tuple[tuple[float, float, float], tuple[float, float, float]]
    side: str
    first_slice: int
    last_slice: int
    probability: float


def label(mask: npt.NDArray[np.bool_], affine: npt.NDArray[np.float64], rules: Rules) -> npt.NDArray[np.int32]:
    """(i, j, k) int32: 0, or the number of the lesion, 1 being the largest; too small components are 0."""
    components, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:] * voxel_volume_mm3(affine)
    order = np.argsort(-sizes, kind="stable")
    numbers = np.zeros(count + 1, np.int32)
    kept = [c for c in order if sizes[c] >= rules.minimum_volume_mm3]
    for number, component in enumerate(kept, 1):
        numbers[component + 1] = number
    labels: npt.NDArray[np.int32] = numbers[components]
    return labels


def measure(
    labels: npt.NDArray[np.int32],
    probability: npt.NDArray[np.float32],
    affine_ijk_to_lps: npt.NDArray[np.float64],
    midplane_left_mm: float | None,
) -> tuple[Finding, ...]:
    """Measure every lesion of a label map (i, j, k), largest first.

    `midplane_left_mm` is the L coordinate of the head's middle plane, from which sides are told; without it no side is.
    """
    boxes = ndimage.find_objects(labels)
    return tuple(
        _finding(number, labels, box, probability, affine_ijk_to_lps, midplane_left_mm)
        for number, box in enumerate(boxes, 1)
        if box is not None
    )


def _finding(
    number: int,
    labels: npt.NDArray[np.int32],
    box: tuple[slice, ...],
    probability: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    midplane_left_mm: float | None,
) -> Finding:
    inside = labels[box] == number
    ijk = np.argwhere(inside) + [s.start for s in box]
    centres = to_world(affine, ijk)
    corners = _outer_corners(ijk)
    world = to_world(affine, corners)
    longest_mm, longest_ends, perpendicular_mm, perpendicular_ends, k = _axial(ijk, affine)
    low, high = world.min(0), world.max(0)
    return Finding(
        number=number,
        volume_mm3=len(ijk) * voxel_volume_mm3(affine),
        longest_axial_mm=longest_mm,
        perpendicular_mm=perpendicular_mm,
        axial_slice=k,
        longest_axial_ends_ijk=longest_ends,
        perpendicular_ends_ijk=perpendicular_ends,
        longest_3d_mm=float(pdist(world[ConvexHull(world).vertices]).max()),
        centroid_lps_mm=_triple(centres.mean(0)),
        box_lps_mm=(_triple(low), _triple(high)),
        side=_side(centres[:, 0], midplane_left_mm),
        first_slice=int(ijk[:, 2].min()),
        last_slice=int(ijk[:, 2].max()),
        probability=float(probability[tuple(ijk.T)].mean(dtype=np.float64)),
    )


def _side(left_mm: npt.NDArray[np.float64], midplane_left_mm: float | None) -> str:
    if midplane_left_mm is None:
        return SIDE_UNKNOWN
    share_left = float((left_mm > midplane_left_mm).mean())
    if share_left >= 1 - MIDLINE_SHARE:
        return "left"
    if share_left <= MIDLINE_SHARE:
        return "right"
    return "both sides of the midline"


def _outer_corners(ijk: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(n, 3) corners of voxels, in voxel indices: only of the first and last voxel of each run along i.

    The convex hull of a lesion has its vertices there, so that nothing is lost and little remains.
    """
    order = np.lexsort((ijk[:, 0], ijk[:, 1], ijk[:, 2]))
    sorted_ijk = ijk[order]
    new = np.any(np.diff(sorted_ijk[:, 1:], axis=0) != 0, axis=1)
    ends = np.concatenate([sorted_ijk[np.r_[True, new]], sorted_ijk[np.r_[new, True]]])
    offsets = np.array([[i, j, k] for i in (-0.5, 0.5) for j in (-0.5, 0.5) for k in (-0.5, 0.5)])
    corners: npt.NDArray[np.float64] = np.unique((ends[:, None] + offsets).reshape(-1, 3), axis=0)
    return corners


def _axial(ijk: npt.NDArray[np.int64], affine: npt.NDArray[np.float64]) -> tuple[float, Any, float, Any, int]:
    """Longest diameter within one slice and its perpendicular: mm, ends (ijk), mm, ends (ijk), slice.

    Of equally long ones it is that with the longest perpendicular, in the first slice that has it.
    """
    flat = np.linalg.qr(affine[:3, :2])  # an orthonormal basis of the slices' plane: distances stay
    hulls = {int(k): _hull(ijk[ijk[:, 2] == k], flat.R) for k in np.unique(ijk[:, 2])}
    distances = {k: squareform(pdist(hull)) for k, hull in hulls.items()}
    longest_mm = max(float(d.max()) for d in distances.values())
    perpendicular_mm = -1.0
    for slice_k, hull in hulls.items():
        for a, b in np.argwhere(np.triu(distances[slice_k] > longest_mm - TIE_MM)):
            direction = (hull[b] - hull[a]) / distances[slice_k][a, b]
            across = np.array([-direction[1], direction[0]])
            chord_mm, low, high = _widest_chord(hull, direction, across)
            if chord_mm > perpendicular_mm + TIE_MM:
                perpendicular_mm, points, k = chord_mm, (hull[a], hull[b], low, high), slice_k
    i_j = np.array(points) @ np.linalg.inv(flat.R).T
    ends = [(float(i), float(j), float(k)) for i, j in i_j]
    return longest_mm, (ends[0], ends[1]), perpendicular_mm, (ends[2], ends[3]), k


def _hull(ijk: npt.NDArray[np.int64], to_plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, 2) mm: the convex hull of one slice's voxels, edges included, in order round it."""
    corners = np.unique(_outer_corners(ijk)[:, :2], axis=0) @ to_plane.T
    hull: npt.NDArray[np.float64] = corners[ConvexHull(corners).vertices]
    return hull


def _widest_chord(
    hull: npt.NDArray[np.float64], along: npt.NDArray[np.float64], across: npt.NDArray[np.float64]
) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The longest chord of a convex polygon (n, 2), in order, that runs in the direction `across`.

    The chord's length is concave along the polygon and bends only at vertices, so that the longest passes through one.
    """
    u, v = hull @ along, hull @ across
    best: tuple[float, float, float, float] = (-1.0, 0.0, 0.0, 0.0)
    for position in u:
        hits = []
        for n in range(len(hull)):
            u0, u1, v0, v1 = u[n], u[(n + 1) % len(hull)], v[n], v[(n + 1) % len(hull)]
            if min(u0, u1) - 1e-9 <= position <= max(u0, u1) + 1e-9:
                hits += [v0, v1] if abs(u1 - u0) < 1e-9 else [v0 + (position - u0) / (u1 - u0) * (v1 - v0)]
        best = max(best, (max(hits) - min(hits), position, min(hits), max(hits)))
    length, position, low, high = best
    return float(length), position * along + low * across, position * along + high * across


def _triple(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
