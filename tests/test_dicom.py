"""The DICOM room: every file accounted for, nothing of a person gets out, pixels are the ones in the file."""

import hashlib
import random
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSLossless, RLELossless

from medrec.dicom import Archive, Index, Pseudonyms
from medrec.errors import ConfigError, WorldError
from medrec.phantom import Head, Lesion, grid, render, write_dicom
from medrec.prediction import InputRule
from medrec.series import Reason, Series, Skipped, arrange, group
from medrec.volume import Volume

KEY = Pseudonyms(b"k" * 32)
FLAIR = {"flair": InputRule(required=True, match={"SeriesDescription": "(?i)flair"})}
AFFINE = grid((20, 24, 8), (2.0, 2.5, 5.0), (4.0, -3.0, 7.0))
HEAD = Head((Lesion((10.0, 5.0, 2.0), (8.0, 8.0, 8.0)),), (20, 24, 8), AFFINE)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    return render(HEAD)[0]


@pytest.fixture
def folder(tmp_path: Path, voxels: np.ndarray) -> Path:
    write_dicom(voxels, AFFINE, tmp_path / "study", patient_name="DOE^JANE", patient_id="ID-4711")
    return tmp_path


def index(folder: Path) -> Index:
    return Archive(folder, KEY, FLAIR).index()


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "study").iterdir())


def loaded(folder: Path) -> Volume:
    archive = Archive(folder, KEY, FLAIR)
    (study,) = group(archive.index().files)
    series = arrange(study.series[0])
    assert isinstance(series, Series)
    result = archive.load(series)
    assert not isinstance(result, Skipped)
    return result[0]


def change(path: Path, **values: object) -> None:
    """Rewrite a file with other header values; None deletes."""
    header = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(path)


def test_a_volume_holds_the_voxels_and_the_affine_that_were_written(folder: Path, voxels: np.ndarray) -> None:
    volume = loaded(folder)
    back = np.linalg.inv(volume.affine_ijk_to_lps)
    corners = np.array([[0, 0, 0], [19, 0, 0], [0, 23, 0], [0, 0, 7], [19, 23, 7]])
    world = corners @ np.array(AFFINE)[:3, :3].T + np.array(AFFINE)[:3, 3]
    found = np.rint(world @ back[:3, :3].T + back[:3, 3]).astype(int)
    for asked, got in zip(corners, found, strict=True):
        assert volume.voxels[tuple(got)] == voxels[tuple(asked)]
    assert np.abs(world - (found @ volume.affine_ijk_to_lps[:3, :3].T + volume.affine_ijk_to_lps[:3, 3])).max() < 1e-3


def test_names_and_order_of_files_do_not_matter(folder: Path, tmp_path: Path) -> None:
    first = loaded(folder)
    shuffled = tmp_path / "again"
    paths = files_of(folder)
    random.Random(3).shuffle(paths)
    for number, path in enumerate(paths):
        target = shuffled / str(number % 3) / f"x{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    second = loaded(shuffled)
    assert np.array_equal(first.voxels, second.voxels)
    assert np.array_equal(first.affine_ijk_to_lps, second.affine_ijk_to_lps)
    assert first.pixels_sha256 == second.pixels_sha256


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless], ids=["RLE", "JPEG-LS"])
def test_compression_changes_no_voxel_and_no_pixel_digest(folder: Path, syntax: str) -> None:
    plain = loaded(folder)
    for path in files_of(folder):
        header = pydicom.dcmread(path)
        header.compress(syntax, generate_instance_uid=False)
        header.save_as(path)
    compressed = loaded(folder)
    assert np.array_equal(plain.voxels, compressed.voxels)
    assert plain.pixels_sha256 == compressed.pixels_sha256


def test_rescale_is_applied_slice_by_slice(folder: Path) -> None:
    plain = loaded(folder)
    path = next(p for p in files_of(folder) if pydicom.dcmread(p).ImagePositionPatient[2] == _lowest(folder))
    change(path, RescaleSlope="2", RescaleIntercept="-7", RescaleType="US")
    scaled = loaded(folder)
    assert np.array_equal(scaled.voxels[:, :, 0], plain.voxels[:, :, 0] * 2 - 7)
    assert np.array_equal(scaled.voxels[:, :, 1:], plain.voxels[:, :, 1:])


