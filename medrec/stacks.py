"""One series' files taken apart into stacks: one volume each, or the reason why not.

Owns `stacks`. A series may hold several planes (a localizer), several volumes at one place (echoes, b-values, phases),
a stray image or the same image twice. Invariants: every file that comes in is in at least one result; nothing is
guessed: volumes at one place are told apart by what the headers say, or refused.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from medrec.series import (
    ORIENTATION_TOLERANCE,
    SLICE_GAP_MM,
    Reason,
    ScanFile,
    Series,
    Skipped,
    arrange,
    once,
    unfit,
)

# What volumes at one place are told apart by, in the order of trust, with words for people.
TELLING = {
    "echo_ms": "echo time",
    "image_type": "image type",
    "diffusion": "diffusion weighting",
    "temporal": "temporal position",
    "trigger_ms": "trigger time",
    "dimensions": "dimension index",
    "acquisition": "acquisition",
    "moment": "acquisition time",
    "holder": "file",
}
# Modalities whose images have, by the standard, no plane in the patient: ultrasound, projections, photographs.
PLANAR = frozenset("BI CR DG DX ES GM IO MG OP OT PX RF RG SM TG US XA XC".split())
MAX_TOGETHER = 3  # traits that may be needed at once: diffusion, image type and repetition


def stacks(files: Sequence[ScanFile]) -> tuple[Series | Skipped, ...]:
    """The volumes of one series, in the order of their size and first slice, and what is none.

    A file that holds several slices may be in several results. Series of one slice are among them where the file
    says how thick it is.
    """
    files = sorted(files, key=lambda f: (f.sha256, f.ordinal, f.member))
    slices = [s for f in files for s in f.expanded()]
    results: list[Skipped] = []
    whole = {s.instance for s in slices if _placed(s)}
    fit: list[ScanFile] = []
    unusable: dict[tuple[Reason, str], list[ScanFile]] = defaultdict(list)
    for s in slices:
        problem = _problem(s) if not (s.instance in whole and not _placed(s)) else None
        if problem is None:
            fit.append(s)
        else:
            unusable[problem].append(s)
    for (reason, detail), bad in unusable.items():
        results.append(Skipped(bad[0].series, reason, f"{detail} ({_count(bad)})", once(bad)))
    fit, twice = _without_duplicates(fit)
    if twice:
        detail = f"{_count(twice)} repeat the pixels of another image at the same place"
        results.append(Skipped(twice[0].series, Reason.DUPLICATE, detail, once(twice)))
    found = [part for grid in _grids(fit) for part in _volumes(grid)]
    promised = max((f.promised_images or 0 for f in files), default=0)
    missing = promised - len({s.instance for s in slices}) if promised else 0
    volumes = sorted((f for f in found if isinstance(f, Series)), key=_order)
    alone = len(volumes) == 1
    results += [f for f in found if isinstance(f, Skipped)]
    return (
        *(_promised(v, missing if alone else 0) for v in volumes),
        *sorted(results, key=lambda r: r.files[0].sha256),
    )


def _problem(file: ScanFile) -> tuple[Reason, str] | None:
    problem = unfit(file)
    if problem is not None:
        return problem
    if file.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return Reason.NOT_GREYSCALE, f"PhotometricInterpretation is {file.photometric}"
    if file.modality in PLANAR and file.position_mm is None and file.orientation is None:
        return Reason.PLANAR, "its scale is known" if file.spacing_mm else "without scale: sizes are in pixels"
    for name, value, reason in (
        ("PixelSpacing", file.spacing_mm, Reason.MISSING_SPACING),
        ("ImageOrientationPatient", file.orientation, Reason.MISSING_ORIENTATION),
        ("ImagePositionPatient", file.position_mm, Reason.MISSING_POSITION),
    ):
        if value is None:
            return reason, f"{name} is absent or empty"
    return None


def _without_duplicates(files: Sequence[ScanFile]) -> tuple[list[ScanFile], list[ScanFile]]:
    """(kept, dropped): the same pixels at the same place with the same traits, under another SOP Instance UID."""
    first: dict[object, str] = {}
    kept: list[ScanFile] = []
    dropped: list[ScanFile] = []
    for file in files:
        place = (file.series_number, file.frame, file.position_mm, file.orientation, file.spacing_mm)
        key = (file.content, place, replace(file.traits, holder=""))
        same = file.content and first.setdefault(key, file.instance) != file.instance
        (dropped if same else kept).append(file)
    return kept, dropped


def _grids(files: Iterable[ScanFile]) -> Iterator[list[ScanFile]]:
    """Slices that may form one stack: the same size, spacing, orientation, frame of reference and kind."""
    clusters: dict[object, list[list[ScanFile]]] = defaultdict(list)
    bare: list[ScanFile] = []
    for file in files:
        if not _placed(file):
            bare.append(file)
            continue
        localizer = "LOCALIZER" in file.image_type
        kind = (file.modality, file.photometric, localizer, file.series_number)
        key = (*kind, file.rows, file.columns, file.frame_of_reference)
        alike = next((c for c in clusters[key] if _same_grid(c[0], file)), None)
        if alike is None:
            clusters[key].append([file])
        else:
            alike.append(file)
    for cluster in (c for many in clusters.values() for c in many):
        instances = {f.instance for f in cluster}
        yield cluster + [f for f in bare if f.instance in instances]


def _same_grid(one: ScanFile, other: ScanFile) -> bool:
    a, b = np.array([one.orientation, other.orientation])
    c, d = np.array([one.spacing_mm, other.spacing_mm])
    return bool(np.abs(a - b).max() <= ORIENTATION_TOLERANCE and np.abs(c - d).max() <= ORIENTATION_TOLERANCE * c.max())


def _volumes(files: list[ScanFile]) -> list[Series | Skipped]:
    if len({f.instance for f in files}) == 1:
        return [_single(files)]
    together = _one(files)
    if isinstance(together, Series) or together.reason is not Reason.SAME_POSITION:
        return [together]
    for names in _by_trust():
        parts = _parts(files, names)
        if parts is not None:
            return [_named(_one(part), names, n, len(parts)) for n, part in enumerate(parts, 1)]
    most = max(Counter(_places(files).values()).values())
    detail = f"{most} images lie at one position, and nothing in their headers tells them apart consistently"
    return [Skipped(files[0].series, Reason.SAME_POSITION, detail, once(files))]


def _one(files: list[ScanFile]) -> Series | Skipped:
    """`arrange`, for slices that are all MONOCHROME1 too: their values are what they are, only shown inverted."""
    if len({f.instance for f in files}) == 1:
        return _single(files)
    inverted = files[0].photometric == "MONOCHROME1"
    result = arrange([replace(f, photometric="MONOCHROME2") for f in files] if inverted else files)
    if isinstance(result, Skipped):
        return replace(result, files=once(files))
    if inverted:
        shown = tuple(tuple(replace(f, photometric="MONOCHROME1") for f in copies) for copies in result.slices)
        return replace(result, slices=shown)
    return result


def _single(files: list[ScanFile]) -> Series | Skipped:
    """One slice, as thick as its file says (SliceThickness, PS3.3 C.7.6.2.1)."""
    double = arrange([*files, _moved(files[0])])  # every check of `arrange`, with a made-up neighbour
    if isinstance(double, Skipped):
        return replace(double, files=once(files))
    thickness = files[0].thickness_mm
    if not thickness or thickness <= 0:
        return Skipped(
            files[0].series, Reason.TOO_FEW_SLICES, "one slice, and no SliceThickness says how thick it is", once(files)
        )
    step = np.array(double.direction_mm) / np.linalg.norm(double.direction_mm) * thickness
    return Series(double.slices[:1], (float(step[0]), float(step[1]), float(step[2])))


def _moved(file: ScanFile) -> ScanFile:
    assert file.position_mm is not None
    assert file.orientation is not None
    normal = np.cross(file.orientation[:3], file.orientation[3:])
    x, y, z = (float(v) for v in np.array(file.position_mm) + 10 * normal)
    return replace(file, position_mm=(x, y, z), instance=f"{file.instance}+", photometric="MONOCHROME2")


def _by_trust() -> Iterator[tuple[str, ...]]:
    for count in range(1, MAX_TOGETHER + 1):
        yield from combinations(TELLING, count)


def _parts(files: list[ScanFile], names: tuple[str, ...]) -> list[list[ScanFile]] | None:
    """Files by the values of these traits; None unless each part has each place once and no part is superfluous."""
    groups: dict[object, list[ScanFile]] = defaultdict(list)
    for file in files:
        groups[tuple(getattr(file.traits, name) for name in names)].append(file)
    places = _places(files)
    most = max(Counter(places.values()).values())
    if len(groups) != most:  # fewer cannot be enough; more would tear volumes apart
        return None
    for group in groups.values():
        if len({places[f.instance] for f in group}) != len({f.instance for f in group}):
            return None
    return [groups[key] for key in sorted(groups, key=lambda k: (str(len(str(k))), str(k)))]


def _places(files: Sequence[ScanFile]) -> dict[str, int]:
    """The number of the place along the normal at which each instance lies."""
    placed = [f for f in files if _placed(f)]
    normal = np.cross(placed[0].orientation[:3], placed[0].orientation[3:])  # type: ignore[index]
    along = {f.instance: float(np.dot(f.position_mm, normal)) for f in placed}  # type: ignore[arg-type]
    numbers: dict[str, int] = {}
    number, last = -1, -np.inf
    for instance, at in sorted(along.items(), key=lambda item: (item[1], item[0])):
        number += at - last > SLICE_GAP_MM
        numbers[instance] = number
        last = at
    return numbers


def _named(result: Series | Skipped, names: tuple[str, ...], number: int, count: int) -> Series | Skipped:
    if isinstance(result, Skipped):
        return result
    return replace(result, part=f"volume {number} of {count}, by {' and '.join(TELLING[n] for n in names)}")


def _promised(series: Series, missing: int) -> Series:
    slices = len(series.slices)
    told = max((f.promised_slices or 0 for copies in series.slices for f in copies), default=0)
    promised = max(told, slices + missing if missing > 0 else 0)
    return replace(series, promised_slices=promised or None)


def _order(series: Series) -> tuple[int, str, str]:
    return (-len(series.slices), series.part, series.first.sha256)


def _placed(file: ScanFile) -> bool:
    return None not in (file.position_mm, file.orientation, file.spacing_mm)


def _count(files: Sequence[ScanFile]) -> str:
    return "1 image" if len(files) == 1 else f"{len(files)} images"
