"""From the bytes of one file to a `ScanFile`, or to the reason for which it is none.

Only what stands before the pixels is parsed: the beginning of a file is mostly enough.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pydicom
import xxhash

from medrec.dicom import decoders, frames, header, pixels
from medrec.dicom.pixels import Native
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.dicom.visits import visit_of
from medrec.series import Reason, Refused, ScanFile, Timing

# Image modalities of DICOM PS3.3 C.7.3.1.1.1.
IMAGES = frozenset(
    "BI CR CT DG DX ES GM IO IVOCT IVUS LS MG MR NM OP OPT OT PT PX RF RG RTIMAGE SM TG US XA XC".split()
)
# Objects without an image of a patient's own: readable, and nothing that a model asks for.
OBJECTS = frozenset(
    "ANN AU DOC ECG EPS FID HC HD IOL KER KO LEN M3D OAM PLAN PR REG RESP RTDOSE RTPLAN RTRECORD RTSTRUCT SEG SMR SR "
    "STAIN SRF TEXTUREMAP VA".split()
)
# Words that say nothing of a person; longer ones first, so that MPRAGE is not read as something shorter.
WORDS = (
    "LOCALIZER MPRAGE BRAVO FLAIR SPACE PERF POST STIR TRACE ADC AXIAL SAG COR AX DTI DWI FSE PRE REG SWI TOF TSE CUBE "
    "GD PD T1 T2 2D 3D".split()
)
# DICOM PS3.3 C.7.6.3.1.2; anything else could be a name that somebody typed.
PHOTOMETRIC = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "HSV", "ARGB", "CMYK", "YBR_FULL", "YBR_FULL_422"}
    | {"YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "XYB"}
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and its multi-frame kinds below it (PS3.4 B.5)
# What rescales stored values, beside the pixels themselves.
SCALE = ("RescaleSlope", "RescaleIntercept", "PixelRepresentation", "BitsStored", "BitsAllocated")
# Where packed files of other kinds than zip have their signature: gzip, bzip2, xz, 7-zip, RAR, tar.
PACKED = ((0, b"\x1f\x8b"), (0, b"BZh"), (0, b"\xfd7zXZ"), (0, b"7z\xbc\xaf\x27\x1c"), (0, b"Rar!"), (257, b"ustar"))
# Machines and people write into these images.
TEXT_MODALITIES = frozenset("BI CR DG DOC DX ES GM IO IVUS OP OT PX RF RG SM TG US XA XC".split())
MAX_SERIES_NUMBER = 999_999  # a longer one could be somebody's date of birth or id
# Makers of scanners, by the first of these words in Manufacturer: what else stands there could be anything.
MAKERS = (
    "SIEMENS PHILIPS TOSHIBA CANON HITACHI FUJIFILM UNITED SAMSUNG ESAOTE SHIMADZU HOLOGIC MINDRAY NEUSOFT SUPERSONIC "
    "BRUKER KODAK AGFA GE"
).split()
_MAKER = re.compile("|".join(rf"\b{maker}" if maker != "GE" else r"\bGE\b" for maker in MAKERS))
_WORD = re.compile("|".join(WORDS))
# How many slices one volume has, or images one acquisition, where headers promise it: the standard's, GE's, Philips'.
# What tells one scanner from another of its kind.
DEVICE = ("Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "StationName")
PROMISED_SLICES: tuple[header.Key, ...] = ("NumberOfSlices", (0x0021, 0x104F), (0x2001, 0x1018))

if TYPE_CHECKING:
    from medrec.prediction import InputRule

Compiled = tuple[dict[str, re.Pattern[str]], dict[str, re.Pattern[str]]]


def compiled(rule: "InputRule") -> Compiled:
    """The patterns of a rule: those that must fit, those that must not."""
    match, exclude = rule.match, rule.exclude
    return {k: re.compile(p) for k, p in match.items()}, {k: re.compile(p) for k, p in exclude.items()}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A file that holds an image, where its pixels lie, and what rescales them, as text, for `content_of`."""

    file: ScanFile
    place: header.Place
    native: Native | None
    scale: str


