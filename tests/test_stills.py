"""Single greyscale images: brightness as it is meant to be seen, the same digest under any header, the rest refused."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

from medrec.dicom import Pseudonyms, stills
from medrec.dicom.decoders import PixelError

PSEUDONYMS = Pseudonyms(b"0" * 32)
LEVELS = np.arange(12, dtype=np.uint16).reshape(3, 4) * 20


def image(stored: np.ndarray = LEVELS, **changes: object) -> bytes:
    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = UltrasoundImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid(entropy_srcs=["still"])
    ds.StudyInstanceUID, ds.SeriesInstanceUID = generate_uid(), generate_uid()
    ds.PatientID, ds.Modality = "PHI0001", "US"
    ds.Rows, ds.Columns = stored.shape[-2:] if stored.ndim < 4 else stored.shape[1:3]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 8, 7, 0
    ds.PixelData = stored.astype("<u2").tobytes()
    for name, value in changes.items():
        setattr(ds, name, value)
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_black_is_0_and_white_1_whatever_the_bits() -> None:
    still = stills.read(image(), PSEUDONYMS)
    assert still.pixels.shape == (3, 4)
    assert np.allclose(still.pixels, LEVELS / 255)
    deep = stills.read(image(LEVELS * 16, BitsStored=12, HighBit=11), PSEUDONYMS)
    assert np.allclose(deep.pixels, LEVELS * 16 / 4095)


def test_where_the_smallest_value_is_white_brightness_is_turned() -> None:
    still = stills.read(image(PhotometricInterpretation="MONOCHROME1"), PSEUDONYMS)
    assert np.allclose(still.pixels, 1 - LEVELS / 255)


def test_the_same_pixels_under_another_header_have_the_same_digest_and_others_do_not() -> None:
    first = stills.read(image(), PSEUDONYMS)
    renamed = stills.read(image(PatientID="another", StudyDescription="x"), PSEUDONYMS)
    assert (first.pixels_sha256, first.instance) == (renamed.pixels_sha256, renamed.instance)
    assert first.sha256 != renamed.sha256
    assert first.patient != renamed.patient
    other = LEVELS.copy()
    other[0, 0] += 1
    assert stills.read(image(other), PSEUDONYMS).pixels_sha256 != first.pixels_sha256
    assert stills.read(image(LEVELS.reshape(4, 3)), PSEUDONYMS).pixels_sha256 != first.pixels_sha256


@pytest.mark.parametrize(
    "data",
    [
        b"not DICOM at all",
        image()[:-4],
        image(np.stack([LEVELS, LEVELS]), NumberOfFrames=2),
        image(np.repeat(LEVELS[..., None], 3, 2)[None], SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        image(PixelRepresentation=1),
    ],
    ids=["no DICOM", "truncated", "two frames", "colour", "signed"],
)
def test_what_is_not_one_greyscale_image_is_refused(data: bytes) -> None:
    with pytest.raises(PixelError):
        stills.read(data, PSEUDONYMS)


def test_a_folder_gives_its_images_and_leaves_the_rest_out(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(image())
    (tmp_path / "b.txt").write_text("notes")
    (tmp_path / "c").write_bytes(image()[:200])
    assert [s.pixels.shape for s in stills.read_folder(tmp_path, PSEUDONYMS)] == [(3, 4)]
