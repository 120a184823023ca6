"""`inspect` and `convert`: equal to dcm2niix and to volumes that others made, and silent about people."""

import json
import random
import shutil
import zipfile
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import conformance
import nibabel
import numpy as np
import pydicom
import pytest
from conformance import canonical, same
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage

from medrec.conversion import convert, inspect
from medrec.errors import ConfigError
from medrec.phantom import grid, write_dicom
from medrec.series import Reason

SIZE = (12, 10, 5)
AFFINE = np.array(grid(SIZE, (1.5, 2.0, 5.0), (11.0, -17.0, 23.0), centre_lps_mm=(4.0, -3.0, 7.0)))
VOXELS = np.random.default_rng(0).integers(0, 4000, SIZE).astype(np.int16)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dicom(VOXELS, AFFINE, tmp_path / "DOE JANE", patient_name="DOE^JANE", series_number=7)
    return tmp_path / "DOE JANE"


def written(source: Path, out: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    done = convert(source, out)
    assert sorted(done.written) == sorted(p.name for p in out.iterdir())
    return [part for name in done.written for part in canonical(out / name)]


def test_a_volume_comes_out_as_it_went_in(folder: Path, tmp_path: Path) -> None:
    done = convert(folder, tmp_path / "out")
    assert done.written == ("series-0007-001.nii",)
    assert done.problems == ()
    image = nibabel.load(tmp_path / "out" / done.written[0])
    assert image.get_data_dtype() == np.int16
    (found,) = canonical(tmp_path / "out" / done.written[0])
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(VOXELS, LPS_TO_RAS @ AFFINE))
    assert same(found, (np.asarray(expected.dataobj, float), expected.affine))


