"""Values of a header, safely: what cannot be read is absent, and nothing is ever filled in.

Silences pydicom, whose warnings and log lines quote header values: names could reach a console.
"""

import io
import logging
import math
import re
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pydicom
from pydicom import config as pydicom_config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

_pydicom_log = logging.getLogger("pydicom")
_pydicom_log.handlers = [logging.NullHandler()]
_pydicom_log.propagate = False
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

MAX_INFLATED_BYTES = 2**30  # of a deflated file: a few kilobytes can stand for terabytes
PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
UNDEFINED = 0xFFFFFFFF
# Values of these kinds are ASCII: they are read as they stand, without pydicom's conversion of every element.
_PLAIN = frozenset({"CS", "DS", "IS", "UI", "DA", "DT", "TM"})
_WHOLE = {"US": 2, "UL": 4}
_ELEMENTS = "elements_by_number"  # of a dataset that is only read from now on
_NOTHING = Dataset()
_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # DICOM PS3.5: the characters of a CS value
Key = str | tuple[int, int]  # a keyword, or a tag (group, element)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file's pixel data lie: keyword, first byte, and number of bytes (None: packed into items)."""

    keyword: str
    offset: int
    length: int | None


class TooLong(Exception):  # noqa: N818  (a refusal, raised where only a value can be returned)
    """A deflated file expands beyond `MAX_INFLATED_BYTES`."""


def parse(data: bytes) -> pydicom.FileDataset | None:
    """Parse a whole file; None when it is not DICOM. A file without preamble must name its class and study.

    Raises TooLong.
    """
    return _known(data, lambda source, force: pydicom.dcmread(source, force=force))


def parse_head(data: bytes) -> tuple[pydicom.FileDataset, Place | None] | None:
    """Parse what stands before the pixel data; None when it is not DICOM.

    `data` may be the beginning of a file; then all is there as soon as the place of the pixels is.
    Raises TooLong.
    """
    found: list[tuple[int, int]] = []

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        if tag in PIXELS:
            found.append((int(tag), length))
        return tag in PIXELS

    streams: list[io.BytesIO] = []

    def read(source: io.BytesIO, force: bool) -> pydicom.FileDataset:
        found.clear()
        streams[:] = [source]
        return read_partial(source, stop_when=at_pixels, force=force)

    ds = _known(data, read)
    if ds is None:
        return None
    # pydicom makes a tag of every key that it is asked for; scores of them are asked of each file.
    object.__setattr__(ds, _ELEMENTS, {int(tag): element for tag, element in ds.items()})
    if not found:
        return ds, None
    tag, length = found[0]
    if is_deflated(ds):  # the pixels have no place of their own in the file
        return ds, Place(PIXELS[tag], 0, length)
    explicit = not ds.original_encoding[0]  # tag and length; an explicit VR and two reserved bytes between them
    offset = streams[0].tell() + (12 if explicit else 8)
    return ds, Place(PIXELS[tag], offset, None if length == UNDEFINED else length)


def is_deflated(ds: pydicom.FileDataset) -> bool:
    """Whether all after the meta header is deflated (DICOM PS3.5 A.5)."""
    meta = getattr(ds, "file_meta", None)
    return meta is not None and meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def _known(data: bytes, read: Any) -> pydicom.FileDataset | None:
    _check_deflated(data)
    if data[128:132] == b"DICM":
        return read(io.BytesIO(data), False)  # type: ignore[no-any-return]
    try:
        header = read(io.BytesIO(data), True)
        known = all(text(header, name) for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"))
    except Exception:
        return None
    return header if known else None


def _check_deflated(data: bytes) -> None:
    """Expand a deflated file piece by piece, only to see how far it goes, before pydicom does it in one."""
    if data[128:132] != b"DICM" or DeflatedExplicitVRLittleEndian.encode() not in data[:1024]:
        return
    start = 144 + int.from_bytes(data[140:144], "little")  # after the meta header: PS3.10 7.1, its group length
    expanding, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[start:]
    while rest and not expanding.eof:
        try:
            piece = expanding.decompress(rest, 2**20)
        except zlib.error:
            return
        size, rest = size + len(piece), expanding.unconsumed_tail
        if size > MAX_INFLATED_BYTES:
            raise TooLong


def values(header: Dataset, key: Key) -> tuple[str, ...]:
    """The values of an element as text, () when it is absent, empty or cannot be read."""
    plain = _plain(header, key)
    if plain is not None:
        return plain
    value = _value(header, key)
    if value is None or value == "" or isinstance(value, bytes):
        return ()
    many = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else (value,)
    return tuple(str(v).strip(" \0") for v in many)


def _plain(header: Dataset, key: Key) -> tuple[str, ...] | None:
    """The values of an element of ASCII text as they stand in the file; None where pydicom must convert it."""
    tag = _tag(key)
    elements = header.__dict__.get(_ELEMENTS)
    if tag is None or (tag not in elements if elements is not None else tag not in header):
        return ()
    try:
        element = elements[tag] if elements is not None else header.get_item(tag)
    except Exception:
        return None
    if not isinstance(element, RawDataElement) or not isinstance(element.value, bytes):
        return None
    kind = element.VR or _vr(tag)
    if kind in _WHOLE and len(element.value) == _WHOLE[kind]:
        return (str(int.from_bytes(element.value, "little" if element.is_little_endian else "big")),)
    if kind not in _PLAIN:
        return None
    stripped = element.value.decode("latin-1").strip(" \0")
    return tuple(v.strip(" \0") for v in stripped.split("\\")) if stripped else ()


@cache
def _tag(key: Key) -> int | None:
    return tag_for_keyword(key) if isinstance(key, str) else key[0] << 16 | key[1]


@cache
def _vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def text(header: Dataset, key: Key) -> str:
    """All values of an element, joined as in the file."""
    return "\\".join(values(header, key))


def code(header: Dataset, key: Key) -> str:
    """A CS value, or "" where there is none or it is not well-formed."""
    value = text(header, key)
    return value if _CODE.fullmatch(value) else ""


def codes(header: Dataset, key: Key) -> tuple[str, ...]:
    """Those values of an element that are well-formed CS values."""
    return tuple(v for v in values(header, key) if _CODE.fullmatch(v))


def numbers(header: Dataset, key: Key, count: int) -> tuple[float, ...] | None:
    """Exactly `count` finite numbers, or None: nothing is filled in."""
    try:
        found = tuple(float(v) for v in values(header, key))
    except ValueError:
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def number(header: Dataset, key: Key) -> float | None:
    """One finite number, or None."""
    found = numbers(header, key, 1)
    return found[0] if found is not None else None


def whole(header: Dataset, key: Key) -> int | None:
    """One whole number, or None."""
    found = number(header, key)
    return int(found) if found is not None and found == int(found) else None


def raw(header: Dataset, key: Key) -> bytes:
    """The bytes of an element, b"" when it holds none."""
    if _plain(header, key) == ():
        return b""
    value = _value(header, key)
    return value if isinstance(value, bytes) else b""


def items(header: Dataset, key: Key) -> Iterator[Dataset]:
    """The items of a sequence, none when it is absent or is no sequence."""
    if _plain(header, key) == ():
        return
    value = _value(header, key)
    if isinstance(value, pydicom.Sequence):
        yield from value


def item(header: Dataset, key: Key) -> Dataset:
    """The first item of a sequence, an empty one when there is none."""
    return next(items(header, key), _NOTHING)


def _value(header: Dataset, key: Key) -> Any:
    try:
        if isinstance(key, str):
            return header.get(key)
        element = header.get(key)
        return element.value if element is not None else None
    except Exception:
        return None
