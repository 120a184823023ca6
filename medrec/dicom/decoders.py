"""One strict decoder for each transfer syntax, and the checks that its pixels are the ones in the header.

pydicom falls through its plug-ins until one returns something, and a lenient one may return wrong pixels; here a
syntax has one decoder, and a missing one is a named refusal. The codestream's own size and depth are compared with the
header before a decoder sees it.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import Decoder

from medrec.dicom import header

# Transfer syntax -> (pydicom's plug-in, the module that does the work). Native ones need neither.
STRICT: dict[str, tuple[str, str]] = {
    uid.ImplicitVRLittleEndian: ("", ""),
    uid.ExplicitVRLittleEndian: ("", ""),
    uid.ExplicitVRBigEndian: ("", ""),
    uid.DeflatedExplicitVRLittleEndian: ("", ""),
    uid.RLELossless: ("pylibjpeg", "rle"),
    uid.JPEGBaseline8Bit: ("pylibjpeg", "libjpeg"),
    uid.JPEGExtended12Bit: ("pylibjpeg", "libjpeg"),
    uid.JPEGLossless: ("pylibjpeg", "libjpeg"),
    uid.JPEGLosslessSV1: ("pylibjpeg", "libjpeg"),
    uid.JPEGLSLossless: ("pyjpegls", "jpeg_ls"),
    uid.JPEGLSNearLossless: ("pyjpegls", "jpeg_ls"),
    uid.JPEG2000Lossless: ("pylibjpeg", "openjpeg"),
    uid.JPEG2000: ("pylibjpeg", "openjpeg"),
    uid.HTJ2KLossless: ("pylibjpeg", "openjpeg"),
    uid.HTJ2KLosslessRPCL: ("pylibjpeg", "openjpeg"),
    uid.HTJ2K: ("pylibjpeg", "openjpeg"),
}
# Syntaxes that may have lost something on the way (PS3.5 A.4): those that always did, and those that can.
LOSSY = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless})


class PixelError(ValueError):
    """The pixels are not the ones that the header promises; the text names no value of the header's."""


@dataclass(frozen=True, slots=True)
class Codestream:
    """What a compressed frame says of itself."""

    rows: int
    columns: int
    samples: int
    bits: int
    signed: bool | None


def syntax_of(ds: pydicom.FileDataset) -> uid.UID:
    """The transfer syntax; implicit little endian where a file has no meta header (DICOM PS3.5 10.1)."""
    meta = getattr(ds, "file_meta", None)
    found = meta.get("TransferSyntaxUID") if meta is not None else None
    return found if isinstance(found, uid.UID) else uid.ImplicitVRLittleEndian


def available(syntax: str) -> bool:
    """Whether this installation has the strict decoder of a transfer syntax."""
    return syntax in STRICT and (not STRICT[syntax][1] or find_spec(STRICT[syntax][1]) is not None)


def decode(ds: pydicom.FileDataset) -> npt.NDArray[Any]:
    """Stored values (frames, rows, columns) of a greyscale image.

    Raises PixelError when codestream and header contradict each other; decoders raise anything.
    """
    syntax = syntax_of(ds)
    if not available(syntax):
        raise PixelError("no decoder")
    compressed = syntax.is_encapsulated
    if compressed:
        _check_codestreams(ds, syntax)
    decoder: Decoder = get_decoder(syntax)
    # What lies above BitsStored in native data may be anything (PS3.5 8.1.1) and pydicom drops it; in a codestream it
    # contradicts the header, and is looked at below.
    options: dict[str, Any] = {"correct_unused_bits": not compressed}
    array, _ = decoder.as_array(ds, decoding_plugin=STRICT[syntax][0] if compressed else "", **options)
    count = header.whole(ds, "NumberOfFrames") or 1
    stored = array.reshape(count, *array.shape[-2:]) if array.ndim == 2 else array
    if stored.shape != (count, header.whole(ds, "Rows"), header.whole(ds, "Columns")):
        raise PixelError("the pixels have another size than the header says")
    return _within_bits(ds, stored) if compressed else np.asarray(stored)


def _check_codestreams(ds: pydicom.FileDataset, syntax: uid.UID) -> None:
    bits, allocated = header.whole(ds, "BitsStored") or 0, header.whole(ds, "BitsAllocated") or 0
    wanted = tuple(header.whole(ds, name) for name in ("Rows", "Columns", "SamplesPerPixel"))
    signed = header.whole(ds, "PixelRepresentation") == 1
    for frame in generate_frames(ds.PixelData, number_of_frames=header.whole(ds, "NumberOfFrames") or 1):
        found = codestream(frame)
        if found is None:
            if syntax == uid.RLELossless:
                continue
            raise PixelError("the codestream cannot be read")
        if frame[:2] == b"\xff\xd8" and not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
            # libjpeg fills what is missing without a word
            raise PixelError("the codestream ends too early")
        if (found.rows, found.columns, found.samples) != wanted:
            raise PixelError("the codestream has another size than the header says")
        if found.bits > allocated or (signed and found.bits < bits):
            # Fewer bits than stored leave it open which bit carries the sign.
            raise PixelError("the codestream has another depth than the header says")


def _within_bits(ds: pydicom.FileDataset, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values with their sign brought down to BitsStored; more bits than that, and one of the two is wrong."""
    bits, width = header.whole(ds, "BitsStored") or 0, 8 * stored.dtype.itemsize
    if bits >= width or not stored.size:
        return np.asarray(stored)
    values = (stored << (width - bits)) >> (width - bits)
    # Beyond the sign's bit there may be copies of it, in some or all of the bits, or nothing.
    beyond = (stored.view(f"u{stored.dtype.itemsize}") >> bits).astype(np.uint32)
    negative = values < 0
    if beyond[~negative].any() or (beyond[negative] & (beyond[negative] + 1)).any():
        raise PixelError("the pixels need more bits than the header says")
    return np.asarray(values)


def codestream(frame: bytes) -> Codestream | None:
    """Read the frame header of JPEG, JPEG-LS (ISO 10918-1 B.2.2) or JPEG 2000 (ISO 15444-1 A.5.1); None for others."""
    if frame[:4] == b"\xff\x4f\xff\x51":
        return _siz(frame, 4)
    if frame[:12] == b"\x00\x00\x00\x0cjP  \r\n\x87\n":  # a JP2 file inside: not allowed, but seen
        at = frame.find(b"\xff\x4f\xff\x51")
        return _siz(frame, at + 4) if at > 0 else None
    if frame[:2] == b"\xff\xd8":
        return _sof(frame)
    return None


def _sof(frame: bytes) -> Codestream | None:
    at = 2
    while at + 10 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            at += 1
            continue
        # SOF0 to SOF15 without DHT, JPG and DAC; 0xF7 is JPEG-LS's.
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = int.from_bytes(frame[at + 5 : at + 7]), int.from_bytes(frame[at + 7 : at + 9])
            return Codestream(rows, columns, frame[at + 9], frame[at + 4], None)
        if marker == 0xDA:
            return None
        at += 2 + int.from_bytes(frame[at + 2 : at + 4])
    return None


def _siz(frame: bytes, at: int) -> Codestream | None:
    if len(frame) < at + 40:
        return None
    right, bottom, left, top = (int.from_bytes(frame[at + n : at + n + 4]) for n in (4, 8, 12, 16))
    depth = frame[at + 38]
    samples = int.from_bytes(frame[at + 36 : at + 38])
    return Codestream(bottom - top, right - left, samples, (depth & 0x7F) + 1, bool(depth & 0x80))