@pytest.mark.parametrize("values", [{"RescaleSlope": "2"}, {"RescaleIntercept": "5"}])
def test_half_a_rescale_is_refused_and_not_completed(folder: Path, values: dict[str, object]) -> None:
    change(files_of(folder)[2], **values)
    archive = Archive(folder, KEY, FLAIR)
    (study,) = group(archive.index().files)
    series = arrange(study.series[0])
    assert isinstance(series, Series)
    result = archive.load(series)
    assert isinstance(result, Skipped)
    assert result.reason is Reason.BAD_PIXELS
    assert "RescaleSlope" in result.detail


def _lowest(folder: Path) -> float:
    return min(pydicom.dcmread(p).ImagePositionPatient[2] for p in files_of(folder))


def test_nothing_of_the_patient_is_in_what_leaves(folder: Path) -> None:
    found = index(folder)
    text = repr(found)
    header = pydicom.dcmread(files_of(folder)[0])
    for word in ("DOE", "JANE", "ID-4711", header.StudyInstanceUID, header.SeriesInstanceUID, str(folder), "study'"):
        assert word not in text.replace("study='", "")


def test_pseudonyms_depend_on_the_key_and_tell_kinds_apart() -> None:
    other = Pseudonyms(b"x" * 32)
    assert KEY.of("patient", "a", "b") != other.of("patient", "a", "b")
    assert KEY.of("patient", "a", "b") != KEY.of("study", "a", "b")
    assert KEY.of("patient", "ab", "") != KEY.of("patient", "a", "b")
    assert KEY.of("patient", "a", "b") == KEY.of("patient", "a", "b")


def test_the_key_is_private_and_stays(tmp_path: Path) -> None:
    first = Pseudonyms.load(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert Pseudonyms.load(tmp_path / "key") == first
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(WorldError, match="chmod 600"):
        Pseudonyms.load(tmp_path / "key")


DEFECTS = {
    "text": (lambda b: b"hello", Reason.NOT_DICOM),
    "empty": (lambda b: b"", Reason.NOT_DICOM),
    "preamble and noise": (lambda b: b[:132] + bytes(range(1, 201)), Reason.BROKEN),
    "cut in the pixels": (lambda b: b[:-100], Reason.TRUNCATED),
    "cut before the pixels": (lambda b: b[: b.rindex(b"\xe0\x7f\x10\x00")], Reason.NO_PIXELS),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defective_file_is_refused_by_its_defect(folder: Path, name: str) -> None:
    spoil, reason = DEFECTS[name]
    bad = folder / "bad"
    bad.write_bytes(spoil(files_of(folder)[0].read_bytes()))
    found = index(folder)
    assert [r.reason for r in found.refused] in ([reason], [Reason.NO_PIXELS], [Reason.UNKNOWN_MODALITY])
    assert found.refused[0].reason == reason or name == "preamble and noise"
    assert found.refused[0].sha256 == hashlib.sha256(bad.read_bytes()).hexdigest()
    assert len(found.files) == 8


HEADER_DEFECTS = {
    "no modality": ({"Modality": None}, Reason.UNKNOWN_MODALITY),
    "a modality nobody defined": ({"Modality": "ZZ"}, Reason.UNKNOWN_MODALITY),
    "no study": ({"StudyInstanceUID": None}, Reason.MISSING_UID),
    "no instance": ({"SOPInstanceUID": None}, Reason.MISSING_UID),
    "no pixels": ({"PixelData": None}, Reason.NO_PIXELS),
    "no rows": ({"Rows": None}, Reason.BROKEN),
    "more rows than pixels": ({"Rows": 6000}, Reason.TRUNCATED),
    "absurd size": ({"Rows": 60000, "Columns": 60000}, Reason.TOO_LARGE),
}


@pytest.mark.parametrize("name", HEADER_DEFECTS)
def test_a_defective_header_is_refused_by_its_defect(folder: Path, name: str) -> None:
    values, reason = HEADER_DEFECTS[name]
    change(files_of(folder)[0], **values)
    found = index(folder)
    assert [r.reason for r in found.refused] == [reason]
    assert found.seen == 8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("PixelSpacing", Reason.MISSING_SPACING),
        ("ImageOrientationPatient", Reason.MISSING_ORIENTATION),
        ("ImagePositionPatient", Reason.MISSING_POSITION),
    ],
)
def test_missing_geometry_is_never_filled_in(folder: Path, name: str, reason: Reason) -> None:
    change(files_of(folder)[0], **{name: None})
    (study,) = group(index(folder).files)
    result = arrange(study.series[0])
    assert isinstance(result, Skipped)
    assert result.reason == reason


