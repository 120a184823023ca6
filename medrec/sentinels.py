"""Known answers before patients: phantoms go the way that studies go, and what comes out must be what is known.

Owns `SENTINELS` and `watch`. A lesion on the left, the mirror image of the same study, and one whose files broke off
are written as DICOM and read, put into place, predicted and measured by the rooms that do so with patients, on
tonight's device. A flipped axis, a millimetre of another length, a network that runs otherwise, a cut file that
passes: each is a wrong answer, and then no study is touched. Nothing of it is kept.
"""

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from medrec import config as configurations
from medrec import pipeline, planning
from medrec.config import CardFiles
from medrec.dicom import Archive, Pseudonyms
from medrec.errors import SentinelError, WorldError
from medrec.phantom import Head, Lesion, grid, render, write_dicom
from medrec.pictures import PicturePredictor
from medrec.pipeline import Setting
from medrec.prediction import Predictor
from medrec.report import Case, Status, Verdict
from medrec.routing import rules_of
from medrec.series import Reason, ScanFile, Skipped, group

Triple = tuple[float, float, float]

CARD = "phantom"
KEY = b"sentinels have no name to hide.."  # 32 bytes
LESION = Lesion((28.0, -14.0, 12.0), (16.0, 14.0, 15.0))
SIZE, SPACING_MM = (64, 72, 26), (3.0, 3.0, 5.0)
VOLUME_TOLERANCE = 0.15  # of the known volume: half a voxel all around it is 20 %
PLACE_TOLERANCE_MM = 5.0  # a slice's distance; its mirror image is eleven times as far away
CUT = (9, 10)  # slices whose files break off: a gap is left


@dataclass(frozen=True, slots=True)
class Sentinel:
    """One study with a known answer; `centre_lps_mm` is None where it must be refused."""

    name: str
    mirrored: bool
    centre_lps_mm: Triple | None


_LEFT, _BACK, _UP = LESION.centre_lps_mm
SENTINELS = (
    Sentinel("a lesion on the left", False, (_LEFT, _BACK, _UP)),
    Sentinel("its mirror image", True, (-_LEFT, _BACK, _UP)),
    Sentinel("a study that broke off", False, None),
)


def model() -> CardFiles:
    """The card that knows phantoms, as it came with medrec, whatever else is configured."""
    return next(c for c in configurations.load().cards if c.card.name == CARD)


def watch(predictor: Predictor | PicturePredictor, setting: Setting) -> dict[str, str]:
    """Lead every sentinel through the pipeline; returns what came out of each, by its name.

    Raises SentinelError with every wrong answer, WorldError when no folder for them can be made.
    """
    known, told, wrong = model(), {}, []
    with tempfile.TemporaryDirectory(prefix="medrec-sentinels-") as place:
        for sentinel, folder in _written(Path(place)):
            try:
                case = _answer(folder, known, predictor, setting)
            except WorldError:
                raise
            except Exception as error:
                wrong.append(f"{sentinel.name}: internal error ({type(error).__name__})")
                continue
            told[sentinel.name] = _came_out(case)
            if not _right(sentinel, case):
                wrong.append(f"{sentinel.name}: wanted {_wanted(sentinel)}, got {told[sentinel.name]}")
    if wrong:
        raise SentinelError(wrong)
    return told


def _written(place: Path) -> Iterator[tuple[Sentinel, Path]]:
    head = Head((LESION,), SIZE, grid(SIZE, SPACING_MM), seed=3)
    voxels = render(head)[0]
    for number, sentinel in enumerate(SENTINELS, 1):
        image = np.ascontiguousarray(voxels[::-1]) if sentinel.mirrored else voxels
        folder, name = place / str(number), f"SENTINEL-{number}"
        files = write_dicom(image, head.affine, folder, patient_name="SENTINEL^PHANTOM", patient_id=name)
        for cut in CUT if sentinel.centre_lps_mm is None else ():
            content = files[cut].read_bytes()
            files[cut].write_bytes(content[: len(content) * 2 // 3])
        yield sentinel, folder


def _answer(folder: Path, known: CardFiles, predictor: Predictor | PicturePredictor, setting: Setting) -> Case | None:
    """What comes of the study in a folder; None when none is found in it."""
    archive = Archive(folder, Pseudonyms(KEY), rules_of([known.card]))
    files = [f for found in archive.scan() for f in found if isinstance(f, ScanFile)]
    for planned in planning.plan(group(files), replace(setting.configuration, cards=(known,))):
        prepared = pipeline.prepare(planned, archive)
        prediction = None if isinstance(prepared, Skipped) else pipeline.predict(prepared, predictor)
        case = pipeline.case_of(planned, prepared, prediction, setting, datetime.now(UTC))
        return case if isinstance(case, Case) else None
    return None


def _right(sentinel: Sentinel, case: Case | None) -> bool:
    centre = sentinel.centre_lps_mm
    if case is None:
        return False
    if centre is None:
        return case.report.status is Status.REFUSED and case.report.reason.startswith(Reason.MISSING_SLICE.value)
    if case.report.verdict is not Verdict.FINDING or len(case.report.findings) != 1:
        return False
    (found,) = case.report.findings
    return (
        found.side == _side(centre)
        and abs(found.volume_mm3 / LESION.volume_mm3 - 1) <= VOLUME_TOLERANCE
        and math.dist(found.centroid_lps_mm, centre) <= PLACE_TOLERANCE_MM
    )


def _wanted(sentinel: Sentinel) -> str:
    centre = sentinel.centre_lps_mm
    if centre is None:
        return f"refused: {Reason.MISSING_SLICE.value}"
    return f"finding: {LESION.volume_mm3 / 1000:.1f} ml on the {_side(centre)} at {_place(centre)}"


def _came_out(case: Case | None) -> str:
    if case is None:
        return "no study"
    report = case.report
    found = [f"{f.volume_mm3 / 1000:.1f} ml on the {f.side} at {_place(f.centroid_lps_mm)}" for f in report.findings]
    if report.verdict is not None:
        return ": ".join((report.verdict.value, *filter(None, (", ".join(found), "; ".join(report.flags)))))
    return f"{report.status.value}: {report.reason}"


def _side(centre_lps_mm: Triple) -> str:
    return "left" if centre_lps_mm[0] > 0 else "right"


def _place(centre_lps_mm: Triple) -> str:
    return "({:.0f}, {:.0f}, {:.0f}) mm".format(*centre_lps_mm)
