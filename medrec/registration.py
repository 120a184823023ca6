"""Two images of one head laid over each other by a rotation and a shift, and how far that can be believed.

Owns `Registration`. Rigid and nothing else: what grew must not be stretched away. SimpleITK maximises the mutual
information of brightness, which what changed hardly draws along, from several first guesses and from coarse to fine.
Invariants: it is done in both directions, and their disagreement is told; equal images give equal numbers, because one
thread looks at every voxel in turn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medrec.coarse import AIR, OUTSIDE, Coarse
from medrec.volume import to_world

Floats = npt.NDArray[np.float64]

# every how many voxels is looked at, how far it is blurred before (mm), the first step (mm), how many are followed on
LEVELS = ((4, 6.0, 4.0, 3), (2, 3.0, 2.0, 1), (2, 1.0, 1.0, 1))
TURNS_DEG = 15.0  # first guesses are turned so far about each axis: nobody lies in a scanner much otherwise
ARM_MM = 60.0  # from the middle of a head to its brain: a radian of rotation counts as so many mm of shift
BINS, STEPS, LEAST_STEP_MM, SHORTER = 24, 60, 0.005, 0.7
BRIGHT = 24  # levels of tissue; below is air with its noise
EDGE = 4  # voxels of air around the tissue that are looked at: the skin is an edge
FEWEST = 200  # points
BLUR = 0.6  # voxels
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


def register(first: Coarse, second: Coarse) -> Registration | None:
    """How the second image lies to the first; None where one of them shows too little to tell."""
    if min(int((image.levels > BRIGHT).sum()) for image in (first, second)) < FEWEST:
        return None
    there, back = _found(first, second), _found(second, first)
    if there is None or back is None:
        return None
    similarity, overlap = _likeness(first, second, there)
    corners = _centre(first) + ARM_MM * np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    apart = np.linalg.norm(to_world(back, to_world(there, corners)) - corners, axis=1)
    return Registration(there, similarity, overlap, float(apart.max()))


def _found(first: Coarse, second: Coarse) -> Floats | None:
    """The best placement (4, 4), LPS mm to LPS mm; None where no guess lets the images meet."""
    import SimpleITK  # a night without a study to compare need not wait for it

    # A method's own number of threads is not enough: sums came out otherwise in the last bits.
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    SimpleITK.ProcessObject.GlobalWarningDisplayOff()  # guesses from which the images do not meet are expected
    fixed, moving = (_itk(np.maximum(image.levels, AIR), image) for image in (first, second))
    near = ndimage.binary_dilation(first.levels > BRIGHT, iterations=EDGE) & (first.levels != OUTSIDE)
    masks = _itk(near, first), _itk(second.levels != OUTSIDE, second)
    placements = list(_guesses(first, second))
    for every, blur_mm, step_mm, kept in LEVELS:
        method = SimpleITK.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricFixedMask(masks[0])
        method.SetMetricMovingMask(masks[1])
        method.SetInterpolator(SimpleITK.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(step_mm, LEAST_STEP_MM, STEPS, SHORTER)
        method.SetOptimizerScales([ARM_MM**2] * 3 + [1.0] * 3)
        a, b = (SimpleITK.SmoothingRecursiveGaussian(image, blur_mm) for image in (fixed, moving))
        # Slices, not Shrink: for even numbers its voxels lie half a voxel beside where it says (ITK 5.4).
        a, b = a[::every, ::every, ::every], b[:: every // 2, :: every // 2, :: every // 2]
        placements = _refined(method, a, b, placements)[:kept]
    return _matrix(placements[0]) if placements else None


def _refined(method: Any, fixed: Any, moving: Any, placements: list[Any]) -> list[Any]:
    """Placements after some steps, the best first; without those from which the images do not meet."""
    ended = []
    for placement in placements:
        method.SetInitialTransform(placement, inPlace=True)
        try:
            method.Execute(fixed, moving)
        except RuntimeError:
            continue
        ended.append((method.GetMetricValue(), placement))
    return [placement for _, placement in sorted(ended, key=lambda end: end[0])]


def _guesses(first: Coarse, second: Coarse) -> Iterator[Any]:
    """As both lie in the scanner, and with the middles of the heads on each other, straight and turned."""
    import SimpleITK

    centre = _centre(first)
    between = _centre(second) - centre
    turns = [np.zeros(3), *(sign * np.radians(TURNS_DEG) * axis for axis in np.eye(3) for sign in (-1, 1))]
    for turn, shift in ((np.zeros(3), np.zeros(3)), *((turn, between) for turn in turns)):
        yield SimpleITK.Euler3DTransform(centre.tolist(), *turn.tolist(), shift.tolist())


def _itk(values: npt.NDArray[Any], image: Coarse) -> Any:
    """Values on the grid of a coarse image, which lies along L, P and S: bytes for a mask, else floats."""
    import SimpleITK

    kind = np.uint8 if values.dtype == bool else np.float32
    made = SimpleITK.GetImageFromArray(np.ascontiguousarray(values.T, kind))
    made.SetSpacing([image.spacing_mm] * 3)
    made.SetOrigin(image.affine_ijk_to_lps[:3, 3].tolist())
    return made


def _centre(image: Coarse) -> Floats:
    """The middle of the tissue in LPS mm."""
    centre: Floats = to_world(image.affine_ijk_to_lps, np.argwhere(image.levels > BRIGHT)).mean(0)
    return centre


def _matrix(placement: Any) -> Floats:
    matrix, centre = np.eye(4), np.array(placement.GetCenter())
    matrix[:3, :3] = np.reshape(placement.GetMatrix(), (3, 3))
    matrix[:3, 3] = centre + placement.GetTranslation() - matrix[:3, :3] @ centre
    return matrix


def _likeness(first: Coarse, second: Coarse, matrix: Floats) -> tuple[float, float]:
    """(median correlation over the pieces of the head, share of the head that the second image reaches)."""
    here, there = (
        ndimage.gaussian_filter(np.maximum(image.levels, AIR).astype(np.float32), BLUR) for image in (first, second)
    )
    mapping = np.linalg.inv(second.affine_ijk_to_lps) @ matrix @ first.affine_ijk_to_lps
    moved, inside = (
        ndimage.affine_transform(values, mapping, output_shape=here.shape, order=1, mode=mode)
        for values, mode in ((there, "nearest"), ((second.levels != OUTSIDE).astype(np.float32), "constant"))
    )
    head = ndimage.binary_fill_holes(first.levels > BRIGHT)
    both = head & (inside > 0.99)
    overlap = float(both.sum() / max(1, head.sum()))
    here, moved = here.astype(np.float64), moved.astype(np.float64)
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
