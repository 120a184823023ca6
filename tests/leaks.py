"""Looks for identities wherever they could hide: in bytes, names, archives, compressed streams, pictures, data URIs."""

import base64
import binascii
import gzip
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pydicom

DEEPEST = 4
BASE64 = re.compile(rb"[A-Za-z0-9+/]{64,}={0,2}")
ZLIB = re.compile(rb"x[\x01\x5e\x9c\xda]")  # how a zlib stream may begin (RFC 1950): PNG's and PDF's are such
SHORTEST = 5
NOBODY = {"BRAIN MR", "BREAST US", "MEDREC TEST DATA", "REFERRER"}  # words of shared data that name nobody
NAMING = (
    "PatientName PatientID PatientBirthDate OtherPatientIDs AccessionNumber InstitutionName InstitutionAddress StudyID "
    "ReferringPhysicianName OperatorsName PerformingPhysicianName PatientAddress PatientTelephoneNumbers StationName "
    "StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID StudyDescription IssuerOfPatientID"
).split()


def identities(folder: Path) -> set[str]:
    """Every value that identifies somebody in the DICOM files of a folder, nested and private ones included."""
    found: set[str] = set()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        try:
            ds = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:
            continue
        for element in ds.iterall():
            text = str(element.value)
            if element.VR != "SQ" and (element.keyword in NAMING or element.tag.is_private or "PHI" in text):
                found |= {text, *text.split("^"), *re.findall(r"PHI\w+", text)}
    return {word for word in found if len(word) >= SHORTEST and word not in NOBODY}


def searched(folder: Path, words: set[str]) -> set[tuple[str, str]]:
    """(word, where) for each identity in the names and the content of a folder's files."""
    found = set()
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        # What goes back to the study carries its identity by design, and so does a backup, which holds it.
        if "outbox" in path.relative_to(folder).parts or path.name == "backup.tar":
            continue
        found |= {(word, f"the name {name}") for word in words if word in name}
        if path.is_file():
            found |= {(word, name) for word in hits(path.read_bytes(), words)}
    return found


def hits(data: bytes, words: set[str]) -> set[str]:
    """The words that are in some bytes, however packed."""
    needles = {form: word for word in words for form in _forms(word)}
    any_of = re.compile(b"|".join(re.escape(form) for form in sorted(needles, key=len, reverse=True)))
    return {needles[match] for text in unpacked(data) for match in any_of.findall(text)}


def _forms(word: str) -> Iterator[bytes]:
    yield word.encode("utf-8", "surrogateescape")
    yield word.encode("utf-16-le", "surrogatepass")
    yield word.encode("latin-1", "replace")


def unpacked(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """The bytes, and whatever is packed in them."""
    yield data
    if depth == DEEPEST:
        return
    for inner in _inside(data):
        yield from unpacked(inner, depth + 1)


def _inside(data: bytes) -> Iterator[bytes]:
    if data[:2] == b"\x1f\x8b":
        with suppress(OSError, EOFError, zlib.error):
            yield gzip.decompress(data)
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            yield from (member.read() for info in archive if (member := archive.extractfile(info)) is not None)
    if data[:8] == b"\x89PNG\r\n\x1a\n":  # pixels in one stream that may be cut into several chunks
        yield _inflated(b"".join(_chunks(data, b"IDAT")))
    for match in ZLIB.finditer(data):
        if len(text := _inflated(data[match.start() :])) >= SHORTEST:
            yield text
    for match in BASE64.finditer(data):
        try:
            yield base64.b64decode(match.group() + b"=" * (-len(match.group()) % 4))
        except binascii.Error:
            continue


def _chunks(data: bytes, kind: bytes) -> Iterator[bytes]:
    at = 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == kind:
            yield data[at + 8 : at + 8 + length]
        at += 12 + length


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, 2**24)
    except zlib.error:
        return b""
