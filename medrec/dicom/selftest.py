"""A tiny sample of each transfer syntax, decoded: which decoders work here, shown and not assumed.

Samples of JPEG are written bit by bit from the standard, because no encoder of it is installed; the others come from
the encoders beside their decoders. The HTJ2K sample holds no code blocks (it is uniformly grey), so that it proves the
decoder's presence and its reading of the codestream, and not its block decoding.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

from medrec.dicom.decoders import STRICT, available, decode

SIDE = 64  # the least that JPEG 2000's five usual levels can halve
Image = npt.NDArray[np.uint16]
RAMP: Image = np.add.outer(np.arange(SIDE) * 3, np.arange(SIDE) * 5).astype(np.uint16) + 900
# Blocks of 8 x 8 have one grey value each: all that a transform with no more than a mean can carry without loss.
BLOCKS: Image = np.kron(np.array([[40, 200], [90, 128]]), np.ones((SIDE // 2, SIDE // 2), int)).astype(np.uint16)
GREY: Image = np.full((SIDE, SIDE), 128, np.uint16)


def check() -> Iterator[tuple[str, str]]:
    """(name of a transfer syntax, "" or what is wrong with its decoder), for each that is to be read."""
    for syntax in STRICT:
        yield uid.UID(syntax).name, _problem(syntax)


def _problem(syntax: str) -> str:
    if not available(syntax):
        return f"missing: install the package that brings {STRICT[syntax][1]}"
    ds, expected, tolerance = sample(syntax)
    try:
        found = decode(ds)[0]
    except Exception as error:
        return f"does not decode its sample ({type(error).__name__})"
    worst = int(np.abs(found.astype(int) - expected).max())
    return "" if worst <= tolerance else f"returns wrong pixels (by {worst})"


def sample(syntax: str) -> tuple[pydicom.FileDataset, Image, int]:
    """(image, the values it holds, by how much a decoder may differ) in one transfer syntax."""
    if syntax == uid.JPEGBaseline8Bit:
        return _wrapped(syntax, BLOCKS, 8, _dct(BLOCKS, 0xC0, 8)), BLOCKS, 1
    if syntax == uid.JPEGExtended12Bit:
        high: Image = (BLOCKS * 16).astype(np.uint16)
        return _wrapped(syntax, high, 12, _dct(high, 0xC1, 12)), high, 1
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        return _wrapped(syntax, RAMP, 12, _lossless(RAMP, 12)), RAMP, 0
    if syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K):
        return _wrapped(syntax, GREY, 8, _htj2k()), GREY, 0
    settings: dict[str, dict[str, Any]] = {uid.JPEGLSNearLossless: {"jls_error": 2}, uid.JPEG2000: {"j2k_cr": [2]}}
    ds = _native(RAMP, 12)
    if uid.UID(syntax).is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False, **settings.get(syntax, {}))
    else:
        ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
        if syntax == uid.ExplicitVRBigEndian:
            ds.PixelData = RAMP.astype(">u2").tobytes()
        ds.set_original_encoding(syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian)
    return ds, RAMP, {uid.JPEGLSNearLossless: 2, uid.JPEG2000: 8}.get(uid.UID(syntax), 0)


def _native(image: Image, bits: int) -> pydicom.FileDataset:
    ds = pydicom.FileDataset("", {}, file_meta=FileMetaDataset())
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.SOPInstanceUID = "2.25.1"
    ds.Rows, ds.Columns = image.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 if bits <= 8 else 16, bits, bits - 1
    ds.PixelRepresentation = 0
    ds.PixelData = image.astype("<u1" if bits <= 8 else "<u2").tobytes()
    return ds


def _wrapped(syntax: str, image: Image, bits: int, codestream: bytes) -> pydicom.FileDataset:
    ds = _native(image, bits)
    ds.file_meta.TransferSyntaxUID = uid.UID(syntax)
    ds.PixelData = encapsulate([codestream])
    ds["PixelData"].is_undefined_length = True
    return ds


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _frame(marker: int, bits: int) -> bytes:
    """Frame header, ISO 10918-1 B.2.2: one component, not subsampled."""
    return _segment(marker, struct.pack(">BHHB3B", bits, SIDE, SIDE, 1, 1, 0x11, 0))


def _table(kind: int, symbols: range) -> bytes:
    """Huffman table, B.2.4.2, in which each symbol's code is the symbol itself in five bits."""
    counts = [0] * 16
    counts[4] = len(symbols)
    return _segment(0xC4, bytes([kind, *counts, *symbols]))


def _difference(value: int) -> str:
    """F.1.2.1: the number of bits in five bits, then the bits; of a negative number the ones of (value - 1)."""
    size = abs(value).bit_length()
    bits = value if value >= 0 else value - 1 + (1 << size)
    return f"{size:05b}" + (f"{bits:0{size}b}" if size else "")


def _scan(bits: str, parameters: bytes) -> bytes:
    bits += "1" * (-len(bits) % 8)  # F.1.2.3: padded with ones; a byte FF is followed by 00
    content = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    return _segment(0xDA, parameters) + content + b"\xff\xd9"


def _lossless(image: Image, bits: int) -> bytes:
    """Process 14, selection value 1 (ISO 10918-1 H.1): each pixel as its difference from the one on its left."""
    values = image.astype(int)
    expected = np.empty_like(values)
    expected[:, 1:] = values[:, :-1]
    expected[1:, 0], expected[0, 0] = values[:-1, 0], 1 << (bits - 1)
    stream = "".join(_difference(int(d)) for d in (values - expected).ravel())
    return b"\xff\xd8" + _frame(0xC3, bits) + _table(0, range(17)) + _scan(stream, b"\x01\x01\x00\x01\x00\x00")


def _dct(image: Image, marker: int, bits: int) -> bytes:
    """Sequential DCT of an image whose 8 x 8 blocks are each of one value: means and nothing else (A.3.3)."""
    means = 8 * (image[::8, ::8].astype(int).ravel() - (1 << (bits - 1)))
    differences = np.diff(means, prepend=0)
    end_of_block = "00000"
    stream = "".join(_difference(int(d)) + end_of_block for d in differences)
    ones = _segment(0xDB, bytes([0] + [1] * 64))
    tables = _table(0x00, range(17)) + _table(0x10, range(1))
    return b"\xff\xd8" + ones + _frame(marker, bits) + tables + _scan(stream, b"\x01\x01\x00\x00\x3f\x00")


def _htj2k() -> bytes:
    """ISO 15444-15: an 8-bit image without a single code block, which is grey (the level shift of ISO 15444-1 G.1)."""
    siz = struct.pack(">H8IH3B", 0x4000, SIDE, SIDE, 0, 0, SIDE, SIDE, 0, 0, 1, 7, 1, 1)
    cap = struct.pack(">IH", 0x00020000, 0)
    cod = struct.pack(">BBHBBBBBB", 0, 2, 1, 0, 0, 4, 4, 0x40, 1)  # RPCL, one layer, no decomposition, HT blocks
    qcd = bytes([0x20, 8 << 3])
    packet = b"\0"
    tile = struct.pack(">HIBB", 0, 12 + 2 + len(packet), 0, 1)
    return (
        b"\xff\x4f" + _segment(0x51, siz) + _segment(0x50, cap) + _segment(0x52, cod) + _segment(0x5C, qcd)
        + _segment(0x90, tile) + b"\xff\x93" + packet + b"\xff\xd9"
    )  # fmt: skip
