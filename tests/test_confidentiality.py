"""De-identified copies hold nothing of a person; text in pixels is covered, or the picture withheld."""

import csv
import io
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import RunNight
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from test_night import small_study

from medrec import burned
from medrec.burned import screened, text_in
from medrec.dicom import Pseudonyms
from medrec.dicom.confidentiality import Options, deidentify
from medrec.errors import ConfigError
from medrec.volume import Volume

KEY = b"k" * 32
SECRETS = [
    "MUSTERMANN",
    "ERIKA",
    "ID-4711-Q",
    "ACC-99-XY",
    "Charite Nord",
    "19431224",
    "DR^HOUSE",
    "20200131",
    "PRIVAT",
]


def laden(folder: Path) -> list[Path]:
    """A series with an identity in every corner: top level, nested twice, private, unknown, comments, an overlay."""
    paths = list(small_study(folder, patient_name="MUSTERMANN^ERIKA", patient_id="ID-4711-Q"))[:4]
    for path in folder.iterdir():
        if path not in paths:
            path.unlink()
    for path in paths:
        ds = pydicom.dcmread(path)
        ds.AccessionNumber, ds.InstitutionName, ds.PatientBirthDate = "ACC-99-XY", "Charite Nord", "19431224"
        ds.ReferringPhysicianName, ds.StudyDate, ds.ImageComments = "DR^HOUSE", "20200131", "seen by DR^HOUSE"
        inner = Dataset()
        inner.PatientID, inner.PersonName, inner.TextValue = "ID-4711-Q", "MUSTERMANN^ERIKA", "MUSTERMANN"
        outer = Dataset()
        outer.ReferencedSOPInstanceUID, outer.ReferencedSOPClassUID = ds.SOPInstanceUID, ds.SOPClassUID
        outer.PurposeOfReferenceCodeSequence = Sequence([inner])
        ds.SourceImageSequence = Sequence([outer])
        block = ds.private_block(0x0029, "PRIVATE CREATOR", create=True)
        block.add_new(0x01, "LO", "PRIVAT MUSTERMANN")
        ds.add_new(0x60004000, "LT", "MUSTERMANN")
        ds.file_meta.SourceApplicationEntityTitle = "Charite Nord"
        ds.preamble = b"MUSTERMANN".ljust(128, b"\0")
        ds.save_as(path)
    return paths


def run(source: Path, folder: Path, **options: bool) -> list[pydicom.FileDataset]:
    deidentify(source, folder, KEY, Options(**options))
    return [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]


def test_no_identity_is_left_in_any_byte_of_a_copy(tmp_path: Path) -> None:
    before = [pydicom.dcmread(path) for path in laden(tmp_path / "in" / "MUSTERMANN")]
    copies = run(tmp_path / "in", tmp_path / "out")
    assert len(copies) == 4
    uids = [before[0].StudyInstanceUID, before[0].SeriesInstanceUID, *(ds.SOPInstanceUID for ds in before)]
    for path in (tmp_path / "out").iterdir():
        data = path.read_bytes() + path.name.encode()
        assert [word for word in SECRETS + uids if word.encode() in data] == []
    for old, new in zip(*(sorted(d, key=lambda ds: ds.InstanceNumber) for d in (before, copies)), strict=True):
        assert old.PixelData == new.PixelData
        assert old.ImagePositionPatient == new.ImagePositionPatient
        assert not any(element.tag.is_private for element in new.iterall())


def test_uids_stay_consistent_in_the_file_between_files_and_between_runs(tmp_path: Path) -> None:
    laden(tmp_path / "in")
    one, two = run(tmp_path / "in", tmp_path / "one"), run(tmp_path / "in", tmp_path / "two")
    assert len({ds.StudyInstanceUID for ds in one}) == len({ds.SeriesInstanceUID for ds in one}) == 1
    assert len({ds.SOPInstanceUID for ds in one}) == 4
    assert [ds.SOPInstanceUID for ds in one] == [ds.SOPInstanceUID for ds in two]
    for ds in one:
        assert ds.SourceImageSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID == ds.file_meta[0x00020003].value
        assert ds.SOPInstanceUID.startswith("2.25.")
        assert len(ds.SOPInstanceUID) <= 64


