"""Siemens' CSA header: the few numbers that a mosaic needs.

The layout is Siemens' own; it is described in nibabel's documentation ("Siemens format DICOM with CSA header"). Reads
within bounds only: a damaged header yields nothing, never an error.
"""

import math
import struct

MAX_TAGS = 1000  # real headers hold about a hundred
_TAG = struct.Struct("<64si4s3i")
_ITEM = struct.Struct("<4i")


def numbers(data: bytes, name: str) -> tuple[float, ...]:
    """The finite numbers of one tag, () when it is absent or the header cannot be read."""
    try:
        found = _find(data, name.encode())
        values = tuple(float(v) for v in found)
    except (struct.error, ValueError):
        return ()
    return values if all(map(math.isfinite, values)) else ()


def _find(data: bytes, name: bytes) -> list[bytes]:
    second = data[:4] == b"SV10"
    at = 8 if second else 0
    (count,) = struct.unpack_from("<I", data, at)
    at += 8
    first_items = 0
    for number in range(min(count, MAX_TAGS)):
        tag, _, _, _, items, _ = _TAG.unpack_from(data, at)
        at += _TAG.size
        if number == 0:
            first_items = items
        found = []
        for _ in range(min(items, MAX_TAGS)):
            sizes = _ITEM.unpack_from(data, at)
            at += _ITEM.size
            length = sizes[1] if second else sizes[0] - first_items
            if not 0 <= length <= len(data) - at:
                return []
            text = data[at : at + length].split(b"\0")[0].strip()
            if text:
                found.append(text)
            at += -(-length // 4) * 4
        if tag.split(b"\0")[0] == name:
            return found
    return []
