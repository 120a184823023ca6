"""Marks that an operator drew into the pixels: calipers, the small crosses at the ends of a measured distance.

They lie on the edge of what was measured, so that a network may learn to find the cross instead of the lesion. Found
by their shape alone: a + or x of a few pixels whose four arms are all brighter than the four gaps between them, which
tissue hardly ever is; letters with such a crossing are found too. Painted out with what surrounds them. Refuses
nothing: an image without marks comes back as it was.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

ARMS_PX = (3, 4, 5, 6)  # half the size of the crosses that scanners draw
CONTRAST = 0.16  # of full brightness: by how much the dimmest arm is brighter than the brightest gap
RADIUS_PX = 10  # of what is painted out: the cross, and the digit beside it
ROW_PX = 12  # crossings this near in height, four or more of them, are a line of text
TEXT = 4
_STRAIGHT = ((0, 1), (0, -1), (1, 0), (-1, 0))
_DIAGONAL = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_EDGE = max(ARMS_PX)


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a cross lies (row, column, in pixels) and whether it looks like a letter in a line of text."""

    row: int
    column: int
    text: bool


def crossness(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(rows, columns) in 0..1 to (rows, columns): dimmest arm minus brightest gap of the best cross centred there."""
    lines = ndimage.maximum_filter(image, 2)  # drawn lines are one or two pixels wide, and not always straight
    padded = np.pad(lines, _EDGE, mode="edge")
    rows, columns = image.shape

    def along(direction: tuple[int, int], steps: range) -> npt.NDArray[np.float32]:
        down, right = direction
        parts = [padded[_EDGE + down * n :, _EDGE + right * n :][:rows, :columns] for n in steps]
        average: npt.NDArray[np.float32] = np.mean(parts, axis=0, dtype=np.float32)
        return average

    best = np.full(image.shape, -1, np.float32)
    for arm in ARMS_PX:
        near = range(2, 4 if arm < 5 else 5)
        for arms, gaps in ((_STRAIGHT, _DIAGONAL), (_DIAGONAL, _STRAIGHT)):
            dimmest = np.minimum.reduce([along(d, range(1, arm + 1)) for d in arms])
            brightest = np.maximum.reduce([along(d, near) for d in gaps])
            np.maximum(best, dimmest - brightest, out=best)
    return best


def find(image: npt.NDArray[np.float32]) -> tuple[Mark, ...]:
    """Every mark of an image (rows, columns) in 0..1, from the top down."""
    score = crossness(image)
    labels, count = ndimage.label(ndimage.binary_dilation(score > CONTRAST, iterations=3))
    if not count:
        return ()
    peaks = np.array(ndimage.maximum_position(score, labels, range(1, count + 1)))
    in_row = (np.abs(peaks[:, None, 0] - peaks[None, :, 0]) <= ROW_PX).sum(1)
    return tuple(Mark(int(r), int(c), bool(n >= TEXT)) for (r, c), n in zip(peaks, in_row, strict=True))


def painted_out(image: npt.NDArray[np.float32], marks: tuple[Mark, ...]) -> npt.NDArray[np.float32]:
    """The image with a disc around each mark filled smoothly from its surroundings."""
    if not marks:
        return image
    seeds = np.ones(image.shape, bool)
    seeds[[m.row for m in marks], [m.column for m in marks]] = False
    hidden = ndimage.distance_transform_edt(seeds) <= RADIUS_PX
    filled, known = image.copy(), (~hidden).astype(np.float32)
    for spread in (2, 4, 8, 16, 32):
        weight = ndimage.gaussian_filter(known, spread)
        reached = hidden & (weight > 0.1)
        filled[reached] = ndimage.gaussian_filter(image * known, spread)[reached] / weight[reached]
        hidden &= ~reached
        if not hidden.any():
            break
    return filled
