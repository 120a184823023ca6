"""The phantom is what it says it is, and its files are valid DICOM; pydicom, not our reader, reads them here."""

import hashlib
import shutil
import subprocess
from collections import Counter

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, MRImageStorage, RLELossless
from scipy import ndimage

from medrec.phantom import GAIN, HEAD_RADII_MM, Head, Lesion, demo_studies, grid, random_head, render, write_dicom

SIZE = (48, 56, 20)
SPACING_MM = (4.0, 4.0, 6.0)
LEFT = Lesion((30.0, -10.0, 10.0), (16.0, 12.0, 18.0))


def head(*lesions, **changes):
    return Head(lesions, SIZE, changes.pop("affine", grid(SIZE, SPACING_MM)), **changes)


# Lesions and grids


def test_a_sphere_of_10_mm_holds_4189_mm3():
    assert Lesion((0, 0, 0), (10, 10, 10)).volume_mm3 == pytest.approx(4189, abs=0.5)


def test_left_is_towards_positive_x():
    # DICOM PS3.3 C.7.6.2.1.1: the x-axis increases to the left hand side of the patient.
    assert LEFT.side == "left"
    assert Lesion((-30.0, 0, 0), (9, 9, 9)).side == "right"


def test_an_unturned_grid_is_known_by_heart():
    assert grid((3, 5, 2), (1.0, 2.0, 4.0)) == ((1, 0, 0, -1), (0, 2, 0, -4), (0, 0, 4, -2), (0, 0, 0, 1))
    flipped = grid((3, 5, 2), (1.0, 2.0, 4.0), flip=(True, False, True))
    assert flipped == ((-1, 0, 0, 1), (0, 2, 0, -4), (0, 0, -4, 2), (0, 0, 0, 1))


@pytest.mark.parametrize(
    ("rotation_deg", "i_runs_to"), [((90, 0, 0), (1, 0, 0)), ((0, 90, 0), (0, 0, -1)), ((0, 0, 90), (0, 1, 0))]
)
def test_a_grid_turns_about_the_patients_axes(rotation_deg, i_runs_to):
    np.testing.assert_allclose(np.array(grid(SIZE, SPACING_MM, rotation_deg))[:3, 0] / 4, i_runs_to, atol=1e-12)


@settings(deadline=None)
@given(st.tuples(*[st.floats(-180, 180)] * 3), st.tuples(*[st.booleans()] * 3))
def test_a_grid_keeps_its_spacing_its_right_angles_and_its_middle(rotation_deg, flip):
    affine = np.array(grid(SIZE, SPACING_MM, rotation_deg, flip, (10.0, 20.0, -30.0)))
    np.testing.assert_allclose(affine[:3, :3].T @ affine[:3, :3], np.diag(np.square(SPACING_MM)), atol=1e-9)
    middle = affine @ [*((np.array(SIZE) - 1) / 2), 1]
    np.testing.assert_allclose(middle[:3], (10.0, 20.0, -30.0), atol=1e-9)


# Voxels


