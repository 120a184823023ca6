"""Heads that never lived: MR-like volumes with lesions of known size, and the studies of `medrec demo`.

Owns `Lesion`, `Head` and `Known`. It knows no room that reads, so that it can test them. Anatomy is drawn
around the origin of LPS: scalp, skull, cortex, white matter, ventricles, falx, eyes; FLAIR-like, so that
fluid is dark and lesions are bright. Invariants: every tissue edge has partial volume; a head renders to the
same voxels every time; every name is invented and says so.
"""

from dataclasses import dataclass
from math import ceil, pi, prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medrec.phantom_dicom import uid, write_dicom

__all__ = ["Head", "Known", "Lesion", "demo_studies", "grid", "random_head", "render", "uid", "write_dicom"]

Triple = tuple[float, float, float]
Floats = npt.NDArray[np.float32]
Points = tuple[Floats, Floats, Floats]  # L, P, S in mm, each (i, j, k)

HEAD_RADII_MM = (75.0, 95.0, 88.0)  # outside of the scalp, along L, P, S
# How deep below the scalp's outside each layer begins.
BONE_MM, FLUID_MM, CORTEX_MM, WHITE_MM = 5.0, 11.0, 14.0, 19.0
SUBSAMPLES = (2, 2, 3)  # along i, j, k: slices are thick, so that their edges need more
GAIN = 600.0  # stored value of white matter
# Signal of each tissue where white matter is 1; fluid is suppressed, as in FLAIR.
SCALP, BONE, FLUID, CORTEX, WHITE, EYE = 1.15, 0.08, 0.16, 1.2, 1.0, 0.2


@dataclass(frozen=True, slots=True)
class Lesion:
    """A bright ellipsoid with its axes along L, P and S."""

    centre_lps_mm: Triple
    radii_mm: Triple

    @property
    def volume_mm3(self) -> float:
        """The ellipsoid's volume, not that of the voxels in it."""
        return 4 / 3 * pi * prod(self.radii_mm)

    @property
    def side(self) -> str:
        """The patient's side on which the centre lies."""
        return "left" if self.centre_lps_mm[0] > 0 else "right"


@dataclass(frozen=True, slots=True)
class Head:
    """A head on a grid of `size_px` (i, j, k) voxels.

    `contrast` is the lesions' signal and `noise` the standard deviation of noise, where white matter's signal
    is 1; `scale` sizes the anatomy, not the lesions; `seed` steers noise, bias field, folds and levels.
    """

    lesions: tuple[Lesion, ...]
    size_px: tuple[int, int, int]
    affine_ijk_to_lps: tuple[tuple[float, float, float, float], ...]
    contrast: float = 1.9
    noise: float = 0.03
    seed: int = 0
    scale: float = 1.0

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """4x4 from voxel centres to LPS mm."""
        return np.array(self.affine_ijk_to_lps)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one demo study: its lesions, and what must come out.

    `name` is also its folder. `expected` is a verdict ("finding", "nothing marked") or "refused: " and why.
    `study_uid` is None where no study can be read from the file.
    """

    name: str
    study_uid: str | None
    lesions: tuple[Lesion, ...]
    expected: str
    files: tuple[Path, ...]


def grid(
    size_px: tuple[int, int, int],
    spacing_mm: Triple,
    rotation_deg: Triple = (0.0, 0.0, 0.0),
    flip: tuple[bool, bool, bool] = (False, False, False),
    centre_lps_mm: Triple = (0.0, 0.0, 0.0),
) -> tuple[tuple[float, float, float, float], ...]:
    """Affine (4x4, ijk to LPS mm) of a grid around `centre_lps_mm`; unrotated, i, j, k run along L, P, S.

    `flip` turns axes round; then the grid is rotated about L, then P, then S.
    """
    rotation = np.eye(3)
    for axis, angle in enumerate(np.radians(rotation_deg)):
        u, v = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[u, v], [u, v]] = np.cos(angle)
        step[u, v], step[v, u] = -np.sin(angle), np.sin(angle)
        rotation = step @ rotation
    affine = np.eye(4)
    affine[:3, :3] = rotation * (np.array(spacing_mm) * np.where(flip, -1, 1))
    affine[:3, 3] = centre_lps_mm - affine[:3, :3] @ ((np.array(size_px) - 1) / 2)
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)


def render(head: Head) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
    """Voxels (i, j, k) int16, 0 to 4095, and the lesions' mask (i, j, k) bool, by voxel centre."""
    rng = np.random.default_rng(head.seed)
    folds, levels, slope = rng.uniform(0, 2 * pi, 4), rng.normal(1, 0.08, 3), rng.normal(0, 0.12, 3)
    signal = np.zeros(head.size_px, np.float32)
    for offset in np.ndindex(SUBSAMPLES):
        fractions = (np.array(offset) + 0.5) / SUBSAMPLES - 0.5
        signal += _signal(head, _points(head, fractions), folds, levels)
    signal /= prod(SUBSAMPLES)
    bias = np.exp(sum(a * x / 100 for a, x in zip(slope, _points(head, np.zeros(3)), strict=True)))
    real, imaginary = rng.normal(0, head.noise, (2, *head.size_px)).astype(np.float32)
    magnitude = np.hypot(signal * bias + real, imaginary)  # Rician, as magnitude images are
    mask = np.zeros(head.size_px, bool)
    for lesion in head.lesions:
        mask |= _inside(_points(head, np.zeros(3)), lesion.centre_lps_mm, lesion.radii_mm)
    return np.clip(np.rint(magnitude * GAIN), 0, 4095).astype(np.int16), mask


