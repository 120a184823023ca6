"""One scan's files: their order, their completeness, and the named reasons for which they are not used.

Owns `ScanFile`, `Series`, `Skipped`, `Study` and `Reason`. Knows nothing of disks, pixels or names: every identifier
here is a keyed pseudonym and a file is a digest and an ordinal (folders carry names too).

Invariants: every file that comes in ends in exactly one place; the order of files does not matter; slices are ordered
by position along the normal, never by InstanceNumber or file name; nothing about geometry is guessed.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

# Scanners write positions rounded to 0.01 mm or less, converters to 0.001 of the spacing. Rounding moves a
# position by up to 0.0087 mm along an oblique normal, a distance by twice that, two distances apart by four times.
SLICE_GAP_RELATIVE = 2e-2
SLICE_GAP_MM = 0.035
# Direction cosines are written with at least five digits; anything beyond is another orientation.
ORIENTATION_TOLERANCE = 1e-3
# A stack leans (gantry tilt) when slices shift sideways by more than this share of their distance.
TILT_RELATIVE = 1e-2
# Beyond these no scanner of a patient reaches: units are wrong, or the header is broken.
PIXEL_MM = (1e-3, 1e2)
POSITION_LIMIT_MM = 1e5
# Where the files of one study do not agree on who the patient is.
SEVERAL = "several"

Triple = tuple[float, float, float]


class Reason(StrEnum):
    """Why a file, a series or a study was not analysed: the documented list."""

    UNREADABLE = "unreadable file"
    TOO_LARGE = "file too large"
    NOT_DICOM = "not DICOM"
    BROKEN = "broken DICOM"
    TRUNCATED = "truncated"
    BEYOND_LIMITS = "not read within its limits"
    NO_PIXELS = "no pixels"
    BAD_PIXELS = "pixels cannot be decoded"
    MISSING_UID = "missing UID"
    UNKNOWN_MODALITY = "unknown modality"
    PACKED = "packed files"
    NO_DECODER = "no decoder for its transfer syntax"
    MULTI_FRAME = "several frames without their places"
    CINE = "moving images (cine)"
    MOSAIC = "mosaic cannot be taken apart"
    NOT_GREYSCALE = "not a MONOCHROME2 greyscale image"
    PLANAR = "single image without a place in the patient"
    MISSING_SPACING = "missing pixel spacing"
    MISSING_ORIENTATION = "missing orientation"
    MISSING_POSITION = "missing position"
    BAD_GEOMETRY = "impossible geometry"
    MIXED = "mixed geometry"
    TOO_FEW_SLICES = "too few slices"
    SAME_POSITION = "different slices at one position"
    DUPLICATE = "same image twice"
    CONFLICTING_COPIES = "copies of a slice differ"
    MISSING_SLICE = "missing slice"
    IRREGULAR = "irregular slice distance"
    TILTED = "tilted stack"
    MIXED_PATIENTS = "one study, several patients"
    NO_ROUTE = "no model asks for it"
    NO_INPUT = "required input missing"
    WRONG_CONTRAST = "not the contrast it is called"
    OUTSIDE_CARD = "outside the model's card"
    DISABLED = "the model is disabled"
    ERASED = "erased at the patient's request"
    FAILED = "analysis failed"


@dataclass(frozen=True, slots=True)
class Traits:
    """What can tell images apart that lie at one position; absent where a file does not say it.

    `diffusion` is (b,) or (b, x, y, z); `dimensions` are the dimension indices (PS3.3 C.7.6.17) that count no place;
    `moment` is a keyed pseudonym of the acquisition time; `holder` is the file, where it holds several slices.
    """

    image_type: tuple[str, ...] = ()
    acquisition: int | None = None
    echo_ms: float | None = None
    diffusion: tuple[float, ...] = ()
    temporal: int | None = None
    trigger_ms: float | None = None
    dimensions: tuple[str, ...] = ()
    moment: str = ""
    holder: str = ""


@dataclass(frozen=True, slots=True)
class Plane:
    """One slice of a file that holds several; the fields mean what they mean in `ScanFile`."""

    position_mm: Triple | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    traits: Traits


@dataclass(frozen=True, slots=True)
class Timing:
    """How an MR image was made: what its contrast can be proved from. `sequence` is ScanningSequence."""

    echo_ms: float | None = None
    repetition_ms: float | None = None
    inversion_ms: float | None = None
    sequence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Visit:
    """When a study was made and of whom, for telling which of a patient's studies came first, without saying either.

    `day` counts from a secret day of the patient's own, `minute` within the day; None where the file does not say it.
    `sex` and `born` are keyed pseudonyms, "" where they are absent. `nobody` says that the patient's id is one that
    many people share: empty, "0000", "ANON", "TEST".
    """

    day: int | None = None
    minute: int | None = None
    sex: str = ""
    born: str = ""
    nobody: bool = False

    def before(self, other: "Visit") -> bool | None:
        """Whether it was made before another of the same patient; None where that is not told."""
        if self.day is None or other.day is None:
            return None
        if self.day != other.day:
            return self.day < other.day
        if self.minute is None or other.minute is None or self.minute == other.minute:
            return None
        return self.minute < other.minute


@dataclass(frozen=True, slots=True)
class ScanFile:
    """One readable image file, or one slice of it, as the rooms above the DICOM room may know it.

    `sha256` is of the whole file, `ordinal` its place in the walk. `study`, `series`, `instance`, `patient` and
    `frame_of_reference` are keyed pseudonyms. `position_mm` is ImagePositionPatient (LPS), `orientation` the six
    direction cosines of ImageOrientationPatient, `spacing_mm` PixelSpacing as (between rows, between columns).
    `matches` names the patterns of cards that its free text fits; `words` are allow-listed ones found in it.
    `planes` are the slices of a file that holds several (`mosaic`: side by side in one frame); `frame` says which one
    this is after `expanded`. `promised_images` and `promised_slices` are the numbers of images in the acquisition and
    of slices in one volume that the header tells of. `content` is a digest of the pixel data as stored. `member` counts
    from 1 within a zip file, whose digest and ordinal all its members have; it is 0 for a file that lies by itself.
    `screen_copy` says that it is a Secondary Capture, `may_hold_text` that names may be burned into its pixels.
    `site` and `device` are keyed pseudonyms of the institution and of the very scanner, "" where the header does not
    name them; `scanner` are allow-listed words of its maker, with its field strength. `visit` is that of its study.
    """

    sha256: str
    ordinal: int
    study: str
    series: str
    instance: str
    patient: str
    frame_of_reference: str | None
    modality: str
    series_number: int | None
    rows: int
    columns: int
    position_mm: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    spacing_mm: tuple[float, float] | None
    image_type: tuple[str, ...]
    lossy: bool
    transfer_syntax: str
    matches: frozenset[str]
    words: tuple[str, ...]
    frames: int = 1
    photometric: str = "MONOCHROME2"
    frame: int = 0
    mosaic: bool = False
    thickness_mm: float | None = None
    traits: Traits = Traits()
    planes: tuple[Plane, ...] = ()
    promised_images: int | None = None
    promised_slices: int | None = None
    timing: Timing = Timing()
    content: str = ""
    member: int = 0
    screen_copy: bool = False
    may_hold_text: bool = False
    visit: Visit = Visit()
    site: str = ""
    device: str = ""
    scanner: str = ""

    def expanded(self) -> tuple["ScanFile", ...]:
        """Its slices, each with its own place and traits; itself where it is one slice."""
        return tuple(
            replace(
                self,
                instance=f"{self.instance}.{n}",
                position_mm=plane.position_mm,
                orientation=plane.orientation,
                spacing_mm=plane.spacing_mm,
                thickness_mm=plane.thickness_mm,
                traits=replace(plane.traits, holder=self.instance),
                image_type=plane.traits.image_type or self.image_type,
                frame=n,
                frames=1,
                mosaic=False,
                planes=(),
            )
            for n, plane in enumerate(self.planes)
        ) or (self,)


@dataclass(frozen=True, slots=True)
class Refused:
    """One file that cannot be used at all; `detail` is a sentence for a person.

    `sha256` is empty where the file could not even be read.
    """

    sha256: str
    ordinal: int
    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A series or study that could not be analysed: a value, not an exception, because it reaches the report."""

    what: str
    reason: Reason
    detail: str
    files: tuple[ScanFile, ...]

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


