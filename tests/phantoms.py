"""Files and grids with known geometry, made without the rooms that they test."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from medrec.phantom import Triple, grid
from medrec.series import ScanFile

AXIAL = (0.0, 0.0, 0.0)
SAGITTAL = (90.0, 0.0, 90.0)  # i runs backwards, j up, k to the left
DOUBLE_OBLIQUE = (11.0, -17.0, 23.0)


def scan_file(**changes: object) -> ScanFile:
    """One axial slice of 12 columns and 10 rows at the origin, of 1.5 mm between columns and 2 mm between rows."""
    file = ScanFile(
        sha256="0" * 64,
        ordinal=0,
        study="study",
        series="series",
        instance="instance",
        patient="patient",
        frame_of_reference="frame",
        modality="MR",
        series_number=1,
        rows=10,
        columns=12,
        position_mm=(0.0, 0.0, 0.0),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing_mm=(2.0, 1.5),
        image_type=("ORIGINAL", "PRIMARY"),
        lossy=False,
        transfer_syntax="Explicit VR Little Endian",
        matches=frozenset(),
        words=(),
    )
    return replace(file, **changes)  # type: ignore[arg-type]


def stack(
    affine: Sequence[Sequence[float]] | npt.NDArray[np.float64],
    size: tuple[int, int, int] = (12, 10, 6),
    decimals: int = 9,
) -> list[ScanFile]:
    """The files of a grid in the order of k, with positions written to so many decimals.

    Digests run against the order of the slices, so that nothing can be in order by chance.
    """
    a = np.array(affine)
    spacing = np.linalg.norm(a[:3, :3], axis=0)
    row, column = a[:3, 0] / spacing[0], a[:3, 1] / spacing[1]
    return [
        scan_file(
            sha256=f"{1000 - k:064x}",
            ordinal=k,
            instance=f"instance {k}",
            columns=size[0],
            rows=size[1],
            position_mm=tuple(float(x) for x in np.round(a[:3, 3] + k * a[:3, 2], decimals)),
            orientation=(*(float(x) for x in row), *(float(x) for x in column)),
            spacing_mm=(float(spacing[1]), float(spacing[0])),
        )
        for k in range(size[2])
    ]


def ellipsoid(
    size: tuple[int, int, int], affine: npt.ArrayLike, centre_mm: Triple, radii_mm: Triple
) -> npt.NDArray[np.bool_]:
    """(i, j, k) bool: the voxels whose centres lie in an ellipsoid with its axes along L, P, S."""
    a = np.asarray(affine)
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1)
    lps = ijk @ a[:3, :3].T + a[:3, 3]
    inside: npt.NDArray[np.bool_] = (((lps - centre_mm) / radii_mm) ** 2).sum(-1) <= 1
    return inside


def array_grid(*args: object, **kwargs: object) -> npt.NDArray[np.float64]:
    """`medrec.phantom.grid` as an array."""
    return np.array(grid(*args, **kwargs))  # type: ignore[arg-type]
