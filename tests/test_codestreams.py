"""Text in codestreams goes, and the image's own bytes stay."""

import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID

from medrec.dicom.codestreams import JPEG2000, bare
from medrec.dicom.decoders import STRICT, decode
from medrec.dicom.selftest import sample

COMPRESSED = [s for s in STRICT if UID(s).is_encapsulated and "RLE" not in UID(s).name]
TEXT = b"MUSTERMANN^ERIKA"


def with_text(frame: bytes) -> bytes:
    """A comment behind the first marker, and more behind the end."""
    marker = 0x64 if frame.startswith(JPEG2000) else 0xFE
    at = 2
    if frame.startswith(JPEG2000):  # SIZ comes first (T.800 A.5.1)
        at += 2 + int.from_bytes(frame[4:6], "big")
    comment = struct.pack(">BBH", 0xFF, marker, len(TEXT) + 2) + TEXT
    return frame[:at] + comment + frame[at:] + TEXT


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda s: UID(s).name)
def test_text_goes_and_pixels_stay(syntax: str) -> None:
    ds, _, _ = sample(syntax)
    before = decode(ds)
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    cleaned = bare(with_text(frame))
    assert TEXT in with_text(frame)
    assert TEXT not in cleaned
    ds.PixelData = encapsulate([cleaned])
    ds["PixelData"].is_undefined_length = True
    assert np.array_equal(decode(ds), before)
    assert bare(cleaned) == cleaned


@given(at=st.integers(0, 10**6), syntax=st.sampled_from(COMPRESSED), cut=st.booleans(), bit=st.integers(0, 7))
def test_a_broken_codestream_is_refused_or_comes_out_without_more_than_it_had(
    at: int, syntax: str, cut: bool, bit: int
) -> None:
    ds, _, _ = sample(syntax)
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    at %= len(frame)
    spoilt = frame[:at] if cut else frame[:at] + bytes([frame[at] ^ 1 << bit]) + frame[at + 1 :]
    with suppress(ValueError):
        assert len(bare(spoilt)) <= len(spoilt)
