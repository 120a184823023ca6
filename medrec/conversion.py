"""Scans without a model: what a folder holds, and its volumes as NIfTI.

Owns `inspect` and `convert`. Invariants: every file is accounted for; nothing says who a patient is: no UID, no name,
no date, no path; files are written below the output folder only, named by series number and ordinal.
"""

import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt

from medrec.dicom import Archive, Index, Pseudonyms
from medrec.errors import ConfigError, WorldError
from medrec.kinds import kinds_of
from medrec.series import Reason, ScanFile, Series, Skipped, Study, group
from medrec.stacks import stacks
from medrec.volume import LPS_TO_RAS, Volume, affine_of, spacing_mm

SCANNER = 1  # NIFTI_XFORM_SCANNER_ANAT: coordinates are those of the scanner (nifti1.h)
# Whole numbers are kept as such in the first type that holds them all; single precision holds them exactly up to here.
WHOLE = (np.int16, np.uint16, np.int32)
EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True, slots=True)
class Found:
    """One volume, or one group of images that are none, as people and programs may read it.

    `size` is (columns, rows, slices) in pixels; `orientation` the words of the axes of columns, rows and slices, such
    as "LPS"; `spacing_mm` goes with it, and is (columns, rows) of a single image; `reason` is "usable" or a code of
    `medrec.series.Reason`.
    """

    study: int
    series: int
    number: int | None
    modality: str
    kind: str
    files: int
    size: tuple[int, int, int]
    spacing_mm: tuple[float, ...] | None
    orientation: str | None
    transfer_syntax: str
    part: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that a folder holds: files seen = in series + unused + refused."""

    files: dict[str, int]
    refused: dict[str, int]
    found: tuple[Found, ...]


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written and what could not be; `written` are file names."""

    files: dict[str, int]
    written: tuple[str, ...]
    problems: tuple[str, ...]


def inspect(source: Path) -> Inventory:
    """Say what a folder or file holds. Raises ConfigError when it is not there."""
    index = _archive(source).index()
    refused = Counter(str(r.reason) for r in index.refused)
    found = tuple(_found(study, series, result) for study, series, result in _results(index))
    return Inventory(_counts(index), dict(sorted(refused.items())), found)


def convert(source: Path, folder: Path, *, gzip: bool = False, tilted: bool = False) -> Conversion:
    """Write each volume of a folder or file as NIfTI, with DICOM's rescaled values.

    With `tilted`, stacks whose slices lean are written as they lie, by an affine that is sheared. Raises
    ConfigError when the source is not there, WorldError when nothing can be written.
    """
    archive = _archive(source)
    index = archive.index()
    written: list[str] = []
    problems = [f"file {r.ordinal + 1}: {r}" for r in index.refused]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError([f"--output: cannot be made a folder ({error.strerror})"]) from None
    for _, series, result in _results(index, tilted):
        if isinstance(result, Skipped):
            problems.append(f"series {_label(result.files[0], series)}, {_files(result)}: {result}")
            continue
        loaded = archive.load(result)
        if isinstance(loaded, Skipped):
            problems.append(f"series {_label(result.first, series)}, {_files(loaded)}: {loaded}")
            continue
        volume, broken = loaded
        problems += [f"file {r.ordinal + 1}: {r}" for r in broken]
        name = f"series-{_label(result.first, series)}-{len(written) + 1:03d}.nii{'.gz' if gzip else ''}"
        try:
            nibabel.save(_image(volume), folder / name)
        except OSError as error:
            raise WorldError(f"{name} cannot be written: {error.strerror}") from None
        written.append(name)
        if volume_tilt := result.gantry_tilt_deg:
            problems.append(f"{name}: {_leaning(volume_tilt)}; the affine is sheared, which not every viewer shows")
    return Conversion(_counts(index), tuple(written), tuple(problems))


def _archive(source: Path) -> Archive:
    # Nothing is kept of this run, so that nobody needs the key of its pseudonyms.
    return Archive(source, Pseudonyms(secrets.token_bytes(32)), {}, or_file=True)


