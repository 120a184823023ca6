"""The same patients as another scanner, protocol or table position could have shown them, and what a model makes of it.

Each change is of a size that is met in practice. Those that move pixels move the truth along; all come out on the
grid that they had, but for thicker slices. No change is random from run to run.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medrec.learning.cases import LabelledCase
from medrec.learning.pictures import LabelledPicture
from medrec.volume import Volume

Payload = LabelledCase | LabelledPicture
Image = npt.NDArray[np.float32]
# (rows, columns) of any brightness, its range and a generator, to the same.
Tone = Callable[[Image, tuple[float, float], np.random.Generator], Image]

NOISE = 0.04  # of the brightness range
GAMMA = 0.75
BLUR_PX = 1.0
ROTATION_DEG = 10.0
SCALE = 0.87


def _brighter(image: Image, span: tuple[float, float], rng: np.random.Generator) -> Image:
    return np.asarray(image * 1.2 + 0.05 * (span[1] - span[0]), np.float32)


def _flatter(image: Image, span: tuple[float, float], rng: np.random.Generator) -> Image:
    low, high = span
    share = np.clip((image - low) / (high - low + 1e-6), 0, None)
    return np.asarray(low + (high - low) * share**GAMMA, np.float32)


def _noisy(image: Image, span: tuple[float, float], rng: np.random.Generator) -> Image:
    return np.asarray(image + rng.normal(0, NOISE * (span[1] - span[0]), image.shape), np.float32)


def _blurred(image: Image, span: tuple[float, float], rng: np.random.Generator) -> Image:
    return np.asarray(ndimage.gaussian_filter(image, BLUR_PX))


def _turned(image: Image, order: int) -> Image:
    return np.asarray(ndimage.rotate(image, ROTATION_DEG, reshape=False, order=order, mode="nearest"))


def _smaller(image: Image, order: int) -> Image:
    middle = (np.array(image.shape) - 1) / 2
    offset = middle - middle / SCALE
    return np.asarray(ndimage.affine_transform(image, [1 / SCALE] * 2, offset, order=order, mode="nearest"))


TONES: Mapping[str, Tone] = {"intensity": _brighter, "contrast": _flatter, "noise": _noisy, "blur": _blurred}
POSES: Mapping[str, Callable[[Image, int], Image]] = {"rotation": _turned, "scale": _smaller}
THICKER = "slice thickness"


def changes(payload: Payload) -> tuple[str, ...]:
    """The names of what can be done to an image."""
    every = (*TONES, *POSES)
    return (*every, THICKER) if isinstance(payload, LabelledCase) else every


def changed(payload: Payload, change: str) -> Payload:
    """An image as it could have been. Raises KeyError for a change that there is not."""
    if isinstance(payload, LabelledPicture):
        picture, mask = _picture(payload.pixels, payload.mask, change)
        return replace(payload, pixels=picture, mask=mask)
    if change == THICKER:
        inputs = {name: _thicker(v) for name, v in payload.inputs.items()}
        return replace(payload, inputs=inputs, mask=_in_pairs(payload.mask.astype(np.float32)) >= 0.5)
    inputs = {name: _volume(v, change) for name, v in payload.inputs.items()}
    mask = payload.mask
    if change in POSES:
        mask = _by_slice(mask.astype(np.float32), lambda s: POSES[change](s, 1)) > 0.5
    return replace(payload, inputs=inputs, mask=mask)


def _picture(pixels: Image, mask: npt.NDArray[np.bool_], change: str) -> tuple[Image, npt.NDArray[np.bool_]]:
    if change in POSES:
        moved = POSES[change](mask.astype(np.float32), 1) > 0.5
        return np.clip(POSES[change](pixels, 1), 0, 1).astype(np.float32), moved
    toned = TONES[change](pixels, (0.0, 1.0), np.random.default_rng(0))
    return np.clip(toned, 0, 1).astype(np.float32), mask


def _volume(volume: Volume, change: str) -> Volume:
    if change in POSES:
        return replace(volume, voxels=_by_slice(volume.voxels, lambda s: POSES[change](s, 1)))
    low, high = (float(v) for v in np.percentile(volume.voxels, (1, 99)))
    rng = np.random.default_rng(0)
    return replace(volume, voxels=_by_slice(volume.voxels, lambda s: TONES[change](s, (low, high), rng)))


def _thicker(volume: Volume) -> Volume:
    """Neighbouring slices averaged in pairs; the first of each pair moves half a slice."""
    affine = volume.affine_ijk_to_lps.copy()
    affine[:3, 3] += affine[:3, 2] / 2
    affine[:3, 2] *= 2
    return replace(volume, voxels=_in_pairs(volume.voxels), affine_ijk_to_lps=affine)


def _in_pairs(voxels: Image) -> Image:
    pairs = voxels.shape[2] // 2
    return np.asarray(voxels[:, :, : 2 * pairs].reshape(*voxels.shape[:2], pairs, 2).mean(3), np.float32)


def _by_slice(voxels: Image, change: Callable[[Image], Image]) -> Image:
    return np.stack([change(voxels[:, :, k]) for k in range(voxels.shape[2])], 2).astype(np.float32)