class Incomplete(StrEnum):
    """What a beginning of a file that tells too little is answered with."""

    MORE = "the whole file is needed"


def read(
    data: bytes, size: int, digest: str, ordinal: int, pseudonyms: Pseudonyms, rules: Mapping[str, Compiled]
) -> Parsed | Refused | str | Incomplete:
    """One file of `size` bytes, of which `data` may be the beginning only.

    A `str` is the digest of a whole file that holds nothing to analyse.
    """

    def refuse(reason: Reason, detail: str = "") -> Refused:
        return Refused(digest, ordinal, reason, detail)

    try:
        found = header.parse_head(data)
    except header.TooLong:
        return refuse(Reason.TOO_LARGE, f"deflated; more than {header.MAX_INFLATED_BYTES // 2**30} GiB when expanded")
    except Exception:
        if len(data) < size:
            return Incomplete.MORE
        raise
    if (found is None or found[1] is None) and len(data) < size:
        return Incomplete.MORE
    if found is None:
        packed = any(data.startswith(magic, at) for at, magic in PACKED)
        return refuse(Reason.PACKED, "unpack it first") if packed else refuse(Reason.NOT_DICOM)
    ds, place = found
    modality = header.code(ds, "Modality")
    if ds.get("SOPClassUID") == "1.2.840.10008.1.3.10" or "DirectoryRecordSequence" in ds:
        return digest  # DICOMDIR: an index of files that are here anyway
    if modality in OBJECTS:
        return digest
    if modality not in IMAGES:
        return refuse(Reason.UNKNOWN_MODALITY, "Modality is absent or not one that DICOM defines for images")
    uids = {name: header.text(ds, name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
    absent = [name for name, uid in uids.items() if not uid]
    if absent:
        return refuse(Reason.MISSING_UID, ", ".join(absent))
    problem = pixels.problem(ds, place, size)
    if problem is not None or place is None:
        return refuse(*(problem or (Reason.NO_PIXELS, "")))
    file = _scan_file(ds, uids, modality, digest, ordinal, pseudonyms, rules)
    scale = " ".join(header.text(ds, name) for name in SCALE)
    return Parsed(file, place, pixels.native(ds, place), scale)


def content_of(pixel_bytes: memoryview, scale: str) -> str:
    """Digest of the pixel data and what rescales it: two files that agree on it hold the same image."""
    digest = xxhash.xxh3_128(pixel_bytes)
    digest.update(scale.encode())
    return str(digest.hexdigest())


def _scan_file(
    ds: pydicom.FileDataset,
    uids: Mapping[str, str],
    modality: str,
    digest: str,
    ordinal: int,
    pseudonyms: Pseudonyms,
    rules: Mapping[str, Compiled],
) -> ScanFile:
    of = pseudonyms.of
    study = of("study", uids["StudyInstanceUID"])
    patient_id, frame = header.text(ds, "PatientID"), header.text(ds, "FrameOfReferenceUID")
    moment = header.text(ds, "AcquisitionDateTime") or header.text(ds, "AcquisitionTime")
    traits = frames.traits_of(ds, of("moment", moment) if moment else "")
    planes = frames.planes_of(ds, traits)
    position = header.numbers(ds, "ImagePositionPatient", 3)
    spacing = header.numbers(ds, "PixelSpacing", 2) or frames.ultrasound_spacing(ds)
    mosaic = frames.mosaic_of(ds) if frames.is_mosaic(ds) else None
    syntax = decoders.syntax_of(ds)
    photometric, number = header.code(ds, "PhotometricInterpretation"), header.whole(ds, "SeriesNumber")
    return ScanFile(
        sha256=digest,
        ordinal=ordinal,
        study=study,
        series=of("series", uids["SeriesInstanceUID"]),
        instance=of("instance", uids["SOPInstanceUID"]),
        # Without an id nobody is the same person as anybody: each study stands for its own patient.
        patient=of("patient", header.text(ds, "IssuerOfPatientID"), patient_id) if patient_id else of("nobody", study),
        frame_of_reference=of("frame", frame) if frame else None,
        modality=modality,
        series_number=number if number is not None and abs(number) <= MAX_SERIES_NUMBER else None,
        rows=mosaic.rows if mosaic else int(ds.Rows),
        columns=mosaic.columns if mosaic else int(ds.Columns),
        position_mm=position,  # type: ignore[arg-type]
        orientation=header.numbers(ds, "ImageOrientationPatient", 6),
        spacing_mm=spacing,  # type: ignore[arg-type]
        image_type=header.codes(ds, "ImageType"),
        lossy=header.text(ds, "LossyImageCompression") == "01" or syntax in decoders.LOSSY,
        transfer_syntax=syntax.name if syntax.is_transfer_syntax else "unknown",
        matches=frozenset(name for name, rule in rules.items() if _fits(ds, *rule)),
        words=tuple(dict.fromkeys(_WORD.findall(header.text(ds, "SeriesDescription").upper()))),
        frames=header.whole(ds, "NumberOfFrames") or 1,
        photometric=photometric if photometric in PHOTOMETRIC else "another" if photometric else "absent",
        mosaic=frames.is_mosaic(ds),
        thickness_mm=header.number(ds, "SliceThickness"),
        traits=traits,
        planes=planes,
        promised_images=header.whole(ds, "ImagesInAcquisition"),
        promised_slices=next((n for key in PROMISED_SLICES if (n := header.whole(ds, key))), None),
        timing=_timing(ds),
        screen_copy=header.text(ds, "SOPClassUID").startswith(SECONDARY_CAPTURE),
        may_hold_text=may_hold_text(ds),
        visit=visit_of(ds, pseudonyms),
        site=_keyed(of, "site", header.text(ds, "InstitutionName")),
        device=_keyed(of, "device", *(header.text(ds, name) for name in DEVICE)),
        scanner=_scanner(ds),
    )


def _keyed(of: Callable[..., str], kind: str, *values: str) -> str:
    """The pseudonym of what a header says, however it is written; "" where it says nothing."""
    plain = [" ".join(value.casefold().split()) for value in values]
    return of(kind, *plain) if any(plain) else ""


def _scanner(ds: pydicom.FileDataset) -> str:
    """Maker and field strength in words that say nothing of a person."""
    maker = _MAKER.search(header.text(ds, "Manufacturer").upper())
    tesla = header.number(ds, "MagneticFieldStrength")
    if tesla is not None and tesla > 100:  # some write gauss
        tesla /= 10_000
    strength = f"{tesla:.2g} T" if tesla is not None and 0 < tesla <= 100 else ""
    return " ".join(word for word in (maker.group() if maker else "", strength) if word)


def may_hold_text(ds: pydicom.Dataset) -> bool:
    """Whether the pixels may carry burned-in text: the object says so, or is of a kind that often does."""
    return (
        header.code(ds, "BurnedInAnnotation") == "YES"
        or header.code(ds, "Modality") in TEXT_MODALITIES
        or header.text(ds, "SOPClassUID").startswith(SECONDARY_CAPTURE)
    )


def _timing(ds: pydicom.FileDataset) -> Timing:
    groups = [header.item(ds, "SharedFunctionalGroupsSequence"), *header.items(ds, "PerFrameFunctionalGroupsSequence")]
    return Timing(
        echo_ms=header.number(ds, "EchoTime") or _grouped(groups, "MREchoSequence", "EffectiveEchoTime"),
        repetition_ms=header.number(ds, "RepetitionTime")
        or _grouped(groups, "MRTimingAndRelatedParametersSequence", "RepetitionTime"),
        inversion_ms=header.number(ds, "InversionTime") or _grouped(groups, "MRModifierSequence", "InversionTimes"),
        sequence=header.codes(ds, "ScanningSequence"),
    )


def _grouped(groups: list[Any], sequence: str, name: str) -> float | None:
    return next((v for g in groups[:2] if (v := header.number(header.item(g, sequence), name))), None)


def _fits(ds: pydicom.FileDataset, match: dict[str, re.Pattern[str]], exclude: dict[str, re.Pattern[str]]) -> bool:
    return all(p.search(header.text(ds, field)) for field, p in match.items()) and not any(
        p.search(header.text(ds, field)) for field, p in exclude.items()
    )