def _results(index: Index, tilted: bool = False) -> Iterator[tuple[int, int, Series | Skipped]]:
    """(number of study, number of series, volume or refusal), counted from 1."""
    for study, content in enumerate(sorted(group(index.files), key=_first), 1):
        for number, files in enumerate(content.series, 1):
            for result in stacks(files):
                yield study, number, result if tilted else _upright(result)


def _upright(result: Series | Skipped) -> Series | Skipped:
    """A stack whose slices lean is refused: most programs read its affine as if they did not."""
    if isinstance(result, Skipped) or not result.gantry_tilt_deg:
        return result
    return Skipped(result.first.series, Reason.TILTED, _leaning(result.gantry_tilt_deg), result.files)


def _leaning(tilt_deg: float) -> str:
    return f"slices follow each other at {tilt_deg:.1f} degrees from their normal"


def _counts(index: Index) -> dict[str, int]:
    """Each file once; a zip file, which may hold many things, by the best of them."""
    series = {f.ordinal for f in index.files}
    refused = {r.ordinal for r in index.refused} - series
    return {
        "seen": index.seen,
        "in series": len(series),
        "unused": index.seen - len(series) - len(refused),
        "refused": len(refused),
    }


def _found(study: int, series: int, result: Series | Skipped) -> Found:
    first = result.first if isinstance(result, Series) else result.files[0]
    usable = isinstance(result, Series)
    place = _place(result, first)
    return Found(
        study=study,
        series=series,
        number=first.series_number,
        modality=first.modality,
        kind=_kind(first),
        files=len(result.files),
        size=(first.columns, first.rows, len(result.slices) if isinstance(result, Series) else _slices(result)),
        spacing_mm=place[0],
        orientation=place[1],
        transfer_syntax=", ".join(sorted({f.transfer_syntax for f in result.files})),
        part=result.part if isinstance(result, Series) else "",
        reason="usable" if usable else str(result.reason),  # type: ignore[union-attr]
        detail="" if usable else result.detail,  # type: ignore[union-attr]
    )


def _place(result: Series | Skipped, first: ScanFile) -> tuple[tuple[float, ...] | None, str | None]:
    """Spacing in mm and the words of the axes, as far as they are known."""
    if isinstance(result, Skipped):
        planar = result.reason is Reason.PLANAR and first.spacing_mm is not None
        return (tuple(round(s, 4) for s in reversed(first.spacing_mm or ())) if planar else None), None
    affine = affine_of(result)
    x, y, z = (round(float(s), 4) for s in spacing_mm(affine))
    words = "".join(nibabel.aff2axcodes(LPS_TO_RAS @ affine))
    return (x, y, z), words


def _slices(result: Skipped) -> int:
    return sum(max(f.frames, len(f.planes), 1) for f in result.files)


def _kind(file: ScanFile) -> str:
    """What the headers call an image that is not simply an acquired one."""
    told = [w for w in ("MOSAIC", "DERIVED", "SECONDARY") if w in file.image_type]
    return ", ".join([*(w.lower() for w in told), *kinds_of(file)])


def _label(file: ScanFile, ordinal: int) -> str:
    """SeriesNumber where there is one, else the series' place in this run."""
    number = file.series_number
    return f"{number:04d}" if number is not None and 0 <= number < 10**12 else f"x{ordinal:03d}"


def _files(result: Skipped) -> str:
    return "1 file" if len(result.files) == 1 else f"{len(result.files)} files"


def _image(volume: Volume) -> nibabel.Nifti1Image:
    affine = LPS_TO_RAS @ volume.affine_ijk_to_lps
    image = nibabel.Nifti1Image(_compact(volume.voxels), affine)
    image.set_sform(affine, SCANNER)
    image.set_qform(affine, SCANNER)
    image.header.set_xyzt_units("mm")
    return image


def _compact(voxels: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
    """Whole numbers as integers where a type holds them all, anything else as float32."""
    low, high = float(voxels.min()), float(voxels.max())
    if max(-low, high) <= EXACT_IN_FLOAT32 and bool((voxels == np.rint(voxels)).all()):
        for kind in WHOLE:
            if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
                return voxels.astype(kind)
    return voxels


def _first(study: Study) -> int:
    """The place of a study's first file in the walk: unlike its pseudonym, it is the same on every run."""
    return min(f.ordinal for f in study.files)
