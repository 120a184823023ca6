"""Two studies of one head: what grew by a known factor is said to have grown, and nothing else is said to have changed."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import RunNight
from scipy.spatial.transform import Rotation

from medrec.home import Home
from medrec.phantom import Head, Lesion, Triple, grid, render, uid, write_dicom

SIZE, SPACING_MM = (64, 72, 26), (3.0, 3.0, 5.0)
LEFT = Lesion((28.0, -14.0, 12.0), (13.0, 12.0, 13.0))
RIGHT = Lesion((-34.0, 20.0, 4.0), (12.0, 12.0, 12.0))
DAY = ("20200102", "20200411", "20210101")  # 100 and 365 days after the first


def bigger(lesion: Lesion, factor: float) -> Lesion:
    """The same lesion with `factor` times its volume."""
    scale = factor ** (1 / 3)
    r = lesion.radii_mm
    return Lesion(lesion.centre_lps_mm, (r[0] * scale, r[1] * scale, r[2] * scale))


def moved(turn_deg: Triple = (0.0, 0.0, 0.0), shift_mm: Triple = (0.0, 0.0, 0.0)) -> npt.NDArray[np.float64]:
    """4x4, LPS mm: how somebody lies otherwise in the scanner."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def study(
    folder: Path,
    lesions: Sequence[Lesion],
    day: str,
    motion: npt.NDArray[np.float64] | None = None,
    *,
    seed: int = 3,
    noise: int = 0,
    size: tuple[int, int, int] = SIZE,
    spacing_mm: Triple = SPACING_MM,
    tilt_deg: Triple = (0.0, 0.0, 0.0),
    scale: float = 1.0,
    patient_id: str = "PHANTOM-1",
    **header: Any,
) -> tuple[Path, ...]:
    """One examination of the head `seed`: `noise` seeds noise of this day, `motion` is how the head lies on it."""
    motion = np.eye(4) if motion is None else motion
    scan = np.array(grid(size, spacing_mm, tilt_deg))
    # The slices lie as the scanner was set; in the head they lie where the head was not moved from.
    affine = tuple(tuple(float(v) for v in row) for row in np.linalg.inv(motion) @ scan)
    head = Head(tuple(lesions), size, affine, seed=seed, scale=scale)  # type: ignore[arg-type]
    voxels = render(head)[0]
    if noise:
        rng = np.random.default_rng(noise)
        voxels = np.clip(voxels + rng.normal(0, 25, voxels.shape), 0, 4095).astype(np.int16)
    name = header.pop("study_uid", uid("priors", patient_id, folder.name, day))
    return write_dicom(voxels, scan, folder, patient_id=patient_id, study_uid=name, study_date=day, **header)


def reports(home: Path) -> list[dict[str, Any]]:
    """The reports of a home that hold a prior or could, by the number of their days: the first study first."""
    found = [json.loads(p.read_text()) for p in home.glob("reports/*/report.json")]
    return sorted(found, key=lambda f: (f["prior"] or {}).get("days") or 0)


def later(home: Path) -> dict[str, Any]:
    """What the only report with a prior says of it."""
    (told,) = [r["prior"] for r in reports(home) if r["prior"]]
    return dict(told)


def words(prior: dict[str, Any]) -> list[str]:
    return [c["word"] for c in prior["changes"]]


def test_what_grew_by_half_in_a_head_that_lies_otherwise_is_said_to_have_grown(
    run_night: RunNight, tmp_path: Path
) -> None:
    study(tmp_path / "in" / "b", (bigger(LEFT, 1.5), RIGHT), DAY[1], moved((6.0, -4.0, 9.0), (7.0, -11.0, 5.0)), noise=2)
    study(tmp_path / "in" / "a", (LEFT, RIGHT), DAY[0])
    summary = run_night(tmp_path / "in")
    assert [c.status for c in summary.cases] == ["analysed"] * 2
    prior = later(tmp_path / "home")
    print(json.dumps(prior, indent=1))
    assert prior["days"] == 100
    assert sorted(words(prior)) == ["grown", "no change beyond repeatability"]