def test_fractions_come_out_as_float32(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.RescaleSlope, ds.RescaleIntercept = "0.5", "0.25"
        ds.save_as(path)
    (name,) = convert(folder, tmp_path / "out").written
    image = nibabel.load(tmp_path / "out" / name)
    assert image.get_data_dtype() == np.float32
    assert np.asarray(image.dataobj).max() == VOXELS.max() / 2 + 0.25


def test_one_file_converts_with_its_thickness_and_is_refused_without(folder: Path, tmp_path: Path) -> None:
    path = next(iter(folder.iterdir()))
    ((voxels, _),) = written(path, tmp_path / "out")
    assert sorted(voxels.shape) == sorted((*SIZE[:2], 1))
    ds = pydicom.dcmread(path)
    del ds.SliceThickness
    ds.save_as(path)
    done = convert(path, tmp_path / "again")
    assert done.written == ()
    assert "too few slices" in done.problems[0]


def test_nothing_says_who_the_patient_is(folder: Path, tmp_path: Path) -> None:
    (folder / "notes DOE.txt").write_text("DOE")
    ds = pydicom.dcmread(next(p for p in folder.iterdir() if p.suffix != ".txt"))
    out = tmp_path / "out"
    done, inventory = convert(folder, out), inspect(folder)
    text = repr(done) + json.dumps(asdict(inventory)) + " ".join(p.name for p in out.iterdir())
    content = b"".join(p.read_bytes() for p in out.iterdir())
    for word in ("DOE", "JANE", "PHANTOM", ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.StudyDate, str(folder)):
        assert word not in text
        assert word.encode() not in content


def test_an_inventory_accounts_for_every_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")
    with zipfile.ZipFile(folder / "more.zip", "w") as packed:
        packed.writestr("../../x", "y")
    shutil.copy(next(p for p in folder.iterdir() if not p.suffix), folder / "copy")
    inventory = inspect(folder)
    assert inventory.files == {"seen": 8, "in series": 5, "unused": 1, "refused": 2}
    assert inventory.refused == {"not DICOM": 2}
    (found,) = inventory.found
    assert (found.modality, found.size, found.reason) == ("MR", (12, 10, 5), "usable")
    assert found.spacing_mm == (1.5, 2.0, 5.0)
    assert found.transfer_syntax == "Explicit VR Little Endian"


def test_an_ultrasound_without_scale_gets_sizes_in_pixels_and_no_volume(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.Modality = "US"
        del ds.PixelSpacing, ds.ImagePositionPatient, ds.ImageOrientationPatient
        ds.save_as(path)
    (found,) = inspect(folder).found
    reason = "single image without a place in the patient"
    assert (found.reason, found.spacing_mm) == (reason, None)
    assert "sizes are in pixels" in found.detail
    assert convert(folder, tmp_path / "out").written == ()


def test_an_ultrasound_has_the_scale_of_its_regions_where_they_agree(folder: Path) -> None:
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.Modality = "US"
        del ds.PixelSpacing, ds.ImagePositionPatient, ds.ImageOrientationPatient
        region = Dataset()
        region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 1, 3, 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03  # cm a pixel
        doppler = Dataset()
        doppler.RegionSpatialFormat, doppler.PhysicalUnitsXDirection, doppler.PhysicalUnitsYDirection = 3, 4, 7
        ds.SequenceOfUltrasoundRegions = [region, doppler]
        ds.save_as(path)
    (found,) = inspect(folder).found
    assert found.spacing_mm == pytest.approx((0.2, 0.3))
    assert "its scale is known" in found.detail
    other = deepcopy(region)
    other.PhysicalDeltaX = 0.05
    ds.SequenceOfUltrasoundRegions = [region, other]  # two scales in one picture: neither is that of a pixel
    ds.save_as(path)
    assert any("sizes are in pixels" in f.detail for f in inspect(folder).found)


def test_a_tilted_stack_is_refused_or_written_as_it_lies(tmp_path: Path) -> None:
    sheared = AFFINE.copy()
    sheared[:3, 2] += 1.2 * AFFINE[:3, 1] / 2.0  # each slice 1.2 mm farther along its columns
    write_dicom(VOXELS, sheared, tmp_path / "ct")
    done = convert(tmp_path / "ct", tmp_path / "plain")
    assert done.written == ()
    assert "tilted stack: slices follow each other at 13.5 degrees" in done.problems[0]  # atan(1.2 / 5)
    done = convert(tmp_path / "ct", tmp_path / "leaning", tilted=True)
    assert "13.5 degrees" in done.problems[0]
    image = nibabel.load(tmp_path / "leaning" / done.written[0])
    for corner in ((0, 0, 0), (11, 9, 4), (0, 9, 2)):
        place = LPS_TO_RAS @ sheared @ (*corner, 1)
        where = tuple(np.rint(np.linalg.inv(image.affine) @ place)[:3].astype(int))
        assert np.allclose(image.affine @ (*where, 1), place, atol=1e-3)
        assert image.dataobj[where] == VOXELS[corner]


def test_a_series_number_cannot_lead_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.add_new(0x00200011, "LO", "../../../x")
        ds.SeriesInstanceUID = "../../y"
        ds.save_as(path)
    done = convert(folder, tmp_path / "deep" / "out")
    assert done.written == ("series-x001-001.nii",)
    assert {p.name for p in tmp_path.iterdir()} == {"DOE JANE", "deep"}


def test_a_source_that_is_not_there_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        inspect(tmp_path / "nowhere")


def enhanced(folder: Path, *, repeats: int = 1, shared: bool = True) -> Path:
    """The phantom as one Enhanced MR object, frames in an order of chance, each repeat twice as bright."""
    single = pydicom.dcmread(sorted(folder.iterdir())[0])
    ds = single
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "EchoTime"):
        delattr(ds, name)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [f"{c:.9f}" for a in (0, 1) for c in AFFINE[:3, a] / spacing[a]]
    measures.PixelSpacing, measures.SliceThickness = [f"{spacing[1]}", f"{spacing[0]}"], "5"
    order = [(k, r) for k in range(SIZE[2]) for r in range(repeats)]
    random.Random(1).shuffle(order)
    groups = []
    for k, r in order:
        group, content, place = Dataset(), Dataset(), Dataset()
        content.TemporalPositionIndex, content.InStackPositionNumber, content.StackID = r + 1, k + 1, "1"
        place.ImagePositionPatient = [f"{x:.6f}" for x in AFFINE[:3, 3] + k * AFFINE[:3, 2]]
        group.FrameContentSequence, group.PlanePositionSequence = [content], [place]
        if not shared:
            group.PlaneOrientationSequence, group.PixelMeasuresSequence = [orientation], [measures]
        groups.append(group)
    common = Dataset()
    if shared:
        common.PlaneOrientationSequence, common.PixelMeasuresSequence = [orientation], [measures]
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [common], groups
    ds.NumberOfFrames = len(order)
    ds.PixelData = b"".join((VOXELS[:, :, k].T * (r + 1)).astype("<u2").tobytes() for k, r in order)
    ds.BitsStored, ds.HighBit = 16, 15
    path = folder.parent / "enhanced"
    ds.save_as(path)
    return path


@pytest.mark.parametrize("shared", [True, False], ids=["shared groups", "groups per frame"])
def test_an_enhanced_object_is_the_volume_of_its_slices(folder: Path, tmp_path: Path, shared: bool) -> None:
    (slices,) = written(folder, tmp_path / "one")
    (frames,) = written(enhanced(folder, shared=shared), tmp_path / "two")
    assert same(slices, frames)


def test_an_enhanced_object_of_two_times_is_two_volumes(folder: Path, tmp_path: Path) -> None:
    (slices,) = written(folder, tmp_path / "one")
    first, second = written(enhanced(folder, repeats=2), tmp_path / "two")
    assert same(slices, first)
    assert same((slices[0] * 2, slices[1]), second)


def test_an_object_whose_frames_have_no_places_is_refused(folder: Path, tmp_path: Path) -> None:
    path = enhanced(folder)
    ds = pydicom.dcmread(path)
    del ds.PerFrameFunctionalGroupsSequence
    ds.save_as(path)
    assert "several frames" in convert(path, tmp_path / "out").problems[0]


# Against volumes that others made

FAILING = {
    "gantrytilting/001": {"tilted stack"},
    "notavolume/001": {"too few slices"},
    "slicecount/001": {"usable"},  # two slices are a volume; a model's card asks for more
    "sliceincrement/001": {"missing slice"},
    "sliceincrement/002": {"missing slice"},
    "sliceorientation/001": {"usable"},  # two stacks, two volumes
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILING)
def test_each_failing_case_has_its_documented_verdict(shared_data: Path, name: str) -> None:
    inventory = inspect(shared_data / "conformance" / "failing" / name)
    assert {f.reason for f in inventory.found} == FAILING[name]


@pytest.mark.slow
def test_the_table_of_conformance_is_what_comes_out(shared_data: Path) -> None:
    """Made by `python tests/conformance.py`."""
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed (apt-get install dcm2niix)")
    told = conformance.TABLE.read_text()
    assert conformance.table(shared_data) == told
    assert "converted otherwise" not in told


def test_every_reason_stands_in_the_readme() -> None:
    text = " ".join((conformance.ROOT / "README.md").read_text().split())
    assert [reason for reason in Reason if str(reason) not in text] == []