def test_a_head_renders_to_the_same_voxels_every_time():
    for a, b in zip(render(head(LEFT, seed=5)), render(head(LEFT, seed=5)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (render(head(seed=5))[0] != render(head(seed=6))[0]).any()


def test_the_mask_is_the_lesion_by_voxel_centre():
    voxels, mask = render(head(LEFT))
    assert voxels.shape == mask.shape == SIZE
    for i, j, k in np.ndindex(SIZE):
        lps = (np.array((i, j, k)) - (np.array(SIZE) - 1) / 2) * SPACING_MM
        depth = (((lps - LEFT.centre_lps_mm) / LEFT.radii_mm) ** 2).sum()
        assert mask[i, j, k] == (depth <= 1) or abs(depth - 1) < 1e-5


def test_the_masks_volume_is_the_lesions():
    _, mask = render(head(LEFT))
    # Half a voxel, at random, for each of the 215 voxels that the surface cuts: one standard deviation is 5%.
    assert mask.sum() * np.prod(SPACING_MM) == pytest.approx(LEFT.volume_mm3, rel=0.10)


def test_a_lesion_is_bright_its_edge_is_soft_and_all_else_is_as_without_it():
    with_it, mask = render(head(LEFT, noise=0.0))
    without, _ = render(head(noise=0.0))
    core = ndimage.binary_erosion(mask)
    beyond = ~ndimage.binary_dilation(mask, np.ones((3, 3, 3)))
    assert (with_it[core] > 1.4 * without[core]).all()
    np.testing.assert_array_equal(with_it[beyond], without[beyond])
    gain = (with_it - without)[~core & ~beyond] / (with_it - without)[core].mean()
    assert ((gain > 0.1) & (gain < 0.9)).mean() > 0.2, "voxels that the surface cuts are in between"


def test_partial_volume_keeps_the_lesions_amount_of_signal():
    # On white matter alone the extra signal, summed up, is the volume: nothing of the lesion gets lost at its edge.
    small = Lesion((38.0, 10.0, -12.0), (10.0, 10.0, 10.0))
    extra = render(head(small, noise=0.0))[0].astype(float) - render(head(noise=0.0))[0]
    core = extra > 0.98 * extra.max()
    amount = extra.sum() / extra[core].mean() * np.prod(SPACING_MM)
    assert amount == pytest.approx(small.volume_mm3, rel=0.06)


def test_air_is_dark_and_noise_is_what_was_asked_for():
    voxels, _ = render(head(noise=0.05))
    air = voxels[:4].astype(float)
    # Rician noise without signal is Rayleigh: its mean is sqrt(pi / 2) sigma.
    assert air.mean() == pytest.approx(np.sqrt(np.pi / 2) * 0.05 * GAIN, rel=0.05)
    assert not render(head(noise=0.0))[0][:4].any()


def test_the_head_is_as_large_as_it_says():
    tissue = render(head(noise=0.0))[0] > 0
    for axis, others in ((0, (1, 2)), (1, (0, 2))):
        across_mm = tissue.any(others).sum() * SPACING_MM[axis]
        assert across_mm == pytest.approx(2 * HEAD_RADII_MM[axis], abs=2 * SPACING_MM[axis])


def test_a_turned_grid_sees_the_same_head():
    # What lies at a place in the patient does not depend on how the scanner was set up.
    plain, _ = render(head(LEFT, noise=0.0))
    turned, _ = render(head(LEFT, noise=0.0, affine=grid(SIZE, SPACING_MM, (0, 0, 180))))
    np.testing.assert_allclose(turned[::-1, ::-1], plain, atol=2)


# Random heads


@pytest.mark.parametrize("seed", range(8))
def test_random_heads_are_what_scanners_make(seed):
    rng = np.random.default_rng(seed)
    made = random_head(rng, seed % 4)
    spacing = np.linalg.norm(made.affine[:3, :3], axis=0)
    assert all(64 <= n <= 160 for n in made.size_px[:2])
    assert 16 <= made.size_px[2] <= 40
    assert 1.5 <= spacing[0] <= 3
    assert spacing[1] == pytest.approx(spacing[0])
    assert 3 <= spacing[2] <= 6
    assert 120 - 1e-9 <= spacing[2] * made.size_px[2] <= 150
    tilt = np.degrees(np.arccos(made.affine[2, 2] / spacing[2]))
    assert tilt <= 10
    assert len(made.lesions) == seed % 4
    assert all(5 <= r <= 22 for lesion in made.lesions for r in lesion.radii_mm)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_lesions_lie_apart_inside_the_brain(seed):
    made = random_head(np.random.default_rng(seed), 3)
    _, mask = render(made)
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 3
    brain = made.scale * (np.array(HEAD_RADII_MM) - 11)
    lps = np.argwhere(mask) @ made.affine[:3, :3].T + made.affine[:3, 3]
    assert (((lps / brain) ** 2).sum(1) <= 1).all()
    volume = mask.sum() * abs(np.linalg.det(made.affine))
    assert volume == pytest.approx(sum(lesion.volume_mm3 for lesion in made.lesions), rel=0.05)


def test_random_heads_follow_from_their_generator():
    assert random_head(np.random.default_rng(4), 2) == random_head(np.random.default_rng(4), 2)
    assert random_head(np.random.default_rng(4), 2) != random_head(np.random.default_rng(5), 2)


# Files


@pytest.fixture
def voxels():
    """Every voxel differs from every other."""
    return np.random.default_rng(0).permutation(6 * 5 * 4).reshape(6, 5, 4).astype(np.int16)


@settings(max_examples=15, deadline=None)
@given(rotation_deg=st.tuples(*[st.floats(-90, 90)] * 3), flip=st.tuples(*[st.booleans()] * 3))
def test_every_pixel_in_the_files_lies_where_the_affine_says(tmp_path_factory, rotation_deg, flip):
    voxels = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    affine = np.array(grid((6, 5, 4), (1.5, 2.0, 5.0), rotation_deg, flip))
    files = write_dicom(voxels, affine, tmp_path_factory.mktemp("dicom"))
    for k, file in enumerate(files):
        ds = pydicom.dcmread(file)
        x, y = np.split(np.array(ds.ImageOrientationPatient, float), 2)
        for row, column in np.ndindex(ds.Rows, ds.Columns):
            # DICOM PS3.3 C.7.6.2.1-1, with PixelSpacing as (between rows, between columns)
            lps = np.array(ds.ImagePositionPatient, float)
            lps = lps + x * ds.PixelSpacing[1] * column + y * ds.PixelSpacing[0] * row
            np.testing.assert_allclose(lps, (affine @ [column, row, k, 1])[:3], atol=1e-5)
        np.testing.assert_array_equal(ds.pixel_array, voxels[:, :, k].T)


def test_pixel_spacing_is_rows_first(tmp_path, voxels):
    ds = pydicom.dcmread(write_dicom(voxels, grid((6, 5, 4), (1.5, 2.0, 5.0)), tmp_path)[0])
    assert list(ds.PixelSpacing) == [2.0, 1.5]
    assert (ds.Rows, ds.Columns) == (5, 6)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_other_transfer_syntaxes_hold_the_same_pixels(tmp_path, voxels, syntax):
    files = write_dicom(voxels, grid((6, 5, 4), SPACING_MM), tmp_path, transfer_syntax=syntax)
    ds = pydicom.dcmread(files[2])
    assert ds.file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(ds.pixel_array, voxels[:, :, 2].T)


def test_the_same_call_writes_the_same_bytes(tmp_path, voxels):
    def digests(folder):
        files = write_dicom(voxels, grid((6, 5, 4), SPACING_MM), tmp_path / folder)
        return [(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]

    assert digests("a") == digests("b")


def test_uids_differ_between_slices_series_studies_and_patients(tmp_path, voxels):
    def read(folder, **names):
        files = write_dicom(voxels, grid((6, 5, 4), SPACING_MM), tmp_path / folder, **names)
        return [pydicom.dcmread(f) for f in files]

    one, other_series, other_patient = read("a"), read("b", series_number=2), read("c", patient_id="PHANTOM-2")
    assert len({ds.SOPInstanceUID for ds in one + other_series + other_patient}) == 12
    assert len({ds.SeriesInstanceUID for ds in one + other_series + other_patient}) == 3
    assert {ds.StudyInstanceUID for ds in one} == {ds.StudyInstanceUID for ds in other_series}
    assert {ds.FrameOfReferenceUID for ds in one} == {ds.FrameOfReferenceUID for ds in other_series}
    assert len({ds.StudyInstanceUID for ds in one + other_patient}) == 2
    assert all(len(ds.SOPInstanceUID) <= 64 and ds.SOPInstanceUID.is_valid for ds in one)
    assert all(ds.SOPClassUID == MRImageStorage for ds in one)


def test_neither_names_nor_numbers_tell_the_order(tmp_path, voxels):
    voxels = np.zeros((6, 5, 12), np.int16)
    files = write_dicom(voxels, grid((6, 5, 12), SPACING_MM), tmp_path / "a")
    numbers = [int(pydicom.dcmread(f).InstanceNumber) for f in files]
    assert sorted(numbers) == list(range(1, 13)) != numbers
    assert sorted(f.name for f in files) != [f.name for f in files]
    ordered = write_dicom(voxels, grid((6, 5, 12), SPACING_MM), tmp_path / "b", instance_numbers="ordered")
    assert [int(pydicom.dcmread(f).InstanceNumber) for f in ordered] == list(range(1, 13))


def test_a_slice_that_is_left_out_leaves_a_gap_and_changes_no_other(tmp_path, voxels):
    affine = grid((6, 5, 4), SPACING_MM)
    whole = write_dicom(voxels, affine, tmp_path / "a")
    gapped = write_dicom(voxels, affine, tmp_path / "b", leave_out=(1,))
    assert [f.read_bytes() for f in gapped] == [whole[k].read_bytes() for k in (0, 2, 3)]


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dicom3tools is not installed")
@pytest.mark.parametrize("syntax", [pydicom.uid.ExplicitVRLittleEndian, RLELossless])
def test_files_pass_dciodvfy(tmp_path, voxels, syntax):
    file = write_dicom(voxels, grid((6, 5, 4), SPACING_MM, (5, 6, 7)), tmp_path, transfer_syntax=syntax)[0]
    said = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True, check=False)
    assert "Error" not in said.stdout + said.stderr
    assert "Warning" not in said.stdout + said.stderr
    assert "MRImage" in said.stdout + said.stderr


# The demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo_studies(folder)


def test_the_demo_tells_of_every_file_that_it_wrote_once(demo):
    folder, known = demo
    told = Counter(f for study in known for f in study.files)
    assert told == Counter(f for f in folder.rglob("*") if f.is_file())
    assert all(f.parent == folder / study.name for study in known for f in study.files)


def test_the_demo_holds_what_a_night_must_cope_with(demo):
    expected = [study.expected for study in demo[1]]
    assert expected == [
        "finding",
        "nothing marked",
        "refused: missing slice",
        "refused: truncated",
        "refused: not DICOM",
    ]
    sides = [(lesion.side, min(lesion.radii_mm) > 10) for lesion in demo[1][0].lesions]
    assert sides == [("left", True), ("right", False)]
    assert demo[1][1].lesions == ()


def test_demo_studies_are_told_by_their_study_uid(demo):
    for study in demo[1]:
        if study.study_uid is not None:
            assert {pydicom.dcmread(f).StudyInstanceUID for f in study.files} == {study.study_uid}


def test_every_name_in_the_demo_is_invented_and_says_so(demo):
    for study in demo[1][:3]:
        ds = pydicom.dcmread(study.files[0])
        assert str(ds.PatientName).startswith("PHANTOM^")
        assert ds.PatientID.startswith("PHANTOM-")


def test_the_demos_truncated_file_lacks_pixels_of_a_slice_that_is_whole_elsewhere(demo):
    broken, whole = demo[1][3].files[0], demo[1][1].files
    content = broken.read_bytes()
    (source,) = [f for f in whole if f.name == broken.name]
    assert source.read_bytes().startswith(content)
    assert 96 * 112 < len(content) < 96 * 112 * 2
