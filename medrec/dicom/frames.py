"""Files that hold several slices: where each lies, and what tells it from the others at its place.

Owns the reading of Enhanced multi-frame objects (DICOM PS3.3 C.7.6.16, functional groups) and of Siemens mosaics. A
file that holds several frames without saying where they lie yields no planes, and is refused later by name.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medrec.dicom import csa, header
from medrec.series import Plane, Traits, Triple

MAX_FRAMES = 100_000  # beyond any scanner's object: a header that lies
SIEMENS_CSA = (0x0029, 0x1010)
SIEMENS_TILES = (0x0019, 0x100A)


@dataclass(frozen=True, slots=True)
class Mosaic:
    """Slices of rows x columns pixels, laid side by side, row by row, `side` in a row."""

    count: int
    side: int
    rows: int
    columns: int

    def taken_apart(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The slices (count, rows, columns) of the mosaic (side * rows, side * columns)."""
        tiles = image.reshape(self.side, self.rows, self.side, self.columns).swapaxes(1, 2)
        return tiles.reshape(self.side**2, self.rows, self.columns)[: self.count]


def is_mosaic(ds: Dataset) -> bool:
    """Whether ImageType says so; then it is taken apart or refused, never read as one slice."""
    return "MOSAIC" in header.values(ds, "ImageType")


def mosaic_of(ds: Dataset) -> Mosaic | None:
    """How the tiles lie; None where the header does not say so, or says what cannot be."""
    told = csa.numbers(header.raw(ds, SIEMENS_CSA), "NumberOfImagesInMosaic")
    count = int(told[0]) if told else header.whole(ds, SIEMENS_TILES)
    rows, columns = header.whole(ds, "Rows"), header.whole(ds, "Columns")
    if count is None or not 0 < count <= MAX_FRAMES or rows is None or columns is None:
        return None
    side = math.ceil(math.sqrt(count))
    if rows % side or columns % side or rows < side or columns < side:
        return None
    return Mosaic(count, side, rows // side, columns // side)


def ultrasound_spacing(ds: Dataset) -> tuple[float, ...] | None:
    """(between rows, between columns) in mm, where ultrasound regions calibrate the image and agree; else None.

    DICOM PS3.3 C.8.5.5: of regions with a two-dimensional spatial format (1), both units must be centimetres (3).
    """
    found = set()
    for region in header.items(ds, "SequenceOfUltrasoundRegions"):
        if header.whole(region, "RegionSpatialFormat") != 1:
            continue
        units = [header.whole(region, f"PhysicalUnits{axis}Direction") for axis in "XY"]
        x, y = (header.number(region, f"PhysicalDelta{axis}") for axis in "XY")
        if units != [3, 3] or not x or not y:
            return None
        found.add((10 * abs(y), 10 * abs(x)))
    return found.pop() if len(found) == 1 else None


def traits_of(ds: Dataset, moment: str = "") -> Traits:
    """What tells a single-frame image from others at its place; `moment` stands for its acquisition time."""
    return Traits(
        image_type=header.codes(ds, "ImageType"),
        acquisition=header.whole(ds, "AcquisitionNumber"),
        echo_ms=header.number(ds, "EchoTime"),
        diffusion=_diffusion(ds),
        temporal=header.whole(ds, "TemporalPositionIdentifier"),
        trigger_ms=header.number(ds, "TriggerTime"),
        moment=moment,
    )


def planes_of(ds: Dataset, traits: Traits) -> tuple[Plane, ...]:
    """The slices of a file that holds several, in the order of its frames; () for any other file."""
    if is_mosaic(ds):
        return _tiles(ds, traits)
    count = header.whole(ds, "NumberOfFrames") or 1
    groups = list(header.items(ds, "PerFrameFunctionalGroupsSequence"))
    if not groups or len(groups) != count or count > MAX_FRAMES:
        return ()
    shared = header.item(ds, "SharedFunctionalGroupsSequence")
    skip = _place_dimensions(ds)
    return tuple(_frame(ds, shared, group, traits, skip) for group in groups)


def _tiles(ds: Dataset, traits: Traits) -> tuple[Plane, ...]:
    """A mosaic's slices: its position is the corner of the large image, around the same centre as each slice."""
    mosaic = mosaic_of(ds)
    spacing, orientation = header.numbers(ds, "PixelSpacing", 2), header.numbers(ds, "ImageOrientationPatient", 6)
    corner, distance = header.numbers(ds, "ImagePositionPatient", 3), header.number(ds, "SpacingBetweenSlices")
    normal = csa.numbers(header.raw(ds, SIEMENS_CSA), "SliceNormalVector")
    if mosaic is None or spacing is None or orientation is None or corner is None or not distance or len(normal) != 3:
        return ()
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    if abs(abs(float(np.dot(np.cross(row, column), normal))) - 1) > 1e-2:
        return ()  # the two headers contradict each other
    across = row * spacing[1] * mosaic.columns + column * spacing[0] * mosaic.rows
    first = np.array(corner) + across * (mosaic.side - 1) / 2
    step = np.array(normal) * abs(distance)
    return tuple(
        Plane(_triple(first + k * step), orientation, (spacing[0], spacing[1]), abs(distance), traits)
        for k in range(mosaic.count)
    )


def _frame(ds: Dataset, shared: Dataset, own: Dataset, traits: Traits, skip: frozenset[int]) -> Plane:
    def group(name: str) -> Dataset:
        """PS3.3 C.7.6.16.1: a functional group stands in the frame's item, or in the one that all frames share."""
        return header.item(own, name) if name in own else header.item(shared, name)

    measures, content = group("PixelMeasuresSequence"), group("FrameContentSequence")
    spacing = header.numbers(measures, "PixelSpacing", 2)
    position = header.numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3)
    kinds = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
    kind = next((codes for name in kinds if (codes := header.codes(group(name), "FrameType"))), ())
    index = header.values(content, "DimensionIndexValues")
    trigger = header.number(group("CardiacSynchronizationSequence"), "NominalCardiacTriggerDelayTime")
    return Plane(
        position_mm=None if position is None else _triple(position),
        orientation=header.numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        spacing_mm=None if spacing is None else (spacing[0], spacing[1]),
        thickness_mm=header.number(measures, "SliceThickness"),
        traits=replace(
            traits,
            image_type=kind or traits.image_type,
            acquisition=header.whole(content, "FrameAcquisitionNumber"),
            echo_ms=header.number(group("MREchoSequence"), "EffectiveEchoTime"),
            diffusion=_enhanced_diffusion(group("MRDiffusionSequence")),
            temporal=header.whole(content, "TemporalPositionIndex"),
            trigger_ms=trigger,
            dimensions=tuple(v for n, v in enumerate(index) if n not in skip),
        ),
    )