def random_head(rng: np.random.Generator, lesions: int) -> Head:
    """A head as scanners vary them, with so many lesions: radii 5-22 mm, apart, inside brain and grid.

    64-160 px of 1.5-3 mm in plane, 20-40 slices of 3-6 mm over 120-150 mm, tilted by up to 10 degrees.
    Where no room is left there are fewer lesions.
    """
    in_plane_mm, slice_mm = rng.uniform(1.5, 3), rng.uniform(3, 6)
    columns, rows = (int(rng.uniform(low, 240) / in_plane_mm) for low in (192, 216))
    size = (columns, rows, min(40, ceil(rng.uniform(120, 144) / slice_mm)))
    tilt_deg = _triple(rng.uniform((-9, -3, -6), (9, 3, 6)))  # about L and P: 9.5 degrees from axial at most
    centre = _triple(rng.uniform(-6, 6, 3))  # patients lie a little off the middle of the grid
    affine = grid(size, (in_plane_mm, in_plane_mm, slice_mm), tilt_deg, centre_lps_mm=centre)
    scale = float(rng.uniform(0.9, 1.05))
    placed: list[Lesion] = []
    for _ in range(1000):
        if len(placed) == lesions:
            break
        lesion = _random_lesion(rng, scale)
        if _in_grid(lesion, np.array(affine), size) and all(_apart(lesion, other) for other in placed):
            placed.append(lesion)
    contrast, noise = float(rng.uniform(1.5, 2.3)), float(rng.uniform(0.01, 0.04))
    return Head(tuple(placed), size, affine, contrast, noise, int(rng.integers(2**31)), scale)


def demo_studies(folder: Path) -> tuple[Known, ...]:
    """Write the studies of `medrec demo`, each in a folder of its own, and return what is known of them."""
    left = Lesion((30.0, -12.0, 14.0), (15.0, 18.0, 14.0))
    right = Lesion((-34.0, 28.0, -6.0), (9.0, 10.0, 9.0))
    whole = (
        ("two lesions", "PHANTOM^ONE", (left, right), "finding", ()),
        ("no lesion", "PHANTOM^TWO", (), "nothing marked", ()),
        ("a missing slice", "PHANTOM^THREE", (left,), "refused: missing slice", (13,)),
    )
    known = []
    for number, (name, patient_name, lesions, expected, leave_out) in enumerate(whole, 1):
        head = _demo_head(lesions, number)
        files = write_dicom(
            render(head)[0],
            head.affine,
            folder / name,
            patient_name=patient_name,
            patient_id=f"PHANTOM-{number}",
            leave_out=leave_out,
        )
        known.append(Known(name, uid("study", f"PHANTOM-{number}"), lesions, expected, files))
    return (
        *known,
        _truncated(folder / "a truncated file", known[1].files[9]),
        _text(folder / "not an image"),
    )


def _demo_head(lesions: tuple[Lesion, ...], seed: int) -> Head:
    size = (96, 112, 28)
    return Head(lesions, size, grid(size, (2.0, 2.0, 5.0), (6.0, 0.0, 0.0)), seed=seed)


def _truncated(folder: Path, whole: Path) -> Known:
    """A copy of a slice of another study that breaks off in its pixels: it must not spoil that study."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / whole.name
    content = whole.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    return Known(folder.name, None, (), "refused: truncated", (file,))


def _text(folder: Path) -> Known:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "read me"
    file.write_text("This is not an image. A batch must say so and go on.\n")
    return Known(folder.name, None, (), "refused: not DICOM", (file,))


def _points(head: Head, fractions: npt.NDArray[np.float64]) -> Points:
    """The points at `fractions` of a voxel from every voxel's centre."""
    affine = head.affine
    i, j, k = np.ogrid[tuple(slice(n) for n in head.size_px)]
    left, back, up = (
        (a * (i + fractions[0]) + b * (j + fractions[1]) + c * (k + fractions[2]) + d).astype(np.float32)
        for a, b, c, d in affine[:3]
    )
    return left, back, up


