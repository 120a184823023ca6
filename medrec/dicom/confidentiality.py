"""De-identified copies of DICOM files: the Basic Application Level Confidentiality Profile (DICOM PS3.15 Annex E).

What happens to each attribute is in Table E.1-1, taken as data from the package `dicom-anonymizer` (edition 2026c).
Stricter than the table: private attributes, attributes that no dictionary knows, every person's name, all long text,
overlays, curves and binary data that no pixels need go; so does an attribute of another VR than the dictionary's, and
any text that repeats one of the file's own names and numbers, wherever it stands; every UID that DICOM itself does not
define is replaced. What is no image goes from the pixel data: padding, and comments in codestreams. Pixels of objects
that may carry burned-in text are written only with `clean_pixels`; otherwise the file is withheld. Faces can be rebuilt
from scans of heads: nothing here removes them. Words of one's own in attributes that the table keeps (Manufacturer,
meanings of codes) stay, unless the file names them as somebody's.
"""

import csv
import hashlib
import hmac
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as table
from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, UID_dictionary

from medrec import __version__
from medrec.burned import NoDetectorError, text_in
from medrec.dicom import header, parsing
from medrec.dicom.codestreams import bare
from medrec.dicom.decoders import decode
from medrec.dicom.reading import walk
from medrec.errors import ConfigError, WorldError

