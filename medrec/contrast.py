"""Is a series what it is called: proved from how it was made, and from how it looks where that is not told.

Owns `contradiction` (sequence parameters) and `fluid_is_dark` (the image itself). Refuses nothing by itself: callers
turn an answer into a refusal by name.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medrec.series import Timing
from medrec.volume import Volume, foreground

Contrast = Literal["flair", "t1", "t2"]

# Fluid is nulled by an inversion about 1.6 s (3D, with its own preparation) to 3 s before the readout; STIR, T1 FLAIR
# and MPRAGE invert at 0.1 to 1.3 s (Bernstein, King, Zhou: Handbook of MRI Pulse Sequences, 14.2 and 6.2).
FLUID_INVERSION_MS = (1500.0, 3500.0)
# T1 weighting needs a short echo; T2 weighting, FLAIR's among it, a long one and a long repetition.
T1_ECHO_MS = 45.0
T2_ECHO_MS = 50.0
T2_REPETITION_MS = 1500.0


def contradiction(timing: Timing, contrast: Contrast) -> str | None:
    """Why sequence parameters exclude a contrast, in words; None where they fit or are not there."""
    echo, repetition, inversion = timing.echo_ms, timing.repetition_ms, timing.inversion_ms
    if contrast == "t1":
        if echo is not None and echo > T1_ECHO_MS:
            return f"called T1, but an echo time of {echo:g} ms weights by T2"
        return None
    if echo is not None and 0 < echo < T2_ECHO_MS:
        return f"called {contrast.upper()}, but an echo time of {echo:g} ms does not weight by T2"
    if repetition is not None and 0 < repetition < T2_REPETITION_MS and contrast == "flair":
        return f"called FLAIR, but a repetition time of {repetition:g} ms leaves no room to null fluid"
    low, high = FLUID_INVERSION_MS
    if contrast == "flair" and inversion is not None and not low <= inversion <= high:
        return f"called FLAIR, but an inversion time of {inversion:g} ms does not null fluid"
    if contrast == "t2" and inversion is not None and low <= inversion <= high:
        return f"called T2, but an inversion time of {inversion:g} ms nulls fluid"
    return None


def proved(timing: Timing, contrast: Contrast) -> bool:
    """Whether sequence parameters are there and prove a contrast by themselves; then the image is not asked."""
    if contradiction(timing, contrast) is not None:
        return False
    if contrast == "flair":
        return timing.inversion_ms is not None
    return timing.echo_ms is not None and timing.repetition_ms is not None


# In the middle of a head lie the ventricles. Where fluid is dark, the darkest voxels there lie as far from the typical
# brain as the brightest do, or farther, lesions included: over 85 preoperative gliomas and one glioblastoma FLAIR
# gives a ratio of 0.24 to 3.24, and the T2 of that glioblastoma 5.84. The limit is the geometric mean of the two ends.
# A T1 is not told from FLAIR by this (0.20 to 1.41): its fluid is dark as well.
FLUID_BRIGHT_RATIO = 4.35
MIDDLE_PX = 128  # the image is thinned to about this size before: the test is one of large regions
MIDDLE_SLICES = 8
FEWEST_VOXELS = 100


def fluid_is_dark(volume: Volume) -> bool | None:
    """Whether an axial head looks like FLAIR and not like T2; None where there is too little of it to say."""
    ratio = bright_against_dark(_middle(volume))
    return None if ratio is None else ratio < FLUID_BRIGHT_RATIO


def bright_against_dark(slices: npt.NDArray[np.float32]) -> float | None:
    """How far the brightest voxels (98%) in the middle of the head lie above its median, over the darkest (2%) below.

    slices: (k, j, i). None where the head is too small, or holds no contrast.
    """
    head = np.stack([ndimage.binary_fill_holes(ndimage.binary_opening(s, iterations=2)) for s in foreground(slices)])
    side = float(np.sqrt(head.sum((1, 2)).max()))
    depth = np.stack([ndimage.distance_transform_edt(s) for s in head])
    brain, centre = depth > 0.14 * side, depth > 0.30 * side  # below skull and scalp; around the ventricles
    if centre.sum() < FEWEST_VOXELS:
        return None
    median = float(np.median(slices[brain]))
    dark, bright = (float(p) for p in np.percentile(slices[centre], [2, 98]))
    if median <= 0 or dark >= median:
        return None if bright <= median else float("inf")
    return (bright - median) / (median - dark)


def _middle(volume: Volume) -> npt.NDArray[np.float32]:
    """(k, j, i): at most eight slices from the third to the three quarters of the way up, thinned in the plane."""
    voxels = volume.voxels if volume.affine_ijk_to_lps[2, 2] >= 0 else volume.voxels[:, :, ::-1]
    count = voxels.shape[2]
    low, high = count // 3, count - count // 4
    every, thin = max(1, (high - low) // MIDDLE_SLICES), max(1, min(voxels.shape[:2]) // MIDDLE_PX)
    return np.ascontiguousarray(voxels[::thin, ::thin, low:high:every].T)
