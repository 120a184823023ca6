"""From volumes to the tensors that networks see, and back to the volume's grid.

The head is put into one frame whatever the scanner's: axes turned to left-posterior-superior by the nearest
permutation, a square (in mm) around the tissue of all slices resampled to a fixed number of pixels, intensities
centred on the tissue's median. Training and prediction share this code. Invariant: `Frame.back` of what `Frame.cut`
made lies where it came from, on every orientation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from medrec.prediction import ModelCard
from medrec.volume import LPS_TO_RAS, Volume, foreground, head_box

MARGIN = 1.02  # air around the head, so that its edge is seen
CLIP = (-4.0, 8.0)  # in units of twice the tissue's spread: saturated fat and metal must not dominate


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the square lies: voxels of the turned volume, and how it was turned.

    `turn` (3, 2) is nibabel's orientation transform to left-posterior-superior, `undo` the one back; `box` is (first i,
    first j, size i, size j) in turned voxels and may reach beyond the image; `shape` is that of the turned volume.
    """

    turn: npt.NDArray[np.float64]
    undo: npt.NDArray[np.float64]
    box: tuple[int, int, int, int]
    shape: tuple[int, int, int]
    size_px: int

    def cut(self, voxels: npt.NDArray[np.float32]) -> torch.Tensor:
        """(i, j, k) of the volume to (k, size, size) float32: rows run to posterior, columns to left."""
        turned = np.ascontiguousarray(nib.orientations.apply_orientation(voxels, self.turn).transpose(2, 1, 0))
        i, j, ni, nj = self.box
        image = torch.from_numpy(turned)[:, None]
        # Negative padding crops; replicated edges keep noise statistics where the head touches the border.
        square = F.pad(image, self._padding(i, ni, self.shape[0]) + self._padding(j, nj, self.shape[1]))
        size = (self.size_px, self.size_px)
        return F.interpolate(square, size, mode="bilinear", antialias=True, align_corners=False)[:, 0]

    def back(self, maps: torch.Tensor) -> npt.NDArray[np.float32]:
        """(k, size, size) to (i, j, k) float32 on the volume's own grid; 0 outside of the square."""
        i, j, ni, nj = self.box
        square = F.interpolate(maps[:, None].float(), (nj, ni), mode="bilinear", align_corners=False)
        before_i, after_i = self._padding(i, ni, self.shape[0])
        before_j, after_j = self._padding(j, nj, self.shape[1])
        image = F.pad(square, (-before_i, -after_i, -before_j, -after_j))[:, 0].numpy().transpose(2, 1, 0)
        return np.ascontiguousarray(nib.orientations.apply_orientation(image, self.undo), np.float32)

    @staticmethod
    def _padding(first: int, size: int, length: int) -> tuple[int, int]:
        return -first, first + size - length


def frame_of(volume: Volume, size_px: int, tissue: npt.NDArray[np.bool_] | None = None) -> Frame:
    """The frame around the head of the card's grid volume, whose tissue (i, j, k) may be known already.

    Raises ScanError when there is no tissue.
    """
    start = nib.orientations.io_orientation(LPS_TO_RAS @ volume.affine_ijk_to_lps)
    end = nib.orientations.axcodes2ornt(("L", "P", "S"))
    turn, undo = nib.orientations.ornt_transform(start, end), nib.orientations.ornt_transform(end, start)
    turned = nib.orientations.apply_orientation(foreground(volume.voxels) if tissue is None else tissue, turn)
    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = volume.spacing_mm
    i0, i1, j0, j1 = head_box(turned)
    side_mm = MARGIN * max((i1 - i0) * spacing[0], (j1 - j0) * spacing[1])
    ni, nj = round(side_mm / spacing[0]), round(side_mm / spacing[1])
    box = (round((i0 + i1 - ni) / 2), round((j0 + j1 - nj) / 2), ni, nj)
    return Frame(turn, undo, box, turned.shape, size_px)


def windowed(volume: Volume, window: tuple[float, float] | None) -> Volume:
    """Values cut off at both ends and counted from the lower one; as they are without a window."""
    if window is None:
        return volume
    return replace(volume, voxels=np.clip(volume.voxels, *window) - np.float32(window[0]))


def normalised(voxels: npt.NDArray[np.float32], tissue: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Intensities with the tissue's median at 0, in units of twice the spread of its central nine tenths."""
    values = voxels[tissue]
    low, high = np.percentile(values, [5, 95])
    central = values[(values >= low) & (values <= high)]
    scaled = (voxels - np.median(central)) / (2 * float(central.std()) + 1e-3)
    clipped: npt.NDArray[np.float32] = np.clip(scaled, *CLIP).astype(np.float32)
    return clipped


def channels(card: ModelCard) -> int:
    """Number of input channels of the card's networks."""
    return len(card.inputs) + 2 * card.preprocessing.neighbours


def images(inputs: Mapping[str, Volume], card: ModelCard) -> tuple[torch.Tensor, Frame]:
    """Inputs on one grid to (k, inputs, size, size) float32, the grid's own input first; absent ones are 0."""
    unit, window = inputs[card.grid].unit, card.preprocessing.window
    inputs = {name: windowed(v, window if v.unit == unit else None) for name, v in inputs.items()}
    grid = inputs[card.grid]
    tissue = foreground(grid.voxels)
    frame = frame_of(grid, card.preprocessing.size_px, tissue)
    size = card.preprocessing.size_px
    absent = torch.zeros(frame.shape[2], size, size)
    stack = [frame.cut(normalised(inputs[name].voxels, tissue)) if name in inputs else absent for name in card.kinds]
    return torch.stack(stack, 1), frame


def with_neighbours(stack: torch.Tensor, neighbours: int) -> torch.Tensor:
    """(k, inputs, y, x) to (k, inputs + 2 n, y, x): the first input also of the n slices on each side.

    The first and last slices are their own neighbours beyond the end.
    """
    last = len(stack) - 1
    around = [
        stack[torch.arange(len(stack)).add(offset).clamp(0, last), :1] for offset in range(-neighbours, neighbours + 1)
    ]
    return torch.cat([*around, stack[:, 1:]], 1)


def whole(stack: torch.Tensor, depth: int) -> torch.Tensor:
    """(k, inputs, y, x) to (1, inputs, depth, y, x): what a network sees that sees the whole volume."""
    return F.interpolate(stack.transpose(0, 1)[None], (depth, *stack.shape[2:]), mode="trilinear", align_corners=False)


def slices(maps: torch.Tensor, count: int) -> torch.Tensor:
    """(1, 1, depth, y, x) to (count, 1, y, x): back to the slices of the volume."""
    return F.interpolate(maps, (count, *maps.shape[3:]), mode="trilinear", align_corners=False)[0].transpose(0, 1)
