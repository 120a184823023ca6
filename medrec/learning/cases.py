"""Labelled studies: volumes and a mask on the same grid, read through the rooms that the nightly run uses.

A study's mask is found by its Study Instance UID in a table; a mask that does not fit its grid is refused, never
resized.
"""

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch

from medrec.dicom import Archive, Pseudonyms
from medrec.errors import ConfigError, ScanError
from medrec.models import preprocessing
from medrec.prediction import ModelCard
from medrec.routing import Routed, rules_of, select
from medrec.series import Skipped, group
from medrec.volume import LPS_TO_RAS, Volume, on_grid

KEY = hashlib.sha256(b"labelled studies").digest()
GRID_TOLERANCE_MM = 1e-2
VALIDATION_SHARE = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class LabelledCase:
    """One study: `inputs` by name on one grid, `mask` (i, j, k) bool on it, empty where nobody outlined (`outlined`).

    `positive` says whether it is of its card's positive class, None where nobody said.
    """

    study: str
    patient: str
    inputs: Mapping[str, Volume]
    mask: npt.NDArray[np.bool_]
    outlined: bool = True
    positive: bool | None = None

    def pixels_sha256(self, card: ModelCard) -> str:
        """Digest of the pixels of the card's grid input: what cards list as trained on."""
        return self.inputs[card.grid].pixels_sha256


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One case as networks see it: images (k, inputs, y, x) float16, target (k, y, x) float16 in 0..1.

    `outlined` and `positive` are those of the case.
    """

    images: torch.Tensor
    target: torch.Tensor
    outlined: bool = True
    positive: bool | None = None


def load(card: ModelCard, dicom: Path, table: Path, masks: Path) -> Iterator[LabelledCase]:
    """Every study below `dicom` that the card routes and `table` (columns study_instance_uid, patient) knows.

    The mask is `masks`/<patient>.nii.gz. Raises ConfigError for a table without these columns, ScanError for a mask
    that lies on another grid than its series.
    """
    pseudonyms = Pseudonyms(KEY)
    mask_of = {study: masks / f"{patient}.nii.gz" for study, patient in _patients(table, pseudonyms).items()}
    archive = Archive(dicom, pseudonyms, rules_of([card]))
    for study in group(archive.index().files):
        if study.study not in mask_of:
            continue
        routed = select(study, card)
        if not isinstance(routed, Routed):
            continue
        inputs = inputs_of(routed, card, archive)
        if card.grid not in inputs:
            continue
        grid = inputs[card.grid]
        yield LabelledCase(study.study, study.patients[0], inputs, read_mask(mask_of[study.study], grid))


def named(table: Path, pattern: str) -> frozenset[str]:
    """The studies of `load` whose patient in the table fits a regular expression. Raises ConfigError for none."""
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ConfigError([f"{pattern}: no regular expression ({error})"]) from None
    return frozenset(s for s, patient in _patients(table, Pseudonyms(KEY)).items() if wanted.search(patient))


def _patients(table: Path, pseudonyms: Pseudonyms) -> dict[str, str]:
    """The table's patients by the pseudonym of their study."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"study_instance_uid", "patient"} <= set(rows[0]):
        raise ConfigError([f"{table.name}: the columns study_instance_uid and patient are needed"])
    return {pseudonyms.of("study", row["study_instance_uid"]): row["patient"] for row in rows}


def inputs_of(routed: Routed, card: ModelCard, archive: Archive) -> dict[str, Volume]:
    """The inputs of a routed study on the grid of the card's grid input; those that cannot be read are left out."""
    volumes = {}
    for name, series in routed.inputs.items():
        loaded = archive.load(series)
        if not isinstance(loaded, Skipped):
            volumes[name] = loaded[0]
    grid = volumes.get(card.grid)
    return {} if grid is None else {name: on_grid(volume, grid) for name, volume in volumes.items()}


def read_mask(path: Path, grid: Volume) -> npt.NDArray[np.bool_]:
    """A NIfTI mask on the axes of `grid`, (i, j, k) bool: axes may be permuted or flipped, never resampled.

    Raises ScanError when shape or affine differ from the grid's.
    """
    image: Any = nib.load(path)
    target = LPS_TO_RAS @ grid.affine_ijk_to_lps
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(image.affine), nib.orientations.io_orientation(target)
    )
    turned = image.as_reoriented(turn)
    if turned.shape != grid.voxels.shape or np.abs(turned.affine - target).max() > GRID_TOLERANCE_MM:
        raise ScanError(
            f"a mask of {turned.shape} voxels does not lie on its series' grid of {grid.voxels.shape}: it was not used"
        )
    return np.asarray(turned.dataobj) > 0


def is_validation(pixels_sha256: str, purpose: str = "validation") -> bool:
    """Whether a patient's study belongs to the validation side, by a hash of its pixels alone.

    Another `purpose` draws another fifth.
    """
    draw = int(hashlib.sha256(f"{purpose} {pixels_sha256}".encode()).hexdigest()[:8], 16) / 2**32
    return draw < VALIDATION_SHARE


def sample(case: LabelledCase, card: ModelCard) -> Sample:
    """What the networks see of a case, in half precision to save memory."""
    stack, frame = preprocessing.images(case.inputs, card)
    return Sample(stack.half(), frame.cut(case.mask.astype(np.float32)).half(), case.outlined, case.positive)
