"""Wrong pixels are worse than none: one strict decoder for each syntax, and codestreams that fit their header."""

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from medrec.dicom import decoders, pixels, selftest
from medrec.dicom.csa import numbers
from medrec.dicom.decoders import PixelError, decode
from medrec.dicom.frames import Mosaic
from medrec.dicom.header import Place
from medrec.series import Reason

PLACE = Place("PixelData", 1000, None)
COMPRESSED = [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless]


@pytest.mark.parametrize("syntax", decoders.STRICT, ids=lambda s: UID(s).name)
def test_each_decoder_returns_the_pixels_of_its_sample(syntax: str) -> None:
    ds, expected, tolerance = selftest.sample(syntax)
    assert np.abs(decode(ds)[0].astype(int) - expected).max() <= tolerance
    assert dict(selftest.check())[UID(syntax).name] == ""


def test_a_missing_decoder_is_a_named_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = selftest.sample(JPEGLSLossless)[0]
    monkeypatch.setattr(decoders, "find_spec", lambda name: None)
    assert pixels.problem(ds, PLACE, 2**20) == (Reason.NO_DECODER, "JPEG-LS Lossless Image Compression")
    assert "install" in dict(selftest.check())["JPEG-LS Lossless Image Compression"]


def test_a_syntax_that_nobody_decodes_is_a_named_refusal() -> None:
    ds = selftest.sample(JPEGLSLossless)[0]
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.4.100")  # MPEG2
    problem = pixels.problem(ds, PLACE, 2**20)
    assert problem is not None
    assert problem[0] is Reason.NO_DECODER


def refused(ds: pydicom.FileDataset) -> str:
    with pytest.raises(PixelError) as error:
        decode(ds)
    return str(error.value)


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda s: s.name)
def test_a_codestream_of_another_size_is_refused(syntax: UID) -> None:
    for name in ("Rows", "Columns"):
        ds = selftest.sample(syntax)[0]
        setattr(ds, name, 32)
        assert "size" in refused(ds)


@pytest.mark.parametrize("syntax", COMPRESSED, ids=lambda s: s.name)
def test_values_beyond_bits_stored_are_refused(syntax: UID) -> None:
    ds = selftest.sample(syntax)[0]
    ds.BitsStored, ds.HighBit = 9, 8  # the sample's values reach 1404
    assert "bits" in refused(ds) or "depth" in refused(ds)


def test_a_signed_image_in_a_shallower_codestream_is_refused() -> None:
    ds = selftest.sample(JPEGLosslessSV1)[0]
    ds.PixelRepresentation, ds.BitsStored, ds.HighBit = 1, 16, 15
    assert "depth" in refused(ds)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_negative_values_survive_compression(syntax: UID) -> None:
    values = np.arange(-2048, 2048).reshape(64, 64).astype(np.int16)
    ds = selftest.sample("1.2.840.10008.1.2.1")[0]
    ds.PixelRepresentation, ds.PixelData = 1, values.tobytes()
    ds.compress(syntax, generate_instance_uid=False)
    assert np.array_equal(decode(ds)[0], values)


def test_a_codestream_of_another_kind_is_refused() -> None:
    ds = selftest.sample(JPEGLSLossless)[0]
    ds.PixelData = encapsulate([b"\0\1" * 50])
    assert "codestream" in refused(ds)


@pytest.mark.parametrize("syntax", [*COMPRESSED, RLELossless], ids=lambda s: s.name)
def test_a_codestream_cut_short_returns_no_pixels(syntax: UID) -> None:
    ds, expected, _ = selftest.sample(syntax)
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])
    try:
        found = decode(ds)
    except Exception:
        return
    assert np.array_equal(found[0], expected), "never wrong pixels without a word"


def test_rescaling_is_exact_in_double_precision() -> None:
    ds = pydicom.Dataset()
    ds.RescaleSlope, ds.RescaleIntercept = "0.1", "-3"
    stored = np.array([[[0, 1, 40000]]], np.uint16)
    assert np.array_equal(pixels.rescaled(stored, ds), np.float32([[[-3, -2.9, 3997]]]))


def test_frames_are_rescaled_by_their_own_rule() -> None:
    ds = pydicom.Dataset()
    groups = []
    for slope in (2, 3):
        rule = pydicom.Dataset()
        rule.RescaleSlope, rule.RescaleIntercept = slope, 1
        group = pydicom.Dataset()
        group.PixelValueTransformationSequence = [rule]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    assert pixels.rescaled(np.full((2, 1, 1), 10, np.uint8), ds).ravel().tolist() == [21, 31]


def test_a_mosaic_is_taken_apart_row_by_row() -> None:
    image = np.arange(36).reshape(6, 6)
    slices = Mosaic(3, 2, 3, 3).taken_apart(image)
    assert slices.shape == (3, 3, 3)
    assert [s[0, 0] for s in slices] == [0, 3, 18]


@pytest.mark.parametrize("data", [b"", b"SV10", b"SV10" + b"\xff" * 200, b"\xff" * 1000, b"\x01\0\0\0" * 60])
def test_a_damaged_csa_header_says_nothing(data: bytes) -> None:
    assert numbers(data, "NumberOfImagesInMosaic") == ()