def test_method_codes_name_the_profile_and_its_options(tmp_path: Path) -> None:
    laden(tmp_path / "in")
    (ds, *_) = run(tmp_path / "in", tmp_path / "out", modified_dates=True, characteristics=True)
    codes = [(c.CodeValue, c.CodingSchemeDesignator) for c in ds.DeidentificationMethodCodeSequence]
    assert codes == [("113100", "DCM"), ("113107", "DCM"), ("113108", "DCM")]
    assert ds.PatientIdentityRemoved == "YES"
    assert ds.LongitudinalTemporalInformationModified == "MODIFIED"


def test_dates_are_shifted_alike_for_one_patient_and_gone_without_the_option(tmp_path: Path) -> None:
    for number, path in enumerate(laden(tmp_path / "in")):
        ds = pydicom.dcmread(path)
        ds.StudyDate = f"202002{10 + number}"
        ds.save_as(path)
    shifted = [ds.StudyDate for ds in run(tmp_path / "in", tmp_path / "out", modified_dates=True)]
    from datetime import datetime

    days = [datetime.strptime(d, "%Y%m%d") for d in sorted(shifted)]
    assert [(b - a).days for a, b in pairwise(days)] == [1, 1, 1]
    assert not set(shifted) & {"20200210", "20200211", "20200212", "20200213"}
    assert {ds.StudyDate for ds in run(tmp_path / "in", tmp_path / "plain")} == {""}


