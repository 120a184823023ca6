"""thumbnail.svg: one small picture of a case with its outline, for the night's contact sheet.

Owns which image stands for a case: the key slice of a volume, the image with the largest outline of single ones. To
recognise a case by, not to read it: it is compressed with loss. Invariants: a few kilobytes, whatever the study; true
aspect; left and right are told where they are known; of single images only what may be shown.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medrec.outputs.scene import SLICE_AXIS, key_slice
from medrec.outputs.views import Outline, cut, grey, jpeg, outline, window
from medrec.report import AnyCase, Case, PictureCase

NAME = "thumbnail.svg"
LONGEST_PX = 208
OUTLINE_CHARACTERS = 5_000
# The window of a thumbnail is told by every third voxel along each axis: a 27th of the work, the same greys.
EVERY = 3
LETTER_PX = 13
# As `report.css` draws it: --mark over a dark casing.
STROKES = (("#000", 3.6, 0.6), ("#ffb547", 1.7, 1.0))


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A JPEG as a data URI, its size as it is shown, an outline in steps of `step` shown pixels (across, down).

    `sides` are the letters at the left and the right edge, "" where nobody knows.
    """

    image: str
    size_px: tuple[float, float]
    edge: Outline | None
    step: tuple[float, float]
    sides: tuple[str, str]


def write(case: AnyCase, folder: Path) -> None:
    """Write the picture into `folder`; nothing when no image was analysed."""
    found = of_pictures(case) if isinstance(case, PictureCase) else of_volumes(case)
    if found is not None:
        (folder / NAME).write_text(svg(found), encoding="ascii")


def of_volumes(case: Case) -> Thumbnail | None:
    """The key slice; None for a case without volumes."""
    if not case.volumes:
        return None
    grid = case.volumes[case.card.grid if case.card is not None else min(case.volumes)]
    index = key_slice(case, grid)[0]
    view = cut(grid.affine_ijk_to_lps, grid.voxels.shape, SLICE_AXIS, index)
    levels = grey(view.pixels(grid.voxels), window(grid.voxels[::EVERY, ::EVERY, ::EVERY]))
    edge = None if case.labels is None else outline(view.pixels(case.labels) > 0, OUTLINE_CHARACTERS)
    factor = LONGEST_PX / max(view.width_mm, view.height_mm)
    step = (view.spacing_mm[1] * factor, view.spacing_mm[0] * factor)
    size = (view.width_mm * factor, view.height_mm * factor)
    return Thumbnail(jpeg(levels, LONGEST_PX), size, edge, step, (view.left, view.right))


def of_pictures(case: PictureCase) -> Thumbnail | None:
    """The image with the largest outline, or the first; None for a case without images."""
    if not case.pictures:
        return None
    picture = max(case.pictures, key=lambda p: int(p.prediction.mask.sum()))
    levels = np.rint(255 * np.clip(picture.shown, 0, 1)).astype(np.uint8)
    factor = LONGEST_PX / max(levels.shape)
    size = (levels.shape[1] * factor, levels.shape[0] * factor)
    edge = outline(picture.prediction.mask, OUTLINE_CHARACTERS)
    return Thumbnail(jpeg(levels, LONGEST_PX), size, edge, (factor, factor), ("", ""))


def svg(found: Thumbnail) -> str:
    """The picture as a file of its own: numbers and letters of ours, no text of a study."""
    width, height = (f"{n:.6g}" for n in found.size_px)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    image = f'<image href="{found.image}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
    return "\n".join((head, image, *_drawn(found), *_letters(found), "</svg>\n"))


def _drawn(found: Thumbnail) -> list[str]:
    if found.edge is None or not found.edge.path:
        return []
    across, down = (f"{s * found.edge.step_px:.6g}" for s in found.step)
    paths = [
        f'<path d="{found.edge.path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-opacity="{opacity}" '
        'stroke-linecap="square" vector-effect="non-scaling-stroke"/>'
        for colour, width, opacity in STROKES
    ]
    return [f'<g transform="scale({across} {down})">', *paths, "</g>"]


def _letters(found: Thumbnail) -> list[str]:
    y = f"{found.size_px[1] / 2 + LETTER_PX / 3:.6g}"
    places = zip(found.sides, (5.0, found.size_px[0] - 5), ("start", "end"), strict=True)
    return [
        f'<text x="{x:.6g}" y="{y}" text-anchor="{anchor}" font-size="{LETTER_PX}" fill="#fff" stroke="#000" '
        f'stroke-width="3" paint-order="stroke" font-family="Arial, sans-serif" font-weight="600">{letter}</text>'
        for letter, x, anchor in places
        if letter
    ]