# PS3.16 CID 7050.
CODES = {
    "basic": ("113100", "Basic Application Confidentiality Profile"),
    "clean_pixels": ("113101", "Clean Pixel Data Option"),
    "modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "characteristics": ("113108", "Retain Patient Characteristics Option"),
    "device": ("113109", "Retain Device Identity Option"),
}
# Table E.1-1, columns of these two options: kept as they are.
CHARACTERISTICS = frozenset(
    "EthnicGroup PatientAge PatientSex PatientSexNeutered PatientSize PatientWeight PregnancyStatus "
    "SmokingStatus".split()
)
DEVICE = frozenset(
    "CassetteID DetectorID DeviceDescription DeviceSerialNumber DeviceUID GantryID GeneratorID PlateID "
    "StationName".split()
)
# Kept nowhere, whether or not the table knows the attribute: people write anything into these.
FREE_TEXT = frozenset({"PN", "UN", "LT", "ST", "UT", "UC", "UR"})
BINARY = frozenset({"OB", "OW", "OD", "OF", "OL", "OV"})
# Pixels, and the tables that show them.
NEEDED = frozenset(
    "PixelData FloatPixelData DoubleFloatPixelData RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData LUTData".split()
)
TEXT = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "SH", "TM", "UI"})
# Whose words may stand nowhere else in the file either.
NAMING = frozenset(
    "PatientID PatientBirthDate AccessionNumber InstitutionName InstitutionAddress OtherPatientIDs "
    "InstitutionalDepartmentName PatientAddress PatientTelephoneNumbers".split()
)
SHORTEST = 4  # letters of a word that tells whose it is
MAX_SHIFT_DAYS = 1800
DUMMY: dict[str, Any] = {
    **{"AS": "000Y", "CS": "REMOVED", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "PN": "REMOVED"},
    **{"DS": "0", "IS": "0", "FL": 0.0, "FD": 0.0, "SL": 0, "SS": 0, "UL": 0, "US": 0, "OB": b"", "OW": b"", "UN": b""},
}


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the profile, each named in the files that are written."""

    clean_pixels: bool = False
    modified_dates: bool = False
    characteristics: bool = False
    device: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """How many files were written, and why others were not, by reason."""

    written: int
    withheld: dict[str, int] = field(default_factory=dict)


def deidentify(source: Path, folder: Path, key: bytes, options: Options) -> Done:
    """Write de-identified copies into a new folder, with `record.csv`: a line for each, by its new name.

    With the same `key` UIDs, patients and shifts of dates are the same on every run.
    Raises ConfigError when the folder is not empty, WorldError when it cannot be written.
    """
    if not source.exists():
        raise ConfigError([f"{source} is not there"])
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError([f"--output: {folder} is not empty; choose a new folder"])
    numbers: dict[str, int] = {}
    withheld: Counter[str] = Counter()
    written = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "record.csv").open("w", newline="") as file:
            record = csv.writer(file)
            record.writerow(("file", "sha256", *_Profile.ACTIONS))
            for path in walk(source):
                result = _one(path, key, options)
                if isinstance(result, str):
                    withheld[result] += 1
                    continue
                ds, counts = result
                series = numbers.setdefault(str(ds.get("SeriesInstanceUID", "")), len(numbers) + 1)
                written += 1
                name = f"{series:04d}-{written:06d}.dcm"
                ds.save_as(folder / name, enforce_file_format=True)
                digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                record.writerow((name, digest, *(counts[a] for a in _Profile.ACTIONS)))
    except OSError as error:
        raise WorldError(f"the copies cannot be written: {os.strerror(error.errno or 0)}") from None
    return Done(written, dict(withheld))


def _one(path: Path, key: bytes, options: Options) -> tuple[pydicom.FileDataset, Counter[str]] | str:
    try:
        ds = header.parse(path.read_bytes())
        if ds is None:
            return "not DICOM"
        if "DirectoryRecordSequence" in ds:
            return "a DICOMDIR: an index with names, which nothing needs"
        if parsing.may_hold_text(ds) and not _cleaned(ds, options):
            return "may carry burned-in text (use --clean-pixels, which needs medrec[text])"
        return _deidentified(ds, key, options)
    except Exception as error:  # a crafted file raises anything; its text may hold a name
        return f"broken DICOM ({type(error).__name__})"


def _cleaned(ds: pydicom.FileDataset, options: Options) -> bool:
    """Cover text in the pixels; whether that could be done."""
    if not options.clean_pixels:
        return False
    if not any(name in ds for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return True
    try:
        frames = decode(ds).copy()
        if frames.ndim != 3 or frames.dtype.itemsize > 2:
            return False  # colour is not decoded by the decoders that are proven here
        for frame in frames:
            frame[text_in(frame.astype(np.float32))] = frame.min()
    except NoDetectorError:
        return False
    ds.PixelData = frames.tobytes()
    ds["PixelData"].VR = "OB" if frames.dtype.itemsize == 1 else "OW"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.BurnedInAnnotation = "NO"
    return True


def _deidentified(ds: pydicom.FileDataset, key: bytes, options: Options) -> tuple[pydicom.FileDataset, Counter[str]]:
    patient = header.text(ds, "PatientID") or header.text(ds, "StudyInstanceUID")
    profile = _Profile(key, options, patient, _own_words(ds))
    profile.apply(ds)
    _bare_pixels(ds)
    syntax = ds.file_meta.TransferSyntaxUID
    ds.file_meta = pydicom.dataset.FileMetaDataset()  # titles of senders and private information go with the old one
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.preamble = bytes(128)
    ds.PatientName = ds.PatientID = profile.name(patient)
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = f"medrec {__version__}"
    ds.LongitudinalTemporalInformationModified = "MODIFIED" if options.modified_dates else "REMOVED"
    wanted = ["basic", *(name for name in CODES if name != "basic" and getattr(options, name))]
    ds.DeidentificationMethodCodeSequence = Sequence([_code(*CODES[name]) for name in wanted])
    return ds, profile.counts


def _own_words(ds: Dataset) -> frozenset[str]:
    """Names and numbers by which a file says whose it is, in lower case."""
    found: set[str] = set()
    for element in ds.iterall():
        if element.VR == "PN" or element.keyword in NAMING:
            text = str(element.value or "").lower()
            found |= {text.strip(), *(re.split(r"[\^=\\]", text) if element.VR == "PN" else ())}
    return frozenset(word.strip() for word in found if len(word.strip()) >= SHORTEST)


def _bare_pixels(ds: pydicom.FileDataset) -> None:
    """Pixel data without padding, comments and whatever stands behind the image. Raises ValueError when it is odd."""
    if "PixelData" not in ds:
        return
    frames = int(ds.get("NumberOfFrames") or 1)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds.PixelData = encapsulate([bare(f) for f in generate_frames(ds.PixelData, number_of_frames=frames)])
        return
    bits = int(ds.Rows) * int(ds.Columns) * int(ds.get("SamplesPerPixel", 1)) * frames * int(ds.BitsAllocated)
    if str(ds.get("PhotometricInterpretation", "")).endswith("_422"):
        bits = bits * 2 // 3
    length = (bits + 7) // 8
    ds.PixelData = bytes(ds.PixelData[:length]) + bytes(length % 2)


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


class _Profile:
    """The table, applied to one file; `counts` says how often it did what."""

    ACTIONS = ("removed", "emptied", "replaced", "uids", "dates shifted", "private")

    def __init__(self, key: bytes, options: Options, patient: str, own: frozenset[str] = frozenset()) -> None:
        self._own = own
        self.counts: Counter[str] = Counter()
        self._key = key
        self._kept = (CHARACTERISTICS if options.characteristics else frozenset()) | (
            DEVICE if options.device else frozenset()
        )
        days = int.from_bytes(self._keyed("days", patient)[:4], "big") % MAX_SHIFT_DAYS + 1
        self._shift = timedelta(days=-days) if options.modified_dates else None

    def name(self, patient: str) -> str:
        """A keyed name for a patient."""
        return self._keyed("patient", patient).hex()[:16]

    def apply(self, ds: Dataset) -> None:
        """Change a dataset and all that is nested in it, in place."""
        for tag in list(ds.keys()):
            if tag.is_private:
                self.counts["private"] += 1
                del ds[tag]
                continue
            action = self._action(tag, ds)
            if action == "removed":
                del ds[tag]
            elif action != "kept":
                self._change(ds, ds[tag], action)
            if action != "kept":
                self.counts[action] += 1
            if tag in ds and ds[tag].VR == "SQ":
                for item in ds[tag].value or ():
                    self.apply(item)

    def _action(self, tag: BaseTag, ds: Dataset) -> str:
        if not dictionary_has_tag(tag) or (tag.group & 0xFF00) in (0x5000, 0x6000):  # curves, overlays
            return "removed"
        element = ds[tag]
        if element.VR not in dictionary_VR(tag).split(" or ") or self._repeats(element):
            return "removed"
        if element.keyword in self._kept:
            return "kept"
        if self._shift is not None and element.VR in ("DA", "DT"):
            return "dates shifted" if element.keyword != "PatientBirthDate" else "emptied"
        action = _TABLE.get((tag.group, tag.element)) or next((a for a, pair in _REPEATING if _fits(tag, pair)), None)
        if action is not None:
            return "replaced" if action == "uids" and element.VR != "UI" else action
        if element.VR == "UI":
            return "uids"
        unneeded = element.VR in BINARY and element.keyword not in NEEDED
        return "removed" if element.VR in FREE_TEXT or unneeded else "kept"

    def _repeats(self, element: DataElement) -> bool:
        """Whether an attribute that identifies nobody by itself holds one of the file's own names or numbers."""
        if element.VR not in TEXT or _TABLE.get((element.tag.group, element.tag.element)) is not None:
            return False
        text = str(element.value or "").lower()
        return any(word in text for word in self._own)

    def _change(self, ds: Dataset, element: DataElement, action: str) -> None:
        if action == "uids":
            value = element.value
            many = [value] if isinstance(value, str) else list(value or ())
            element.value = [self._uid(v) for v in many] if len(many) != 1 else self._uid(many[0])
        elif action == "dates shifted":
            element.value = self._shifted(str(element.value or ""))
        elif action == "emptied":
            element.value = Sequence() if element.VR == "SQ" else None
        elif element.VR != "SQ":  # a sequence stays, its items are gone through
            element.value = self._uid(str(element.value)) if element.VR == "UI" else DUMMY.get(element.VR, "REMOVED")

    def _uid(self, uid: str) -> str:
        """A UID of the UUID kind (PS3.5 B.2) that stands for another one; DICOM's own stay."""
        if not uid or uid in UID_dictionary:
            return uid
        return f"2.25.{int.from_bytes(self._keyed('uid', uid)[:16], 'big')}"

    def _shifted(self, text: str) -> str:
        try:
            moment = datetime.strptime(text[:8], "%Y%m%d") + (self._shift or timedelta())
        except ValueError:
            return ""
        return f"{moment:%Y%m%d}" + text[8:]

    def _keyed(self, kind: str, value: str) -> bytes:
        return hmac.new(self._key, f"{kind}\0{value}".encode(), hashlib.sha256).digest()


def _fits(tag: BaseTag, pair: tuple[int, ...]) -> bool:
    """Whether a tag is in a repeating group: (group, element, mask, mask)."""
    return tag.group & pair[2] == pair[0] & pair[2] and tag.element & pair[3] == pair[1] & pair[3]


# Where the table leaves a choice, the object stays valid: the attribute keeps a value.
_ACTIONS = {
    **{"D": "replaced", "Z": "emptied", "X": "removed", "U": "uids", "Z_D": "replaced"},
    **{"X_Z": "emptied", "X_D": "replaced", "X_Z_D": "replaced", "X_Z_U_STAR": "replaced"},
}
_ROWS = [(action, tuple(pair)) for group, action in _ACTIONS.items() for pair in getattr(table, f"{group}_TAGS")]
_TABLE = {pair: action for action, pair in _ROWS if len(pair) == 2}
_REPEATING = tuple((action, pair) for action, pair in _ROWS if len(pair) == 4)