def test_a_copy_that_cannot_be_decoded_is_refused_and_the_series_stays_whole(folder: Path) -> None:
    whole = loaded(folder)
    header = pydicom.dcmread(files_of(folder)[0])
    header.compress(JPEGLSLossless, generate_instance_uid=False)
    header.PixelData = encapsulate([b"\xff\xd8" + b"\0" * 50])
    header.save_as(folder / "study" / "broken copy")
    archive = Archive(folder, KEY, FLAIR)
    (study,) = group(archive.index().files)
    series = arrange(study.series[0])
    assert isinstance(series, Series)
    result = archive.load(series)
    assert not isinstance(result, Skipped)
    assert np.array_equal(result[0].voxels, whole.voxels)
    assert [r.reason for r in result[1]] == [Reason.BAD_PIXELS]


def test_a_truncated_copy_is_refused_and_the_series_stays_whole(folder: Path) -> None:
    whole = loaded(folder)
    content = files_of(folder)[2].read_bytes()
    for cut in (200, 400, 900, len(content) - 1):
        (folder / f"cut{cut}").write_bytes(content[:cut])
    found = index(folder)
    assert len(found.refused) == 4
    assert np.array_equal(loaded(folder).voxels, whole.voxels)


def test_copies_with_different_pixels_are_refused(folder: Path) -> None:
    header = pydicom.dcmread(files_of(folder)[0])
    header.PixelData = bytes(len(header.PixelData))
    header.save_as(folder / "study" / "other pixels")
    archive = Archive(folder, KEY, FLAIR)
    (study,) = group(archive.index().files)
    series = arrange(study.series[0])
    assert isinstance(series, Series)
    result = archive.load(series)
    assert isinstance(result, Skipped)
    assert result.reason is Reason.CONFLICTING_COPIES


def test_identical_copies_count_as_unused(folder: Path) -> None:
    shutil.copy(files_of(folder)[0], folder / "copy")
    found = index(folder)
    assert (len(found.files), len(found.unused), found.seen) == (8, 1, 9)


def test_a_file_that_changes_after_indexing_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medrec.dicom.archive.KEEP_BYTES", 0)  # too little memory: files are read a second time
    archive = Archive(folder, KEY, FLAIR)
    (study,) = group(archive.index().files)
    series = arrange(study.series[0])
    assert isinstance(series, Series)
    with files_of(folder)[3].open("ab") as file:
        file.write(b"\0")
    with pytest.raises(WorldError, match="changed"):
        archive.load(series)


def test_a_patient_without_id_is_nobody_else(folder: Path, voxels: np.ndarray, tmp_path: Path) -> None:
    write_dicom(voxels, AFFINE, tmp_path / "other", patient_id="", study_uid="1.2.3")
    for path in files_of(folder):
        change(path, PatientID="")
    assert len({f.patient for f in index(folder).files}) == 2


def test_an_input_that_is_no_folder_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        Archive(tmp_path / "nowhere", KEY, FLAIR)


def test_a_dangling_link_is_refused_not_overlooked(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "gone")
    assert [r.reason for r in index(folder).refused] == [Reason.UNREADABLE]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_file_leaves_it_accounted_for_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(_small_file())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    (folder / "f").write_bytes(bytes(content[:cut]))
    assert index(folder).seen == 1


_SMALL: list[bytes] = []


def _small_file() -> bytes:
    if not _SMALL:
        import tempfile

        with tempfile.TemporaryDirectory() as name:
            affine = grid((4, 4, 2), (2.0, 2.0, 5.0))
            write_dicom(np.ones((4, 4, 2), np.int16), affine, Path(name))
            _SMALL.append(next(Path(name).iterdir()).read_bytes())
    return _SMALL[0]