@dataclass(frozen=True, slots=True)
class Series:
    """The slices of one scan in the order of their position along the normal, first to last.

    `slices[k]` holds the copies of slice k (one file, or several with the same SOP Instance UID).
    `direction_mm` (3,) leads from one slice to the next, in LPS; of a single slice it is its thickness. Where the
    gantry was tilted it is not the normal.
    `part` says what tells this volume from the others of the same files' series, "" where it is the only one at its
    place; `promised_slices` is how many slices the headers promise, None where they promise nothing.
    """

    slices: tuple[tuple[ScanFile, ...], ...]
    direction_mm: Triple
    part: str = ""
    promised_slices: int | None = None

    @property
    def first(self) -> ScanFile:
        """The file of the first slice."""
        return self.slices[0][0]

    @property
    def files(self) -> tuple[ScanFile, ...]:
        """Every file once, copies included."""
        return once(f for copies in self.slices for f in copies)

    @property
    def gantry_tilt_deg(self) -> float:
        """By how much the way from slice to slice leans from the slices' normal; 0 where it is within rounding."""
        first = self.first.orientation
        assert first is not None
        normal, step = np.cross(first[:3], first[3:]), np.array(self.direction_mm)
        along = float(np.dot(step, normal))
        sideways = float(np.linalg.norm(step - along * normal))
        return float(np.degrees(np.arctan2(sideways, abs(along)))) if sideways > TILT_RELATIVE * abs(along) else 0.0

    @property
    def extent_mm(self) -> float:
        """From the outer face of the first slice to the outer face of the last, in mm."""
        return len(self.slices) * float(np.linalg.norm(self.direction_mm))


