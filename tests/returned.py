"""Cases whose answer is known, and the files that they came from: shared by the tests of objects and peers."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

from medrec import findings, report
from medrec.config import Configuration
from medrec.dicom import Archive, Pseudonyms, Source
from medrec.phantom import write_dicom
from medrec.prediction import ModelCard, Prediction, Returned
from medrec.report import Case, Report, Status
from medrec.series import Series
from medrec.stacks import stacks
from medrec.volume import LPS_TO_RAS, Volume

SIZE = (24, 20, 12)
CREATED = "2026-01-02T03:04:05Z"
KEY = Pseudonyms(b"k" * 32)


def lump(size: tuple[int, int, int] = SIZE) -> npt.NDArray[np.bool_]:
    """(i, j, k) bool without any symmetry: a block with a hook, off every middle, of 26 voxels and 5 more."""
    mask = np.zeros(size, bool)
    mask[4:9, 3:6, 2:4] = True
    mask[8, 6:10, 3] = True
    mask[4, 3, 4:5] = True
    return mask


@dataclass(frozen=True, slots=True)
class Made:
    """A case and the source of its series; `affine` is that of the mask (i, j, k) as it was written."""

    case: Case
    source: Source
    mask: npt.NDArray[np.bool_]
    affine: npt.NDArray[np.float64]

    @property
    def centroid_lps_mm(self) -> npt.NDArray[np.float64]:
        """Of the mask as it was written, by no code of ours."""
        centre: npt.NDArray[np.float64] = (np.argwhere(self.mask) @ self.affine[:3, :3].T + self.affine[:3, 3]).mean(0)
        return centre

    @property
    def volume_mm3(self) -> float:
        """Of the mask as it was written, by no code of ours."""
        return float(self.mask.sum() * abs(np.linalg.det(self.affine[:3, :3])))


def made(
    folder: Path,
    configuration: Configuration,
    affine: npt.ArrayLike,
    mask: npt.NDArray[np.bool_] | None = None,
    *,
    returned: Returned | None = None,
    multi_frame: bool = False,
    case: str = "c" * 24,
    **header: str,
) -> Made:
    """Write a series on a grid, and the case of a network that marked exactly `mask` on it."""
    grid = np.asarray(affine, float)
    mask = lump() if mask is None else mask
    voxels = np.where(mask, 900, 300).astype(np.int16)
    write_dicom(voxels, grid, folder, **header)  # type: ignore[arg-type]
    if multi_frame:
        enhance(folder, voxels, grid)
    archive = Archive(folder, KEY, {})
    files = archive.index().files
    (series,) = (s for s in stacks(files) if isinstance(s, Series))
    loaded = archive.load(series)
    assert isinstance(loaded, tuple)
    volume = loaded[0]
    read = mask if np.allclose(volume.affine_ijk_to_lps[:3, 2], grid[:3, 2], atol=1e-3) else mask[:, :, ::-1]
    card = next(c.card for c in configuration.cards if c.card.name == "phantom")
    if returned is not None:
        card = card.model_copy(update={"returned": returned})
    return Made(case_of(volume, read, card, case), archive.source(series), mask, grid)


def case_of(volume: Volume, mask: npt.NDArray[np.bool_], card: ModelCard, key: str) -> Case:
    """The finished case of a network that marked `mask` on a volume, every component of it a lesion."""
    probability = np.where(mask, 0.9, 0.1).astype(np.float32)
    labels = findings.label(mask, volume.affine_ijk_to_lps, findings.Rules(1e-3))
    found = findings.measure(labels, probability, volume.affine_ijk_to_lps, 0.0)
    verdict, flags = report.decide(found, None, (), card.decision)
    facts = Report(
        case=key,
        study="study",
        patient="patient",
        batch="batch",
        created=CREATED,
        status=Status.ANALYSED,
        reason="",
        verdict=verdict,
        verdict_text=report.verdict_text(verdict, found, card, False),
        flags=flags,
        findings=found,
        slice_probability=(),
        spacing_mm=tuple(float(s) for s in volume.spacing_mm),
        shape=volume.voxels.shape,
        geometry_nominal=False,
        lossy=False,
        series=(),
        inputs=(),
        refused_inputs={},
        pixels_sha256={},
        model_name=card.name,
        model_version=card.version,
        card_sha256=card.digest,
        weights_sha256={},
        licence=card.licence,
        config_sha256="",
        code_version="0",
        device="cpu",
    )
    return Case(facts, card, {card.grid: volume}, Prediction(probability, mask, None), labels)


def changed(of: Case, /, **facts: object) -> Case:
    """The same case with other facts."""
    return replace(of, report=replace(of.report, **facts))  # type: ignore[arg-type]


def enhance(folder: Path, voxels: npt.NDArray[np.int16], affine: npt.NDArray[np.float64]) -> None:
    """Put one Enhanced MR object, frames in an order of chance, in the place of single frames."""
    paths = sorted(folder.iterdir())
    ds = pydicom.dcmread(paths[0])
    for path in paths:
        path.unlink()
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "EchoTime"):
        delattr(ds, name)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    common, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [f"{c:.9f}" for a in (0, 1) for c in affine[:3, a] / spacing[a]]
    measures.PixelSpacing, measures.SliceThickness = [f"{spacing[1]}", f"{spacing[0]}"], "5"
    common.PlaneOrientationSequence, common.PixelMeasuresSequence = [orientation], [measures]
    order = list(range(voxels.shape[2]))
    random.Random(1).shuffle(order)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [common], _frames(order, affine)
    ds.NumberOfFrames = len(order)
    ds.PixelData = b"".join(voxels[:, :, k].T.astype("<u2").tobytes() for k in order)
    ds.save_as(folder / "enhanced")


def _frames(order: Sequence[int], affine: npt.NDArray[np.float64]) -> list[Dataset]:
    groups = []
    for k in order:
        group, content, place = Dataset(), Dataset(), Dataset()
        content.InStackPositionNumber, content.StackID = k + 1, "1"
        place.ImagePositionPatient = [f"{x:.6f}" for x in affine[:3, 3] + k * affine[:3, 2]]
        group.FrameContentSequence, group.PlanePositionSequence = [content], [place]
        groups.append(group)
    return groups


def ras(lps: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """LPS mm as the RAS mm that NIfTI counts in."""
    point: npt.NDArray[np.float64] = LPS_TO_RAS[:3, :3] @ np.asarray(lps, float)
    return point
