"""What was done to a series before it came: told by its headers, as far as they tell it.

Owns `Kind` and `kinds_of`. Refuses nothing: a card says which kinds it does not take, and a report names the others.
DERIVED alone is no kind: archives and anonymisers write it on images that a scanner made.
"""

from typing import Literal, get_args

from medrec.series import ScanFile

Kind = Literal["localizer", "screenshot", "projection", "resampled", "registered", "subtracted", "map"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Values of ImageType from the third on (DICOM PS3.3 C.7.6.1.1.2; C.8.13.1.3.1 for CT and MR), as makers write them.
TELLING: dict[str, Kind] = {
    "LOCALIZER": "localizer",
    "SCOUT": "localizer",
    "SCREEN SAVE": "screenshot",
    "SCREENSAVE": "screenshot",
    "SCREENSHOT": "screenshot",
    "PROJECTION IMAGE": "projection",
    "MIP": "projection",
    "MINIP": "projection",
    "MAX_IP": "projection",
    "MIN_IP": "projection",
    "VOLREN": "projection",
    "VOLUME_RENDER": "projection",
    "3DSURFACE": "projection",
    "MPR": "resampled",
    "RESAMPLED": "resampled",
    "REFORMATTED": "resampled",
    "CSA RESAMPLED": "resampled",
    "CSAPARALLEL": "resampled",
    "CSA PARALLEL": "resampled",
    "REG": "registered",
    "REGISTERED": "registered",
    "FUSED": "registered",
    "MOCO": "registered",
    "SUB": "subtracted",
    "SUBTRACT": "subtracted",
    "SUBTRACTION": "subtracted",
    "ADC": "map",
    "FA": "map",
    "FRACT_ANISO": "map",
    "TRACE": "map",
    "TRACEW": "map",
    "T1 MAP": "map",
    "T2 MAP": "map",
    "CBF": "map",
    "CBV": "map",
    "RCBV": "map",
    "MTT": "map",
    "TTP": "map",
    "TENSOR": "map",
}


def kinds_of(file: ScanFile) -> tuple[Kind, ...]:
    """What its headers say was done to an image, in the order of `KINDS`; nothing where they say nothing."""
    told = {TELLING[value] for value in file.image_type if value in TELLING}
    if file.screen_copy:
        told.add("screenshot")
    return tuple(kind for kind in KINDS if kind in told)
