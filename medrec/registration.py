"""Two images of one head laid over each other by a rotation and a shift, and how far that can be believed.

Owns `Registration`. Rigid and nothing else: what grew must not be stretched away. The squared difference of brightness
is minimised by scipy's least squares, robust against what changed, from several first guesses and from coarse to fine.
Invariants: it is done in both directions, and their disagreement is told; equal images give equal numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from medrec.coarse import AIR, OUTSIDE, Coarse
from medrec.volume import to_world

Floats = npt.NDArray[np.float64]

LEVELS = ((4, 2.0), (2, 1.0), (1, 0.6))  # every how many voxels is looked at, and how far it is blurred before (voxels)
TURNS_DEG = 15.0  # first guesses are turned so far about each axis: nobody lies in a scanner much otherwise
KEPT = 3  # of the first guesses are followed to the end of the coarsest level but one
ARM_MM = 60.0  # from the middle of a head to its brain: a radian of rotation counts as so many mm of shift
STEPS = (12, 15, 20)
ROBUST = 12.0  # levels: differences beyond it are changes, not misplacement
BRIGHT = 24  # levels of tissue; below is air with its noise
EDGE = 2  # voxels of air around the tissue that are looked at: the skin is an edge
FEWEST = 200  # points
WINDOW_MM = 15.0  # the similarity is looked at in pieces of this size
FEW_LEVELS = 3.0  # pieces that are as flat as this say nothing


@dataclass(frozen=True, slots=True, eq=False)
class Registration:
    """`matrix` (4, 4) leads from LPS mm of the first image to LPS mm of the second.

    `similarity` is the median over pieces of the head of the correlation of brightness there, -1 to 1; `overlap` the
    share of the first head that the second image reaches; `disagreement_mm` how far both directions differ in the
    head.
    """

    matrix: Floats
    similarity: float
    overlap: float
    disagreement_mm: float

    @property
    def rotation_deg(self) -> float:
        """By what angle it turns."""
        return float(np.degrees(Rotation.from_matrix(self.matrix[:3, :3]).magnitude()))


@dataclass(frozen=True, slots=True, eq=False)
class _Scaled:
    """An image at one level: `points` (n, 3) LPS mm of what is looked at, brightness and gradient over the grid."""

    points: Floats
    values: Floats
    blurred: npt.NDArray[np.float32]
    gradient: tuple[npt.NDArray[np.float32], ...]
    inside: npt.NDArray[np.float32]
    to_index: Floats


def register(first: Coarse, second: Coarse) -> Registration | None:
    """How the second image lies to the first; None where one of them shows too little to tell."""
    if min(int((image.levels > BRIGHT).sum()) for image in (first, second)) < FEWEST:
        return None
    there = _matrix(_found(first, second), _centre(first))
    back = _matrix(_found(second, first), _centre(second))
    similarity, overlap = _likeness(first, second, there)
    corners = _centre(first) + ARM_MM * np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    apart = np.linalg.norm(to_world(back, to_world(there, corners)) - corners, axis=1)
    return Registration(there, similarity, overlap, float(apart.max()))


def _found(first: Coarse, second: Coarse) -> Floats:
    """The best placement: (rotation vector x ARM_MM, shift in mm, gain, offset)."""
    guesses = list(_guesses(first, second))
    for level, (every, blur) in enumerate(LEVELS):
        a, b = _scaled(first, every, blur), _scaled(second, every, blur)
        fits = sorted((_fit(a, b, _centre(first), g, STEPS[level]) for g in guesses), key=lambda fit: fit[0])
        guesses = [g for _, g in fits[: max(1, KEPT - 2 * level)]]
    return guesses[0]


def _guesses(first: Coarse, second: Coarse) -> Iterator[Floats]:
    """As both lie in the scanner, and with the middles of the heads on each other, straight and turned."""
    between = _centre(second) - _centre(first)
    for shift in (np.zeros(3), between):
        yield np.concatenate([np.zeros(3), shift, [1.0, 0.0]])
    for axis in np.eye(3):
        for sign in (-1, 1):
            yield np.concatenate([sign * np.radians(TURNS_DEG) * ARM_MM * axis, between, [1.0, 0.0]])


def _centre(image: Coarse) -> Floats:
    """The middle of the tissue in LPS mm."""
    centre: Floats = to_world(image.affine_ijk_to_lps, np.argwhere(image.levels > BRIGHT)).mean(0)
    return centre


def _scaled(image: Coarse, every: int, blur: float) -> _Scaled:
    blurred = ndimage.gaussian_filter(np.maximum(image.levels, AIR).astype(np.float32), blur)
    near = ndimage.binary_dilation(image.levels > BRIGHT, iterations=EDGE) & (image.levels != OUTSIDE)
    thin = np.zeros_like(near)
    thin[::every, ::every, ::every] = True
    places = np.argwhere(near & thin)
    return _Scaled(
        to_world(image.affine_ijk_to_lps, places),
        blurred[tuple(places.T)].astype(np.float64),
        blurred,
        tuple(g / image.spacing_mm for g in np.gradient(blurred)),
        (image.levels != OUTSIDE).astype(np.float32),
        np.linalg.inv(image.affine_ijk_to_lps).astype(np.float64),
    )


def _fit(a: _Scaled, b: _Scaled, centre: Floats, guess: Floats, steps: int) -> tuple[float, Floats]:
    """(mean cost, placement) after some steps from a guess."""
    if len(a.points) < FEWEST // 10:
        return float("inf"), guess

    def at(x: Floats) -> tuple[Floats, Floats, Floats]:
        turned = Rotation.from_rotvec(x[:3] / ARM_MM).apply(a.points - centre)
        index = to_world(b.to_index, turned + centre + x[3:6]).T
        return turned, index, ndimage.map_coordinates(b.inside, index, order=1, cval=0.0) > 0.99

    def residual(x: Floats) -> Floats:
        _, index, known = at(x)
        there = ndimage.map_coordinates(b.blurred, index, order=1, mode="nearest")
        # What the other image does not reach costs as much as a poor fit, or heads would be pushed out of it.
        found: Floats = np.where(known, x[6] * there + x[7] - a.values, ROBUST)
        return found

    def slope(x: Floats) -> Floats:
        turned, index, known = at(x)
        there = ndimage.map_coordinates(b.blurred, index, order=1, mode="nearest")
        g = np.stack([ndimage.map_coordinates(part, index, order=1, mode="nearest") for part in b.gradient], 1)
        g = np.asarray(x[6] * g, np.float64)
        turning = np.cross(turned, g) @ _left_jacobian(x[:3] / ARM_MM) / ARM_MM
        return np.column_stack([turning, g, there, np.ones(len(there))]) * known[:, None]

    scale = np.array([1.0] * 6 + [0.05, 5.0])
    fit = least_squares(residual, guess, slope, loss="soft_l1", f_scale=ROBUST, x_scale=scale, max_nfev=steps)
    return float(fit.cost) / len(a.points), np.asarray(fit.x)


def _left_jacobian(vector: Floats) -> Floats:
    """(3, 3): how the rotation of a vector changes with the rotation vector (Chirikjian 2011, 10.86)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    if angle < 1e-6:
        return np.eye(3) + cross / 2
    a, b = (1 - np.cos(angle)) / angle**2, (angle - np.sin(angle)) / angle**3
    jacobian: Floats = np.eye(3) + a * cross + b * cross @ cross
    return jacobian


