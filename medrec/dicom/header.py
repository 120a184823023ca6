"""Values of a header, safely: what cannot be read is absent, and nothing is ever filled in.

Silences pydicom, whose warnings and log lines quote header values: names could reach a console.
"""

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset

_pydicom_log = logging.getLogger("pydicom")
_pydicom_log.handlers = [logging.NullHandler()]
_pydicom_log.propagate = False
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE

_CODE = re.compile(r"[A-Z0-9_ ]{1,16}")  # DICOM PS3.5: the characters of a CS value
Key = str | tuple[int, int]  # a keyword, or a tag (group, element)


def parse(data: bytes) -> pydicom.FileDataset | None:
    """Parse a whole file; None when it is not DICOM. A file without preamble must name its class and study."""
    if data[128:132] == b"DICM":
        return pydicom.dcmread(io.BytesIO(data))
    try:
        header = pydicom.dcmread(io.BytesIO(data), force=True)
        known = all(text(header, name) for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"))
    except Exception:
        return None
    return header if known else None


def values(header: Dataset, key: Key) -> tuple[str, ...]:
    """The values of an element as text, () when it is absent, empty or cannot be read."""
    value = _value(header, key)
    if value is None or value == "" or isinstance(value, bytes):
        return ()
    many = value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else (value,)
    return tuple(str(v).strip(" \0") for v in many)


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
    value = _value(header, key)
    return value if isinstance(value, bytes) else b""


def items(header: Dataset, key: Key) -> Iterator[Dataset]:
    """The items of a sequence, none when it is absent or is no sequence."""
    value = _value(header, key)
    if isinstance(value, pydicom.Sequence):
        yield from value


def item(header: Dataset, key: Key) -> Dataset:
    """The first item of a sequence, an empty one when there is none."""
    return next(items(header, key), Dataset())


def _value(header: Dataset, key: Key) -> Any:
    try:
        if isinstance(key, str):
            return header.get(key)
        element = header.get(key)
        return element.value if element is not None else None
    except Exception:
        return None