def _inside(points: Points, centre_mm: Triple, radii_mm: Triple) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = _depth(points, centre_mm, radii_mm) <= 1
    return inside


def _depth(points: Points, centre_mm: Triple, radii_mm: Triple) -> Floats:
    """(i, j, k): 0 at the ellipsoid's centre, 1 on its surface."""
    depth: Floats = np.sqrt(sum(((x - c) / r) ** 2 for x, c, r in zip(points, centre_mm, radii_mm, strict=True)))
    return depth


def _signal(
    head: Head,
    points: Points,
    folds: npt.NDArray[np.float64],
    levels: npt.NDArray[np.float64],
) -> Floats:
    """Noise-free signal at some points: tissues are painted from the outside in, lesions last."""
    left, back, up = (x / head.scale for x in points)
    at = (left, back, up)
    wave = np.sin(left / 7 + folds[0]) + np.sin(back / 6 + folds[1]) + np.sin(up / 8 + folds[2])
    texture = 0.04 * np.sin(left / 17 + folds[3]) * np.sin(back / 21 + folds[0])
    brain = _depth(at, (0, 0, 0), _below_mm(FLUID_MM)) <= 1
    signal = np.where(_inside(at, (0, 0, 0), HEAD_RADII_MM), SCALP * levels[0], 0).astype(np.float32)
    signal[_inside(at, (0, 0, 0), _below_mm(BONE_MM))] = BONE
    signal[brain] = FLUID
    signal[_depth(at, (0, 0, 0), _below_mm(CORTEX_MM)) + 0.012 * wave <= 1] = CORTEX * levels[1]
    white = _depth(at, (0, 0, 0), _below_mm(WHITE_MM)) + 0.035 * wave <= 1
    signal[white] = (WHITE * levels[2] + texture)[white]
    signal[brain & (up > 12) & (np.abs(left - 1.5 * np.sin(back / 30 + folds[1])) < 1.2)] = FLUID  # falx
    for side, size in ((1, 1.15), (-1, 0.95)):  # the left ventricle is a little larger, as in most of us
        slanted = (left - side * (9 + 0.12 * back), back, up)
        signal[_inside(slanted, (0, 4, 12), (6 * size, 30 * size, 10 * size))] = FLUID
        signal[_inside(at, (side * 31, -56, -46), (15, 15, 15))] = SCALP * levels[0]
        signal[_inside(at, (side * 31, -58, -46), (12, 12, 12))] = EYE
    for lesion in head.lesions:
        signal[_inside(points, lesion.centre_lps_mm, lesion.radii_mm)] = head.contrast
    return signal


def _below_mm(depth_mm: float) -> Triple:
    return _triple(np.array(HEAD_RADII_MM) - depth_mm)


def _random_lesion(rng: np.random.Generator, scale: float) -> Lesion:
    radii = np.clip(rng.uniform(5, 22) * rng.uniform(0.75, 1.25, 3), 5, 22)
    room = scale * np.array(_below_mm(CORTEX_MM + 3)) - radii
    direction = rng.normal(size=3)
    centre = room * direction / np.linalg.norm(direction) * rng.uniform() ** (1 / 3)
    return Lesion(_triple(centre), _triple(radii))


def _in_grid(lesion: Lesion, affine: npt.NDArray[np.float64], size_px: tuple[int, int, int]) -> bool:
    # How far an ellipsoid with radii r reaches along a direction d: |r * d|.
    inverse = np.linalg.inv(affine)
    middle = inverse[:3, :3] @ lesion.centre_lps_mm + inverse[:3, 3]
    reach = np.linalg.norm(inverse[:3, :3] * lesion.radii_mm, axis=1)
    return bool((middle - reach >= 0).all() and (middle + reach <= np.array(size_px) - 1).all())


def _apart(a: Lesion, b: Lesion) -> bool:
    distance_mm = np.linalg.norm(np.subtract(a.centre_lps_mm, b.centre_lps_mm))
    return bool(
        distance_mm > max(a.radii_mm) + max(b.radii_mm) + 8
    )  # farther than the diagonal of a voxel: never one component


def _triple(values: npt.NDArray[np.float64]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
