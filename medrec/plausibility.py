"""Does a volume look like a head at all: what must be said before a verdict on it is believed.

Owns `doubts`. It refuses nothing: whatever is odd makes the verdict inconclusive, with the reason in plain words,
because a network that sees noise or blank slices marks nothing and would read as "nothing marked".
"""

import numpy as np
import numpy.typing as npt

from medrec.volume import HU, Volume, foreground, head_box

# Over the 85 heads of the brain MR set: tissue in 24% to 59% of the voxels and in at least 83% of the slices, the
# brightest slice at most 2.2 times the typical one, no negative value.
TISSUE_SHARE = (0.05, 0.85)
SLICES_WITH_TISSUE = 0.6
HOT_SLICE = 5.0
NEGATIVE_SHARE = 0.01
FEWEST_PX = 32
SLICE_IS_BLANK = 0.002  # share of tissue below which a slice counts as empty


def doubts(volume: Volume, extent_mm: tuple[float, float] | None, nominal: bool) -> tuple[str, ...]:
    """Why a volume may not be what the networks were made for; empty where nothing is odd.

    `extent_mm` is how wide and how long heads are, from the card, None for other parts of the body; `nominal` is said
    beside every size.
    """
    voxels, found = volume.voxels, []
    what = "a head" if extent_mm is not None else "a body"
    if float(voxels.max()) == float(voxels.min()):
        return (f"not a picture of {what}: every voxel has the same value",)
    negative = float((voxels < 0).mean())
    if volume.unit == HU:
        voxels = voxels - voxels.min()
    elif negative > NEGATIVE_SHARE:
        found.append(f"unusual values: {negative:.0%} are negative, MR magnitudes are not")
    tissue = foreground(voxels)
    share = float(tissue.mean())
    if not TISSUE_SHARE[0] <= share <= TISSUE_SHARE[1]:
        found.append(f"not a picture of {what}: {share:.0%} of it is not air")
        return tuple(found)
    found += _slices(voxels, tissue)
    found += _extent(volume, tissue, extent_mm, "mm (nominal)" if nominal else "mm")
    return tuple(found)


def _slices(voxels: npt.NDArray[np.float32], tissue: npt.NDArray[np.bool_]) -> list[str]:
    found = []
    per_slice = tissue.mean((0, 1))
    filled = np.flatnonzero(per_slice > SLICE_IS_BLANK)
    blank = len(per_slice) - len(filled)
    inside = filled[-1] - filled[0] + 1 - len(filled) if len(filled) else 0
    if inside:
        found.append(f"{inside} slices between others are blank")
    elif len(filled) < SLICES_WITH_TISSUE * len(per_slice):
        found.append(f"{blank} of {len(per_slice)} slices are blank")
    bright = np.percentile(voxels.reshape(-1, voxels.shape[2]), 99, axis=0)
    typical = float(np.median(bright[per_slice > SLICE_IS_BLANK])) if len(filled) else 0.0
    if typical > 0 and float(bright.max()) > HOT_SLICE * typical:
        found.append(f"slice {int(bright.argmax()) + 1} is {bright.max() / typical:.0f} times as bright as the others")
    elif typical <= 0 or len(filled) < 2:
        found.append("hardly any slice holds tissue")
    return found


def _extent(volume: Volume, tissue: npt.NDArray[np.bool_], extent_mm: tuple[float, float] | None, mm: str) -> list[str]:
    i0, i1, j0, j1 = head_box(tissue)
    if min(i1 - i0, j1 - j0) < FEWEST_PX:
        return [f"too coarse: what is shown is {i1 - i0} x {j1 - j0} pixels"]
    width_mm, length_mm = (i1 - i0) * volume.spacing_mm[0], (j1 - j0) * volume.spacing_mm[1]
    if extent_mm is None or extent_mm[0] <= min(width_mm, length_mm) <= max(width_mm, length_mm) <= extent_mm[1]:
        return []
    return [
        f"outside the card: the head measures {width_mm:.0f} x {length_mm:.0f} {mm} in the slice, "
        f"{extent_mm[0]:.0f} to {extent_mm[1]:.0f} mm were tested"
    ]