def test_the_record_has_a_line_for_each_copy_and_names_no_original(tmp_path: Path) -> None:
    paths = laden(tmp_path / "in")
    (tmp_path / "in" / "note.txt").write_text("MUSTERMANN")
    done = deidentify(tmp_path / "in", tmp_path / "out", KEY, Options())
    assert (done.written, done.withheld) == (4, {"not DICOM": 1})
    with (tmp_path / "out" / "record.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == sorted(p.name for p in (tmp_path / "out").glob("*.dcm"))
    assert all(int(row["private"]) == 2 and int(row["uids"]) >= 4 for row in rows)
    import hashlib

    assert not {hashlib.sha256(p.read_bytes()).hexdigest() for p in paths} & {row["sha256"] for row in rows}
    with pytest.raises(ConfigError, match="not empty"):
        deidentify(tmp_path / "in", tmp_path / "out", KEY, Options())


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return next(iter(laden(tmp_path_factory.mktemp("sample") / "in"))).read_bytes()


@settings(deadline=None, max_examples=20)
@given(hostile=st.text(st.characters(exclude_categories=["Cs"]), min_size=4, max_size=40))
def test_whatever_a_text_holds_it_is_gone(
    tmp_path_factory: pytest.TempPathFactory, sample: bytes, hostile: str
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    ds = pydicom.dcmread(io.BytesIO(sample))
    word = "S3CR3T" + hostile
    ds.SpecificCharacterSet = "ISO_IR 192"
    for name in ("PatientName", "OtherPatientIDs", "StudyDescription", "PatientComments", "OperatorsName"):
        setattr(ds, name, word)
    (folder / "in").mkdir()
    ds.save_as(folder / "in" / "one")
    run(folder / "in", folder / "out")
    assert b"S3CR3T" not in b"".join(p.read_bytes() for p in (folder / "out").iterdir())


def test_the_copies_of_shared_data_hold_no_invented_identity(shared_data: Path, tmp_path: Path) -> None:
    source = sorted((shared_data / "brain_mr" / "dicom").iterdir())[2]
    copies = run(source, tmp_path / "out")
    assert copies
    assert b"PHI" not in b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())


# Text in pixels


def written(text: str, size: int, shape: tuple[int, int] = (360, 480)) -> np.ndarray:
    """Speckle as in ultrasound with a line of text burned in, and where it stands."""
    noise = np.random.default_rng(5).rayleigh(30, shape).clip(0, 140).astype(np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).text((30, 40), text, fill=235, font=ImageFont.load_default(size))
    return np.asarray(image)


@pytest.mark.slow
@pytest.mark.parametrize("size", [12, 16, 24])
def test_planted_text_is_covered(size: int) -> None:
    pytest.importorskip("rapidocr", reason="pip install 'medrec[text]'")
    clean, image = written("", size), written("MUSTERMANN ERIKA 24.12.1943", size)
    where = text_in(image)
    strokes = image.astype(int) - clean > 60
    assert strokes.any()
    assert where[strokes].mean() > 0.99
    assert where.mean() < 0.2
    voxels = np.repeat(image.T[..., None], 2, 2).astype(np.float32)
    shown, flags = screened({"us": Volume(voxels, np.eye(4), "", "s", "d")})
    assert shown["us"].voxels[:, :, 1].T[strokes].max() == 0 or shown["us"].voxels.min() >= 0
    assert (shown["us"].voxels[:, :, 1].T[where] == voxels.min()).all()
    assert "covered" in flags[0]


@pytest.mark.slow
def test_real_burned_in_text_is_found(shared_data: Path) -> None:
    pytest.importorskip("rapidocr", reason="pip install 'medrec[text]'")
    paths = sorted((shared_data / "breast_us" / "dicom").glob("*.dcm"))[:1]
    assert text_in(pydicom.dcmread(paths[0]).pixel_array.astype(np.float32)).any()


def test_without_a_detector_pictures_are_withheld_and_the_report_says_so(
    run_night: RunNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here() -> None:
        raise burned.NoDetectorError

    monkeypatch.setattr(burned, "_detector", none_here)
    for path in small_study(tmp_path / "in"):
        ds = pydicom.dcmread(path)
        ds.BurnedInAnnotation = "YES"
        ds.save_as(path)
    case = run_night(tmp_path / "in").cases[0]
    facts = json.loads((tmp_path / "home" / str(case.report)).with_name("report.json").read_text())
    assert facts["verdict"] == "finding"
    assert burned.WITHHELD in facts["flags"]
    page = (tmp_path / "home" / str(case.report)).read_text()
    assert "pictures withheld" in page


def test_files_that_may_carry_text_are_not_copied_unless_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in laden(tmp_path / "in"):
        ds = pydicom.dcmread(path)
        ds.Modality = "US"
        ds.save_as(path)
    done = deidentify(tmp_path / "in", tmp_path / "out", KEY, Options())
    assert done.written == 0
    assert "burned-in text" in next(iter(done.withheld))
    monkeypatch.setattr("medrec.dicom.confidentiality.text_in", lambda image: np.ones(image.shape, bool))
    (ds, *_) = run(tmp_path / "in", tmp_path / "cleaned", clean_pixels=True)
    assert len(set(ds.pixel_array.ravel())) == 1
    assert "113101" in [c.CodeValue for c in ds.DeidentificationMethodCodeSequence]


def test_a_key_of_its_own_makes_copies_that_another_key_does_not(tmp_path: Path) -> None:
    laden(tmp_path / "in")
    one = run(tmp_path / "in", tmp_path / "one")
    deidentify(tmp_path / "in", tmp_path / "two", Pseudonyms(b"x" * 32).key, Options())
    two = [pydicom.dcmread(p) for p in (tmp_path / "two").glob("*.dcm")]
    assert not {ds.SOPInstanceUID for ds in one} & {ds.SOPInstanceUID for ds in two}


def element(tag: int, vr: str, value: object) -> DataElement:
    return DataElement(tag, vr, value)


HIDDEN = {
    "in an overlay's label": element(0x60001500, "LO", "S3CR3T"),
    "in an overlay": element(0x60003000, "OW", b"S3CR3T"),
    "in a curve": element(0x50003000, "OW", b"S3CR3T"),
    "in a profile of colours": element(0x00282000, "OB", b"S3CR3T"),
    "in a number": element(0x00180050, "LO", "S3CR3T"),
    "in a link": element(0x00081190, "UR", "http://S3CR3T"),
    "in what looks like a UID of DICOM": element(0x00200052, "UI", "1.2.840.10008.S3CR3T"),
    "behind the end": element(0xFFFCFFFC, "OB", b"S3CR3T"),
    "behind the pixels": element(0x7FE00010, "OW", b"S3CR3T"),
    "of the patient in what the table keeps": element(0x00080070, "LO", "made for s3cr3t"),
    "of the patient in a meaning": element(0x00181000, "LO", "S3CR3T-1"),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_a_word_that_hides_is_gone(tmp_path: Path, where: str) -> None:
    path = next(iter(laden(tmp_path / "in")))
    ds, hidden = pydicom.dcmread(path), HIDDEN[where]
    ds.PatientName = "S3CR3T^ERIKA" if "of the patient" in where else "ERIKA"
    if hidden.keyword == "PixelData":
        hidden = element(0x7FE00010, "OW", ds.PixelData + hidden.value)
    ds[hidden.tag] = hidden
    ds.save_as(path)
    assert b"S3CR3T" in path.read_bytes().replace(b"s3cr3t", b"S3CR3T")
    assert len(run(path, tmp_path / "out")) == 1
    for copy in (tmp_path / "out").iterdir():
        assert b"s3cr3t" not in copy.read_bytes().lower()
