"""masks/<SHA-256 of the file>.png: what is outlined in each single image, in the image's own pixels.

Invariants: 255 inside and 0 elsewhere; a mask has the size of its image, and one without an outline is all 0; the same
mask gives the same bytes.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from medrec.report import PictureCase

NAME = "masks"


def write(case: PictureCase, folder: Path) -> None:
    """Write each mask (rows, columns) uint8 into a folder below `folder`; nothing when no image was analysed."""
    if not case.pictures:
        return
    place = folder / NAME
    place.mkdir(mode=0o700)
    for picture in case.pictures:
        Image.fromarray(picture.prediction.mask.astype(np.uint8) * 255).save(place / f"{picture.input}.png", "PNG")
