"""Is a series what it is called: proved from how it was made, and from how it looks where that is not told.

Owns `contradiction` (sequence parameters) and `fluid_is_dark` (the image itself). Refuses nothing by itself: callers
turn an answer into a refusal by name.
"""

from typing import Literal

from medrec.series import Timing

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
