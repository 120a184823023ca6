"""Text that is burned into pixels: found, and covered before a picture is shown or stored anywhere.

Ultrasound machines and secondary captures write names, dates and hospitals into the image itself. Pictures of such
objects pass through `screened`: what looks like text is covered, whoever wrote it and whatever it says. Where no
detector is installed (`pip install 'medrec[text]'`), or it fails, the pictures are withheld instead and the report says
so: nothing is ever shown unchecked. The detector is RapidOCR's (PP-OCR, the DB text detector, Apache-2.0), whose model
travels in its wheel; it only finds text, nobody reads it.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medrec.volume import Volume

MARGIN_PX = 4  # around each piece of text: descenders and shadows reach beyond what the detector outlines
ENLARGED = 2  # small print is found in an enlarged picture only
WITHHELD = "pictures withheld: text burned into the pixels could not be checked for names"

COVERED = "text burned into the pixels is covered in the pictures; the networks saw it"
# The detector enlarges what is smaller, so that an enlarged small picture is all that it need see.
DETECTOR_SIDE_PX = 736
_OWN = threading.local()


class NoDetectorError(Exception):
    """Text cannot be looked for here."""


def screened(volumes: Mapping[str, Volume]) -> tuple[dict[str, Volume], tuple[str, ...]]:
    """Volumes (i, j, k) whose text is covered with their darkest value, and what the report must say of it."""
    shown: dict[str, Volume] = {}
    pieces = 0
    try:
        for name, volume in volumes.items():
            voxels = volume.voxels.copy()
            for k in range(voxels.shape[2]):
                where = text_in(voxels[:, :, k].T)
                voxels[:, :, k][where.T] = voxels.min()
                pieces += int(where.any())
            shown[name] = replace(volume, voxels=voxels)
    except NoDetectorError:
        return {n: replace(v, voxels=np.zeros_like(v.voxels)) for n, v in volumes.items()}, (WITHHELD,)
    if not pieces:
        return shown, ()
    return shown, (COVERED,)


def screened_pictures(
    images: Sequence[npt.NDArray[np.float32]],
) -> tuple[tuple[npt.NDArray[np.float32], ...], tuple[str, ...]]:
    """Single pictures (rows, columns) whose text is covered with their darkest value, and what is to be said of it."""
    try:
        found = [text_in(image) for image in images]
    except NoDetectorError:
        return tuple(np.zeros_like(image) for image in images), (WITHHELD,)
    shown = tuple(np.where(where, i.min(), i).astype(np.float32) for i, where in zip(images, found, strict=True))
    return shown, ((COVERED,) if any(where.any() for where in found) else ())


def text_in(image: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(rows, columns) bool: where a picture (rows, columns) holds something that looks like text.

    Raises NoDetectorError when no detector is installed, or it fails.
    """
    low, high = (float(x) for x in (image.min(), image.max()))
    grey = ((image - low) * (255 / (high - low or 1))).astype(np.uint8)
    found = np.zeros(image.shape, bool)
    alike = ENLARGED * min(image.shape) <= DETECTOR_SIDE_PX
    for factor in (ENLARGED,) if alike else (1, ENLARGED):
        picture = grey.repeat(factor, 0).repeat(factor, 1)
        for box in _boxes(np.repeat(picture[..., None], 3, 2)):
            (x0, y0), (x1, y1) = np.floor(box.min(0) / factor), np.ceil(box.max(0) / factor)
            rows = slice(max(0, int(y0) - MARGIN_PX), int(y1) + MARGIN_PX + 1)
            found[rows, max(0, int(x0) - MARGIN_PX) : int(x1) + MARGIN_PX + 1] = True
    return found


def _boxes(picture: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float64]]:
    """Corners (4, 2) as (x, y) of each piece of text in a picture (rows, columns, 3)."""
    try:
        result = _detector()(picture, use_det=True, use_cls=False, use_rec=False)
    except NoDetectorError:
        raise
    except Exception as error:  # whatever the runtime raises: unchecked is not clean
        raise NoDetectorError(type(error).__name__) from None
    return [] if result.boxes is None else [np.asarray(box, float) for box in result.boxes]


def _detector() -> Any:
    """This thread's own: the detector keeps what it works on. One thread of the processor each, which is faster."""
    if getattr(_OWN, "detector", None) is None:
        _OWN.detector = _made()
    return _OWN.detector


def _made() -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError:
        raise NoDetectorError("rapidocr is not installed") from None
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    quick = {
        f"EngineConfig.onnxruntime.{k}": v for k, v in (("intra_op_num_threads", 1), ("enable_cpu_mem_arena", True))
    }
    wanted = {"Global.use_cls": False, "Global.use_rec": False, "Global.log_level": "critical"}
    return RapidOCR(params=wanted | quick)