def _place_dimensions(ds: Dataset) -> frozenset[int]:
    """Which dimension indices count places and not contrasts: position in stack, position in the patient."""
    places = {0x00209057, 0x00200032, 0x00209111, 0x00209113}
    return frozenset(
        n
        for n, item in enumerate(header.items(ds, "DimensionIndexSequence"))
        if _tag(item, "DimensionIndexPointer") in places or _tag(item, "FunctionalGroupPointer") in places
    )


def _tag(ds: Dataset, name: str) -> int | None:
    try:
        return int(ds.get(name))
    except Exception:
        return None


def _enhanced_diffusion(group: Dataset) -> tuple[float, ...]:
    b = header.number(group, "DiffusionBValue")
    direction = header.numbers(
        header.item(group, "DiffusionGradientDirectionSequence"), "DiffusionGradientOrientation", 3
    )
    return (() if b is None else (b,)) + (direction or ())


# Where makers keep b-value and gradient: the standard's, Siemens', GE's, Philips' and United Imaging's places.
B_VALUES: tuple[header.Key, ...] = (
    "DiffusionBValue", (0x0019, 0x100C), (0x0043, 0x1039), (0x2001, 0x1003), (0x0065, 0x1009),
)  # fmt: skip
GRADIENTS: tuple[header.Key, ...] = ("DiffusionGradientOrientation", (0x0019, 0x100E), (0x0065, 0x1037))
SPLIT_GRADIENTS: tuple[tuple[header.Key, ...], ...] = (
    ((0x0019, 0x10BB), (0x0019, 0x10BC), (0x0019, 0x10BD)),
    ((0x2005, 0x10B0), (0x2005, 0x10B1), (0x2005, 0x10B2)),
)


def _diffusion(ds: Dataset) -> tuple[float, ...]:
    """(b,), (b, x, y, z) or () of a single-frame image, from wherever its maker keeps it."""
    found: tuple[float, ...] = ()
    for key in B_VALUES:
        first = header.values(ds, key)[:1]
        try:
            found = (float(first[0]),) if first else ()
        except ValueError:
            continue
        if found:
            break
    for key in GRADIENTS:
        direction = header.numbers(ds, key, 3)
        if direction is not None:
            return found + direction
    for keys in SPLIT_GRADIENTS:
        parts = [header.number(ds, key) for key in keys]
        if None not in parts:
            return found + tuple(p for p in parts if p is not None)
    return found


def _triple(values: Any) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z
