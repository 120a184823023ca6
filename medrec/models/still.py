"""The predictor of pictures: outlines on the whole image, then classifies what was outlined from close by.

Invariant: `back` of what `whole` made lies where it came from, for every size and shape of image. Each image is seen as
it is and mirrored, and the two answers are averaged.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from medrec.calibration import tempered
from medrec.models import marks, networks, weights
from medrec.pictures import PictureCard, PicturePrediction, PicturePreprocessing
from medrec.prediction import Network

CHANNELS_TO_OUTLINE, CHANNELS_TO_CLASSIFY = 1, 2  # the image; the image and its outline
MIDDLE, SPREAD = 0.5, 0.25  # brightness that becomes 0 and 1: the range that the encoder's start knows
SMALLEST_BOX_PX = 24


class Box(NamedTuple):
    """A square in pixels of the image, which it may leave: its middle and half its side."""

    row: float
    column: float
    half: float


def seen(pixels: npt.NDArray[np.float32]) -> torch.Tensor:
    """(rows, columns) in 0..1 to (1, 1, rows, columns), centred."""
    return (torch.from_numpy(np.ascontiguousarray(pixels, np.float32))[None, None] - MIDDLE) / SPREAD


def whole(image: torch.Tensor, size_px: int) -> torch.Tensor:
    """(n, c, rows, columns) stretched to (n, c, size, size)."""
    return F.interpolate(image, (size_px, size_px), mode="bilinear", antialias=True)


def back(maps: torch.Tensor, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(1, 1, size, size) to (rows, columns) of the image."""
    values: npt.NDArray[np.float32] = F.interpolate(maps.float(), shape, mode="bilinear")[0, 0].numpy()
    return values


def box_of(mask: npt.NDArray[np.bool_], scale: float) -> Box:
    """The square `scale` times as large as what is marked; around the whole image when nothing is."""
    if not mask.any():
        rows, columns = mask.shape
        return Box((rows - 1) / 2, (columns - 1) / 2, max(rows, columns) / 2)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    side = max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1, SMALLEST_BOX_PX)
    return Box((rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2, scale * side / 2)


def cut(image: torch.Tensor, box: Box, size_px: int) -> torch.Tensor:
    """(1, c, rows, columns) to (1, c, size, size): what lies in the box; 0 outside of the image."""
    rows, columns = image.shape[2:]
    shrinks = 2 * box.half / size_px
    if shrinks > 1:  # a coarser image first: sampling alone would skip pixels
        image = F.interpolate(image, (round(rows / shrinks), round(columns / shrinks)), mode="bilinear", antialias=True)
    theta = torch.tensor(
        [
            [2 * box.half / columns, 0.0, (2 * box.column + 1) / columns - 1],
            [0.0, 2 * box.half / rows, (2 * box.row + 1) / rows - 1],
        ],
        dtype=torch.float32,
    )
    grid = F.affine_grid(theta[None], [1, 1, size_px, size_px], align_corners=False)
    return F.grid_sample(image, grid, align_corners=False)


def largest(mask: npt.NDArray[np.bool_], minimum_px: int) -> npt.NDArray[np.bool_]:
    """The largest region with its holes filled, or nothing when it is smaller than `minimum_px`.

    An examination's still shows the lesion that it is about: a second, smaller region is an echo more often than not.
    """
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())[1:]
    if sizes.max() < minimum_px:
        return np.zeros_like(mask)
    filled: npt.NDArray[np.bool_] = ndimage.binary_fill_holes(labels == 1 + int(sizes.argmax()))
    return filled


def to_classify(image: torch.Tensor, mask: npt.NDArray[np.bool_], scale: float, size_px: int) -> torch.Tensor:
    """(1, 1, rows, columns) and its outline to (1, 2, size, size): both from close by, the outline as -1 and 1."""
    marked = torch.from_numpy(mask.astype(np.float32))[None, None]
    both = cut(torch.cat([image, marked], 1), box_of(mask, scale), size_px)
    return torch.cat([both[:, :1], both[:, 1:] * 2 - 1], 1)


def looked_at(
    image: torch.Tensor, mask: npt.NDArray[np.bool_], rules: PicturePreprocessing, look: float = 1.0
) -> torch.Tensor:
    """What the classifier of a card sees from `look` times its distance; see `to_classify`."""
    return to_classify(image, mask, rules.crop * look, rules.classify_px or rules.size_px)


class StillPredictor:
    """Implements `medrec.pictures.PicturePredictor`."""

    def __init__(
        self, card: PictureCard, segmentation: nn.Module | None, classification: nn.Module | None, device: str
    ) -> None:
        self.card = card
        self.device = device
        self._segmentation = None if segmentation is None else segmentation.to(device).eval()
        self._classification = None if classification is None else classification.to(device).eval()

    def predict(self, pixels: npt.NDArray[np.float32]) -> PicturePrediction:
        """One image (rows, columns), brightness in 0..1."""
        rules = self.card.preprocessing
        found = marks.find(pixels)
        image = seen(marks.painted_out(pixels, found) if rules.paint_out_marks else pixels)
        shape = (pixels.shape[0], pixels.shape[1])
        probability = np.zeros(shape, np.float32)
        if self._segmentation is not None:
            probability = back(self._mirrored(self._segmentation, whole(image, rules.size_px)), shape)
        decision = self.card.decision
        mask = largest(probability > decision.pixel_threshold, decision.minimum_area_px)
        positive = None
        if self._classification is not None:
            close = torch.cat([looked_at(image, mask, rules, look) for look in rules.looks])
            positive = tempered(float(self._mirrored(self._classification, close).mean()), decision.temperature)
        return PicturePrediction(probability, mask, positive, sum(not m.text for m in found))

    @torch.inference_mode()
    def _mirrored(self, network: nn.Module, image: torch.Tensor) -> torch.Tensor:
        x = image.to(self.device)
        plain, mirrored = network(torch.cat([x, x.flip(3)])).sigmoid().chunk(2)
        both: torch.Tensor = (plain + (mirrored.flip(3) if mirrored.ndim == 4 else mirrored)) / 2
        return both.cpu()


def load(card: PictureCard, files: Mapping[str, Path], device: str) -> StillPredictor:
    """Build a card's networks with the weights that it pins; `files` says where each lies, by the name in the card.

    Raises WeightsError when a digest differs or the weights do not fit, ConfigError when the card names no network.
    """

    def network(part: Network, channels: int) -> nn.Module:
        built = networks.build(part.kind, part.settings, channels)
        weights.fill(built, weights.read(files[part.weights], part.sha256), part.weights)
        return built

    classification = None if card.classification is None else network(card.classification, CHANNELS_TO_CLASSIFY)
    segmentation = None if card.segmentation is None else network(card.segmentation, CHANNELS_TO_OUTLINE)
    return StillPredictor(card, segmentation, classification, device)
