"""The one room that sees a name: DICOM headers, pixels and pseudonyms.

Owns `Pseudonyms` and `Archive`. What leaves is digests, ordinals, keyed pseudonyms, numbers, allow-listed words and
the names of card patterns that a header's free text fits. Refuses files that are not whole DICOM images, each with a
named reason. Invariants: no path, no UID, no free text and no text of pydicom's (which quotes values) gets out; each
file's bytes are read from one place and checked against their digest when they are read again.
"""

import hashlib
import hmac
import io
import logging
import math
import os
import re
import secrets
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import config as pydicom_config
from pydicom.pixels import apply_modality_lut, pixel_array
from pydicom.uid import UID, JPEGLSNearLossless

from medrec.errors import ConfigError, WorldError
from medrec.prediction import InputRule
from medrec.series import Reason, Refused, ScanFile, Series, Skipped
from medrec.volume import Volume, affine_of

# pydicom's warnings and log lines quote header values: names could reach a console. Its loggers end here.
_pydicom_log = logging.getLogger("pydicom")
_pydicom_log.handlers = [logging.NullHandler()]
_pydicom_log.propagate = False
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

MAX_FILE_BYTES = 2 * 2**30  # the largest that native pixel data in one element can sensibly be
MAX_SIDE_PX = 16384
KEY_BYTES = 32
PSEUDONYM_DIGITS = 20  # 80 bits: no two of a hospital's UIDs meet by chance

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
_WORD = re.compile("|".join(WORDS))
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # DICOM PS3.5: the characters of a CS value


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Keyed names for identifiers: the same for the same key, and telling nothing without it."""

    key: bytes

    def of(self, kind: str, *values: str) -> str:
        """Hexadecimal pseudonym of an identifier; `kind` keeps equal values of different kinds apart."""
        message = "\0".join((kind, *values)).encode("utf-8", "surrogatepass")
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:PSEUDONYM_DIGITS]

    @classmethod
    def load(cls, path: Path) -> "Pseudonyms":
        """Read the key, or make one (0600) where there is none; two that start at once end with one key.

        Raises WorldError when the key can be read by others or is damaged: a new one would orphan every report.
        """
        if not path.exists():
            draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)  # fails where another was first: then theirs is the key
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise WorldError(f"the pseudonym key {path.name} in the home can be read by others: chmod 600 it")
        key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise WorldError(f"the pseudonym key {path.name} must hold {KEY_BYTES} bytes, has {len(key)}: restore it")
        return cls(key)


@dataclass(frozen=True, slots=True)
class Index:
    """Where each file of a folder went; `seen` is their number, and the three groups hold each of them once.

    `unused` are digests of whole files that hold nothing to analyse: objects without an image, and identical copies.
    """

    files: tuple[ScanFile, ...]
    refused: tuple[Refused, ...]
    unused: tuple[str, ...]

    @property
    def seen(self) -> int:
        """Number of files in the folder."""
        return len(self.files) + len(self.refused) + len(self.unused)


class Archive:
    """A folder of scans: the only object that knows paths."""

    def __init__(self, folder: Path, pseudonyms: Pseudonyms, rules: Mapping[str, InputRule]) -> None:
        """`rules` are the inputs that cards ask for, by the name under which `ScanFile.matches` lists them."""
        if not folder.is_dir():
            raise ConfigError([f"--input: {folder} is not a folder"])
        self._folder = folder
        self._pseudonyms = pseudonyms
        self._rules = {name: (_compiled(rule.match), _compiled(rule.exclude)) for name, rule in rules.items()}
        self._paths: dict[int, Path] = {}

    def count(self) -> int:
        """Number of files that `scan` will go through."""
        return sum(1 for _ in _walk(self._folder))

    def scan(self) -> Iterator[ScanFile | Refused | str]:
        """Read each file of the folder once, in the order of its path; a `str` is the digest of an unused file.

        Raises WorldError when a folder cannot be listed: files would be missed without a word.
        """
        seen: set[str] = set()
        for ordinal, path in enumerate(_walk(self._folder)):
            self._paths[ordinal] = path
            found = self._file(path, ordinal)
            digest = found if isinstance(found, str) else found.sha256
            if digest in seen and isinstance(found, ScanFile):
                yield digest
            else:
                seen.add(digest)
                yield found

    def index(self) -> Index:
        """All that `scan` yields, sorted into its three groups."""
        found = tuple(self.scan())
        return Index(
            tuple(f for f in found if isinstance(f, ScanFile)),
            tuple(f for f in found if isinstance(f, Refused)),
            tuple(f for f in found if isinstance(f, str)),
        )

    def load(self, series: Series) -> tuple[Volume, tuple[Refused, ...]] | Skipped:
        """Decode a series; broken copies of slices that have a whole one are refused and listed beside the volume.

        Voxels are rescaled by DICOM's rule (PS3.3 C.11.1.1.2: stored value x slope + intercept), slice by slice.
        Raises WorldError when a file has changed since it was indexed.
        """
        refused: list[Refused] = []
        stored, values = [], []
        for number, copies in enumerate(series.slices, 1):
            decoded: list[tuple[npt.NDArray[Any], npt.NDArray[np.float32]]] = []
            for file in copies:
                try:
                    decoded.append(self._pixels(file))
                except WorldError:
                    raise
                except Exception:  # decoders raise anything; the text may quote a header, so it is dropped
                    refused.append(Refused(file.sha256, file.ordinal, Reason.BAD_PIXELS, f"slice {number}"))
            if not decoded:
                detail = f"slice {number} of {len(series.slices)}"
                return Skipped(series.first.series, Reason.BAD_PIXELS, detail, series.files)
            if any(not np.array_equal(decoded[0][1], other[1]) for other in decoded[1:]):
                detail = f"slice {number} exists in versions with different pixels"
                return Skipped(series.first.series, Reason.CONFLICTING_COPIES, detail, series.files)
            stored.append(decoded[0][0])
            values.append(decoded[0][1])
        volume = Volume(
            voxels=np.ascontiguousarray(np.stack(values).transpose(2, 1, 0)),
            affine_ijk_to_lps=affine_of(series),
            unit="HU" if series.first.modality == "CT" else "scanner units",
            series=series.first.series,
            pixels_sha256=_pixel_digest(stored),
        )
        return volume, tuple(refused)

    def _file(self, path: Path, ordinal: int) -> ScanFile | Refused | str:
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                digest = _digest_of_large(path)
                return Refused(digest, ordinal, Reason.TOO_LARGE, f"more than {MAX_FILE_BYTES // 2**30} GiB")
            data = path.read_bytes()
        except OSError as error:
            return Refused("", ordinal, Reason.UNREADABLE, os.strerror(error.errno or 0))
        digest = hashlib.sha256(data).hexdigest()
        try:
            return self._parse(data, digest, ordinal)
        except Exception as error:  # a crafted file may raise anything; its text may hold a name
            return Refused(digest, ordinal, Reason.BROKEN, f"its header cannot be read ({type(error).__name__})")

    def _parse(self, data: bytes, digest: str, ordinal: int) -> ScanFile | Refused | str:
        def refuse(reason: Reason, detail: str = "") -> Refused:
            return Refused(digest, ordinal, reason, detail)

        header = _header(data)
        if header is None:
            return refuse(Reason.NOT_DICOM)
        modality = _code(header, "Modality")
        if header.get("SOPClassUID") == "1.2.840.10008.1.3.10" or "DirectoryRecordSequence" in header:
            return digest  # DICOMDIR: an index of files that are here anyway
        if modality in OBJECTS:
            return digest
        if modality not in IMAGES:
            return refuse(Reason.UNKNOWN_MODALITY, "Modality is absent or not one that DICOM defines for images")
        uids = {name: _text(header, name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
        absent = [name for name, uid in uids.items() if not uid]
        if absent:
            return refuse(Reason.MISSING_UID, ", ".join(absent))
        problem = _pixel_problem(header)
        if problem is not None:
            return refuse(*problem)
        of = self._pseudonyms.of
        study = of("study", uids["StudyInstanceUID"])
        patient_id = _text(header, "PatientID")
        frame = _text(header, "FrameOfReferenceUID")
        syntax = header.file_meta.get("TransferSyntaxUID", UID("1.2.840.10008.1.2"))
        return ScanFile(
            sha256=digest,
            ordinal=ordinal,
            study=study,
            series=of("series", uids["SeriesInstanceUID"]),
            instance=of("instance", uids["SOPInstanceUID"]),
            # Without an id nobody is the same person as anybody: each study stands for its own patient.
            patient=of("patient", _text(header, "IssuerOfPatientID"), patient_id)
            if patient_id
            else of("nobody", study),
            frame_of_reference=of("frame", frame) if frame else None,
            modality=modality,
            series_number=_whole(header, "SeriesNumber"),
            rows=int(header.Rows),
            columns=int(header.Columns),
            position_mm=_numbers(header, "ImagePositionPatient", 3),  # type: ignore[arg-type]
            orientation=_numbers(header, "ImageOrientationPatient", 6),
            spacing_mm=_numbers(header, "PixelSpacing", 2),  # type: ignore[arg-type]
            image_type=tuple(v for v in _values(header, "ImageType") if _CODE.fullmatch(v)),
            lossy=_text(header, "LossyImageCompression") == "01" or _is_lossy(syntax),
            transfer_syntax=syntax.name if syntax.is_transfer_syntax else "unknown",
            matches=frozenset(name for name, rule in self._rules.items() if _fits(header, *rule)),
            words=tuple(dict.fromkeys(_WORD.findall(_text(header, "SeriesDescription").upper()))),
            frames=_whole(header, "NumberOfFrames") or 1,
            photometric=_code(header, "PhotometricInterpretation") or "absent",
        )

    def _pixels(self, file: ScanFile) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """(stored values, rescaled values), both (rows, columns)."""
        try:
            data = self._paths[file.ordinal].read_bytes()
        except OSError as error:
            raise WorldError(f"file {file.ordinal} of the input is gone: {os.strerror(error.errno or 0)}") from None
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise WorldError(f"file {file.ordinal} of the input changed while it was being analysed")
        header = _header(data)
        if header is None:
            raise ValueError("not DICOM")
        stored = pixel_array(header)
        if stored.shape != (file.rows, file.columns):
            raise ValueError("the pixels have another size than the header says")
        values = np.asarray(apply_modality_lut(stored, header), np.float32)
        if not np.isfinite(values).all():
            raise ValueError("the pixels hold values that are not numbers")
        return stored, values


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise WorldError(f"a folder below the input cannot be listed: {os.strerror(error.errno or 0)}")

    for root, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_symlink() and not path.exists():
                yield path  # a link to nothing is refused as unreadable, not overlooked
            elif path.is_file():
                yield path


def _digest_of_large(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(data: bytes) -> pydicom.FileDataset | None:
    """Parse a whole file; None when it is not DICOM. A file without preamble must name its class and study."""
    if data[128:132] == b"DICM":
        return pydicom.dcmread(io.BytesIO(data))
    try:
        header = pydicom.dcmread(io.BytesIO(data), force=True)
        known = all(_text(header, name) for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"))
    except Exception:
        return None
    return header if known else None


def _pixel_problem(header: pydicom.FileDataset) -> tuple[Reason, str] | None:
    """What keeps the pixels from being read, as far as it shows without decoding them."""
    element = next((header[k] for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if k in header), None)
    if element is None or not element.value:
        return Reason.NO_PIXELS, "the file holds no pixel data, or ends before it"
    sizes = [_whole(header, name) for name in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel")]
    if any(s is None or s <= 0 for s in sizes):
        return Reason.BROKEN, "Rows, Columns, BitsAllocated or SamplesPerPixel is absent or not positive"
    rows, columns, bits, samples = (int(s or 0) for s in sizes)
    if max(rows, columns) > MAX_SIDE_PX:
        return Reason.TOO_LARGE, f"{columns} x {rows} pixels; at most {MAX_SIDE_PX} on a side are read"
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    if syntax is not None and syntax.is_transfer_syntax and syntax.is_encapsulated:
        return None
    frames = _whole(header, "NumberOfFrames") or 1
    expected = math.ceil(rows * columns * samples * frames * bits / 8)
    if _code(header, "PhotometricInterpretation") == "YBR_FULL_422":
        expected = expected * 2 // 3  # PS3.3 C.7.6.3.1.2: two pixels share their colour
    if len(element.value) < expected:
        return Reason.TRUNCATED, f"{len(element.value)} of {expected} bytes of pixels are there"
    return None


def _compiled(patterns: Mapping[Any, str]) -> dict[str, re.Pattern[str]]:
    return {field: re.compile(pattern) for field, pattern in patterns.items()}


def _fits(header: pydicom.FileDataset, match: dict[str, re.Pattern[str]], exclude: dict[str, re.Pattern[str]]) -> bool:
    return all(p.search(_text(header, field)) for field, p in match.items()) and not any(
        p.search(_text(header, field)) for field, p in exclude.items()
    )


def _values(header: pydicom.FileDataset, keyword: str) -> tuple[str, ...]:
    """The values of an element as text, () when it is absent, empty or cannot be read."""
    try:
        value = header.get(keyword)
    except Exception:
        return ()
    if value is None or value == "":
        return ()
    many = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else (value,)
    return tuple(str(v).strip(" \0") for v in many)


def _text(header: pydicom.FileDataset, keyword: str) -> str:
    return "\\".join(_values(header, keyword))


def _code(header: pydicom.FileDataset, keyword: str) -> str:
    """A CS value, or "" where there is none or it is not well-formed."""
    text = _text(header, keyword)
    return text if _CODE.fullmatch(text) else ""


def _numbers(header: pydicom.FileDataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers, or None: nothing is filled in."""
    try:
        numbers = tuple(float(v) for v in _values(header, keyword))
    except ValueError:
        return None
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else None


def _whole(header: pydicom.FileDataset, keyword: str) -> int | None:
    numbers = _numbers(header, keyword, 1)
    return int(numbers[0]) if numbers is not None and numbers[0] == int(numbers[0]) else None


def _is_lossy(syntax: UID) -> bool:
    lossy = (JPEGLSNearLossless, "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
    return syntax in lossy


def _pixel_digest(slices: list[npt.NDArray[Any]]) -> str:
    """sha256 of stored values (little-endian int32) in slice order, with their shape: headers play no part."""
    digest = hashlib.sha256(f"{len(slices)} {slices[0].shape}".encode())
    for pixels in slices:
        digest.update(np.ascontiguousarray(pixels, "<i4" if pixels.dtype.kind in "iu" else "<f8").tobytes())
    return digest.hexdigest()
