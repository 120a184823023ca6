"""How single images are shown on a page: each once, its outline as a path over it.

Owns `Shown`. Draws only what may be shown: pictures whose text is covered, or that were withheld.
"""

from dataclasses import dataclass

import numpy as np

from medrec.outputs.scene import Detail
from medrec.outputs.views import Outline, outline, png
from medrec.report import PictureCase


@dataclass(frozen=True, slots=True)
class Shown:
    """One image, counted from 1: its PNG as a data URI, its size in pixels, and the edge of what is outlined."""

    number: int
    rows: int
    columns: int
    image: str
    outline: Outline


def gallery(case: PictureCase, detail: Detail) -> tuple[Shown, ...]:
    """The images of a case, at most as many as a table may have rows."""
    shown = []
    for number, picture in enumerate(case.pictures[: detail.rows], 1):
        levels = np.rint(255 * np.clip(picture.shown, 0, 1)).astype(np.uint8)
        rows, columns = levels.shape
        edge = outline(picture.prediction.mask, detail.outline_characters)
        shown.append(Shown(number, rows, columns, png(levels, detail.picture_px), edge))
    return tuple(shown)