@dataclass(frozen=True, slots=True)
class Study:
    """The files of one study, by series, in the order of their digests."""

    study: str
    patients: tuple[str, ...]
    series: tuple[tuple[ScanFile, ...], ...]

    @property
    def files(self) -> tuple[ScanFile, ...]:
        """Every file of the study."""
        return tuple(f for files in self.series for f in files)

    @property
    def visit(self) -> Visit:
        """What its files say together: the first moment; `SEVERAL` where they name two sexes or days of birth."""
        visits = [f.visit for f in self.files]
        days = [(v.day, -1 if v.minute is None else v.minute) for v in visits if v.day is not None]
        day, minute = min(days, default=(None, -1))
        return Visit(
            day,
            minute if minute >= 0 else None,
            _one({v.sex for v in visits if v.sex}),
            _one({v.born for v in visits if v.born}),
            any(v.nobody for v in visits),
        )


def _one(values: set[str]) -> str:
    return SEVERAL if len(values) > 1 else next(iter(values), "")


def group(files: Iterable[ScanFile]) -> tuple[Study, ...]:
    """Group files by study and series UID; the result does not depend on the order of `files`."""
    studies: dict[str, dict[str, list[ScanFile]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(files, key=lambda f: (f.sha256, f.ordinal, f.member)):
        studies[file.study][file.series].append(file)
    return tuple(
        Study(
            study,
            tuple(sorted({f.patient for files in series.values() for f in files})),
            tuple(tuple(files) for _, files in sorted(series.items(), key=_series_order)),
        )
        for study, series in sorted(studies.items())
    )


def _series_order(item: tuple[str, list[ScanFile]]) -> tuple[int, str]:
    number = item[1][0].series_number
    return (number if number is not None else 2**31, item[0])


def once(files: Iterable[ScanFile]) -> tuple[ScanFile, ...]:
    """Each file, or member of a zip file, once, however many slices come in; the first slice stands for it."""
    return tuple({(f.ordinal, f.member): f for f in reversed(tuple(files))}.values())[::-1]


def arrange(files: Sequence[ScanFile]) -> Series | Skipped:
    """Order the files of one series into a stack of parallel, equally distant slices, or say why they are none.

    Strict: all files must belong to one stack; `medrec.stacks` takes a series apart before.

    DICOM PS3.3 C.7.6.2: position and orientation are patient coordinates (LPS) in mm, so that the distance of two
    slices is measured along the normal of the image plane; SliceThickness and SliceLocation play no part.
    A copy that lost its geometry goes with the copy of the same slice that has it.
    """
    files = sorted(files, key=lambda f: (f.sha256, f.ordinal, f.member))
    whole = [f for f in files if _has_geometry(f)]
    known = {f.instance for f in whole}
    bare = [f for f in files if not _has_geometry(f) and f.instance in known]
    problem = _headers(whole if len(whole) + len(bare) == len(files) else files)
    if problem is not None:
        return _skip(files, problem.reason, problem.detail)
    first = whole[0]
    assert first.orientation is not None
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(row, column)

    copies: dict[str, list[ScanFile]] = defaultdict(list)
    for file in whole:
        copies[file.instance].append(file)
    for same in copies.values():
        if max(float(np.abs(_position(f) - _position(same[0])).max()) for f in same) > SLICE_GAP_MM:
            return _skip(
                files, Reason.CONFLICTING_COPIES, "two files with one SOP Instance UID lie at different positions"
            )
    for file in bare:
        copies[file.instance].append(file)
    slices = sorted(copies.values(), key=lambda c: (float(np.dot(_position(c[0]), normal)), c[0].sha256))
    if len(slices) < 2:
        return _skip(files, Reason.TOO_FEW_SLICES, "one slice makes no volume")

    positions = np.stack([_position(c[0]) for c in slices])
    steps = np.diff(positions, axis=0)
    distances = steps @ normal
    typical = float(np.sort(distances)[(len(distances) - 1) // 2])  # lower median: gaps only make it longer
    tolerance = max(SLICE_GAP_MM, SLICE_GAP_RELATIVE * typical)
    if distances.min() < tolerance:
        k = int(distances.argmin())
        return _skip(files, Reason.SAME_POSITION, f"slices {k + 1} and {k + 2} are {distances[k]:.2f} mm apart")
    k = int(distances.argmax())
    if distances[k] > 1.5 * typical:
        detail = f"{distances[k]:.2f} mm between slices {k + 1} and {k + 2}, where {typical:.2f} mm was expected"
        return _skip(files, Reason.MISSING_SLICE, detail)
    worst = float(np.abs(distances - typical).max())
    if worst > tolerance:
        detail = f"distances vary between {distances.min():.3f} and {distances.max():.3f} mm"
        return _skip(files, Reason.IRREGULAR, detail)
    mean_step = (positions[-1] - positions[0]) / (len(slices) - 1)
    wobble = positions - (positions[0] + np.arange(len(slices))[:, None] * mean_step)
    if float(np.linalg.norm(wobble, axis=1).max()) > 2 * tolerance:
        return _skip(files, Reason.IRREGULAR, "slice positions do not lie on a straight line")
    direction = tuple(float(x) for x in mean_step)
    return Series(tuple(tuple(c) for c in slices), direction)  # type: ignore[arg-type]


def _headers(files: Sequence[ScanFile]) -> Skipped | None:
    for file in files:
        problem = unfit(file)
        if problem is not None:
            return _skip(files, *problem)
    colours = sorted({f.photometric for f in files} - {"MONOCHROME2"})
    if colours:
        return _skip(files, Reason.NOT_GREYSCALE, f"PhotometricInterpretation is {colours[0]}")
    for name, value, reason in (
        ("PixelSpacing", "spacing_mm", Reason.MISSING_SPACING),
        ("ImageOrientationPatient", "orientation", Reason.MISSING_ORIENTATION),
        ("ImagePositionPatient", "position_mm", Reason.MISSING_POSITION),
    ):
        without = sum(getattr(f, value) is None for f in files)
        if without:
            return _skip(files, reason, f"{name} is absent or empty in {without} of {len(files)} files")
    first = files[0]
    assert first.orientation is not None
    row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    lengths = (np.linalg.norm(row), np.linalg.norm(column))
    off = np.abs([lengths[0] - 1, lengths[1] - 1, np.dot(row, column)])
    if not (off <= ORIENTATION_TOLERANCE).all():  # said so that NaN is refused too
        return _skip(files, Reason.BAD_GEOMETRY, "ImageOrientationPatient is not two perpendicular unit vectors")
    spacings = np.array([f.spacing_mm for f in files])
    if not ((spacings >= PIXEL_MM[0]) & (spacings <= PIXEL_MM[1])).all():
        detail = f"PixelSpacing must lie between {PIXEL_MM[0]:g} and {PIXEL_MM[1]:g} mm"
        return _skip(files, Reason.BAD_GEOMETRY, detail)
    if not (np.abs([f.position_mm for f in files]) < POSITION_LIMIT_MM).all():  # type: ignore[arg-type]
        return _skip(files, Reason.BAD_GEOMETRY, "ImagePositionPatient lies out of reach of any scanner")
    checks: dict[str, list[object]] = {
        "sizes": [(f.rows, f.columns) for f in files],
        "frames of reference": [f.frame_of_reference for f in files],
        "modalities": [f.modality for f in files],
    }
    for what, values in checks.items():
        if len(set(values)) > 1:
            return _skip(files, Reason.MIXED, f"{len(set(values))} different {what}")
    orientations = np.array([f.orientation for f in files])
    if not (np.abs(orientations - orientations[0]) <= ORIENTATION_TOLERANCE).all():
        return _skip(files, Reason.MIXED, "different orientations")
    if np.abs(spacings / spacings[0] - 1).max() > ORIENTATION_TOLERANCE:
        return _skip(files, Reason.MIXED, "different pixel spacings")
    return None


def unfit(file: ScanFile) -> tuple[Reason, str] | None:
    """Why a file cannot be a slice of anything, whatever lies beside it; None where it can."""
    if file.frames != 1:
        moving = file.modality in ("US", "XA", "RF", "ES", "XC", "IVUS", "OPT", "GM")
        return Reason.CINE if moving else Reason.MULTI_FRAME, f"a file holds {file.frames} frames"
    if file.mosaic:
        return Reason.MOSAIC, "its header does not say how many slices it holds, how far apart, and in which direction"
    return None


def _has_geometry(file: ScanFile) -> bool:
    return None not in (file.position_mm, file.orientation, file.spacing_mm)


def _position(file: ScanFile) -> np.ndarray:
    assert file.position_mm is not None
    return np.array(file.position_mm)


def _skip(files: Sequence[ScanFile], reason: Reason, detail: str) -> Skipped:
    return Skipped(files[0].series, reason, detail, tuple(files))