def _matrix(placement: Floats, centre: Floats) -> Floats:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(placement[:3] / ARM_MM).as_matrix()
    matrix[:3, 3] = centre + placement[3:6] - matrix[:3, :3] @ centre
    return matrix


def _likeness(first: Coarse, second: Coarse, matrix: Floats) -> tuple[float, float]:
    """(median correlation over the pieces of the head, share of the head that the second image reaches)."""
    a = _scaled(first, 1, LEVELS[-1][1])
    b = _scaled(second, 1, LEVELS[-1][1])
    shape = first.levels.shape
    index = to_world(b.to_index @ matrix @ first.affine_ijk_to_lps, np.indices(shape).reshape(3, -1).T).T
    moved = ndimage.map_coordinates(b.blurred, index, order=1, mode="nearest").reshape(shape).astype(np.float64)
    reached = (ndimage.map_coordinates(b.inside, index, order=1, cval=0.0) > 0.99).reshape(shape)
    head = ndimage.binary_fill_holes(first.levels > BRIGHT)
    both = head & reached
    overlap = float(both.sum() / max(1, head.sum()))
    here = np.asarray(a.blurred, np.float64)
    size = 2 * max(1, round(WINDOW_MM / first.spacing_mm / 2)) + 1
    share = ndimage.uniform_filter(both.astype(np.float64), size)

    def mean(values: Floats) -> Floats:
        found: Floats = ndimage.uniform_filter(values * both, size) / np.maximum(share, 1e-9)
        return found

    ma, mb = mean(here), mean(moved)
    va, vb, ab = mean(here**2) - ma**2, mean(moved**2) - mb**2, mean(here * moved) - ma * mb
    told = both & (share > 0.5) & (va > FEW_LEVELS**2)
    if int(told.sum()) < FEWEST:
        return 0.0, overlap
    return float(np.median(ab[told] / np.sqrt(va[told] * np.maximum(vb[told], 1e-6)))), overlap
