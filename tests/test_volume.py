"""Voxels lie where DICOM PS3.3 C.7.6.2.1.1 puts them, and geometry is told from a few known shapes."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantoms import AXIAL, DOUBLE_OBLIQUE, SAGITTAL, array_grid, ellipsoid, stack

from medrec.errors import ScanError
from medrec.phantom import Head, grid, render
from medrec.series import Series, arrange
from medrec.volume import (
    Volume,
    affine_of,
    foreground,
    head_box,
    midplane_left_mm,
    resample,
    spacing_mm,
    tilt_from_axial_deg,
    to_world,
    voxel_volume_mm3,
)

ANGLES = {
    "axial": AXIAL,
    "feet first": (0.0, 180.0, 0.0),
    "prone": (0.0, 0.0, 180.0),
    "sagittal": SAGITTAL,
    "coronal": (90.0, 0.0, 0.0),
    "oblique": (20.0, 0.0, 0.0),
    "double oblique": DOUBLE_OBLIQUE,
}


def volume(voxels, affine=None, series="a"):
    return Volume(
        np.asarray(voxels, np.float32), np.eye(4) if affine is None else affine, "arbitrary", series, "0" * 64
    )


def pixel_mm(file, column, row):
    """Where the centre of a pixel lies, by equation C.7.6.2.1-1 written out, from one file alone."""
    x, y = file.orientation[:3], file.orientation[3:]
    between_rows, between_columns = file.spacing_mm
    return [
        s + a * between_columns * column + b * between_rows * row
        for s, a, b in zip(file.position_mm, x, y, strict=True)
    ]


# The affine


@pytest.mark.parametrize("rotation_deg", ANGLES.values(), ids=ANGLES)
@pytest.mark.parametrize("flip", list(product((False, True), repeat=3)))
def test_affine_puts_every_pixel_where_its_own_file_puts_it(rotation_deg, flip):
    size = (5, 4, 3)
    series = arrange(stack(grid(size, (1.5, 2.0, 5.0), rotation_deg, flip, (30.0, -20.0, 10.0)), size))
    assert isinstance(series, Series)
    affine = affine_of(series)
    for i, j, k in np.ndindex(size):
        expected = pixel_mm(series.slices[k][0], column=i, row=j)
        np.testing.assert_allclose(to_world(affine, np.array([[i, j, k]]))[0], expected, atol=1e-6)


def test_affine_of_a_plain_axial_scan_is_known_by_heart():
    # Columns 1.5 mm apart go to the left, rows 2 mm apart to the back, slices 5 mm apart to the head.
    affine = affine_of(arrange(stack(np.array([[1.5, 0, 0, -90], [0, 2, 0, -120], [0, 0, 5, -40], [0, 0, 0, 1.0]]))))
    np.testing.assert_allclose(affine, [[1.5, 0, 0, -90], [0, 2, 0, -120], [0, 0, 5, -40], [0, 0, 0, 1]])


def test_affine_is_the_same_whichever_end_was_acquired_first():
    size, spacing = (12, 10, 6), (1.5, 2.0, 5.0)
    upward = affine_of(arrange(stack(grid(size, spacing, DOUBLE_OBLIQUE), size)))
    downward = affine_of(arrange(stack(grid(size, spacing, DOUBLE_OBLIQUE, (False, False, True)), size)))
    np.testing.assert_allclose(upward, downward, atol=1e-6)


@pytest.mark.parametrize("rotation_deg", ANGLES.values(), ids=ANGLES)
def test_spacing_and_voxel_volume_do_not_depend_on_orientation(rotation_deg):
    affine = array_grid((4, 4, 4), (0.5, 2.0, 5.0), rotation_deg, (True, False, False))
    np.testing.assert_allclose(spacing_mm(affine), [0.5, 2.0, 5.0])
    assert voxel_volume_mm3(affine) == pytest.approx(5.0)


def test_a_sheared_voxel_holds_base_times_height():
    affine = np.eye(4)
    affine[:3, 2] = (0, 3, 4)  # 5 mm along the shear, but 4 mm high
    assert voxel_volume_mm3(affine) == pytest.approx(4.0)


@settings(deadline=None)
@given(st.tuples(*[st.floats(-180, 180)] * 3), st.tuples(*[st.floats(0.2, 9)] * 3))
def test_inverse_affine_undoes_the_affine(rotation_deg, spacing):
    affine = array_grid((7, 8, 9), spacing, rotation_deg)
    points = np.array([[0, 0, 0], [6, 7, 8], [1.5, 2.5, -3.5]])
    np.testing.assert_allclose(to_world(np.linalg.inv(affine), to_world(affine, points)), points, atol=1e-9)


# Volume


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(3), "4x4"),
        (np.diag([1.0, 1, 0, 1]), "invertible"),
        (np.diag([1.0, np.nan, 1, 1]), "finite"),
        (np.diag([1.0, np.inf, 1, 1]), "finite"),
    ],
)
def test_a_volume_refuses_an_affine_that_is_none(affine, words):
    with pytest.raises(ScanError, match=words):
        volume(np.zeros((2, 2, 2)), affine)


def test_a_volume_refuses_voxels_without_three_axes():
    with pytest.raises(ScanError, match="axes"):
        volume(np.zeros((2, 2)))


def test_a_volume_cannot_be_written_to():
    v = volume(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="read-only"):
        v.voxels[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        v.affine_ijk_to_lps[0, 0] = 2


# Resampling


def ramp(affine, size):
    """A volume that says of each voxel L + 2 P + 3 S: linear interpolation must give it back exactly."""
    ijk = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), -1)
    return volume((to_world(affine, ijk.reshape(-1, 3)) @ [1, 2, 3]).reshape(size) + 500, affine)


def test_resampling_onto_its_own_grid_changes_nothing():
    v = ramp(array_grid((8, 7, 5), (1, 2, 5), DOUBLE_OBLIQUE), (8, 7, 5))
    np.testing.assert_array_equal(resample(v, v), v.voxels)


def test_resampling_shifts_by_whole_voxels():
    rng = np.random.default_rng(0)
    moving = volume(rng.uniform(1, 2, (8, 7, 5)), array_grid((8, 7, 5), (1, 2, 5)))
    shifted = array_grid((8, 7, 5), (1, 2, 5))
    shifted[:3, 3] += (2 * 1, 1 * 2, 0)  # the fixed grid begins two columns to the left and one row further back
    out = resample(moving, volume(np.zeros((8, 7, 5)), shifted))
    np.testing.assert_allclose(out[:-2, :-1], moving.voxels[2:, 1:], rtol=1e-6)
    assert not out[-2:].any()
    assert not out[:, -1:].any()


@pytest.mark.parametrize("rotation_deg", ANGLES.values(), ids=ANGLES)
def test_resampling_from_another_orientation_keeps_every_place(rotation_deg):
    moving = ramp(array_grid((24, 24, 24), (2, 2, 2), rotation_deg), (24, 24, 24))
    fixed = ramp(array_grid((8, 6, 5), (1.5, 2.5, 3), (5.0, 5.0, 5.0)), (8, 6, 5))
    out = resample(moving, fixed)
    assert out.shape == (8, 6, 5)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, fixed.voxels, rtol=1e-5)


@pytest.mark.parametrize("rotation_deg", [AXIAL, DOUBLE_OBLIQUE])
@pytest.mark.parametrize("drift_mm", [0.0, 0.01])
def test_outermost_slices_survive_resampling_between_matrix_sizes(rotation_deg, drift_mm):
    # T1 with 2 mm pixels and FLAIR with 1 mm pixels, the same slices but for rounding in their positions.
    moving = volume(np.full((8, 8, 5), 100), array_grid((8, 8, 5), (2, 2, 5), rotation_deg))
    affine = array_grid((16, 16, 5), (1, 1, 5), rotation_deg)
    affine[:3, 3] -= drift_mm * affine[:3, 2] / 5
    out = resample(moving, volume(np.zeros((16, 16, 5)), affine))
    np.testing.assert_allclose(out[2:-2, 2:-2], 100, rtol=0.01)


def test_resampling_finds_nothing_where_nothing_was_scanned():
    moving = volume(np.full((4, 4, 4), 100), array_grid((4, 4, 4), (1, 1, 1)))
    far = array_grid((4, 4, 4), (1, 1, 1), centre_lps_mm=(50.0, 0.0, 0.0))
    assert not resample(moving, volume(np.zeros((4, 4, 4)), far)).any()


# Orientation and the head


@pytest.mark.parametrize(
    ("rotation_deg", "tilt_deg"),
    [
        (AXIAL, 0),
        ((0.0, 180.0, 0.0), 0),
        ((0.0, 0.0, 35.0), 0),
        ((20.0, 0.0, 0.0), 20),
        ((0.0, -12.5, 77.0), 12.5),
        ((90.0, 0.0, 0.0), 90),
        (SAGITTAL, 90),
    ],
)
def test_tilt_is_the_angle_by_which_the_stack_was_turned(rotation_deg, tilt_deg):
    assert tilt_from_axial_deg(array_grid((4, 4, 4), (1, 2, 5), rotation_deg)) == pytest.approx(tilt_deg, abs=1e-6)


SIZE = (48, 56, 16)


def head(rotation_deg=AXIAL, flip=(False, False, False), centre=(0.0, 0.0, 0.0), noise=0.03, size=SIZE):
    affine = grid(size, (4.0, 4.0, 8.0), rotation_deg, flip, centre)
    made = Head((), size, affine, noise=noise, seed=3)
    return volume(render(made)[0], made.affine)


@pytest.mark.parametrize("flip", [(False, False, False), (True, False, False), (True, True, False)])
@pytest.mark.parametrize("off_mm", [-12.0, 0.0, 9.0])
def test_midplane_is_the_heads_and_not_the_images(flip, off_mm):
    # The head lies at the origin whatever the grid around it; its skull is symmetric.
    assert midplane_left_mm(head(flip=flip, centre=(off_mm, 0.0, 0.0))) == pytest.approx(0, abs=2.0)


@pytest.mark.parametrize("rotation_deg", [(8.0, 0.0, 0.0), (0.0, 0.0, 10.0), DOUBLE_OBLIQUE])
def test_midplane_does_not_move_when_the_grid_turns(rotation_deg):
    assert midplane_left_mm(head(rotation_deg)) == pytest.approx(0, abs=3.0)


def test_midplane_of_a_sagittal_scan_is_found_across_its_slices():
    size = (56, 48, 40)
    made = Head((), size, grid(size, (4.0, 4.0, 5.0), SAGITTAL), seed=3)
    assert midplane_left_mm(volume(render(made)[0], made.affine)) == pytest.approx(0, abs=3.0)


def test_an_image_without_tissue_has_no_midplane_and_no_head():
    with pytest.raises(ScanError, match="no tissue"):
        midplane_left_mm(volume(np.zeros((4, 4, 4))))
    with pytest.raises(ScanError, match="no tissue"):
        head_box(np.zeros((4, 4, 4), bool))


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.04])
@pytest.mark.parametrize("centre", [(0.0, 0.0, 0.0), (14.0, -10.0, 0.0)])
def test_head_box_holds_the_head_wherever_it_lies_and_whatever_the_noise(noise, centre):
    # Scalp: 75 and 95 mm to each side of the origin, in voxels of 4 mm. The grid's centre is `centre`.
    first_i, end_i, first_j, end_j = head_box(foreground(head(centre=centre, noise=noise).voxels))
    middle = (np.array(SIZE[:2]) / 2) - np.array(centre[:2]) / 4
    assert (first_i, end_i) == pytest.approx((middle[0] - 75 / 4, middle[0] + 75 / 4), abs=1.5)
    assert (first_j, end_j) == pytest.approx((middle[1] - 95 / 4, middle[1] + 95 / 4), abs=1.5)


def test_head_box_is_exact_and_passes_over_specks():
    tissue = np.zeros((20, 30, 10), bool)
    tissue[4:9, 11:25, 2:8] = True
    tissue[0, 0, 0] = tissue[19, 29, 9] = True
    assert head_box(tissue) == (4, 9, 11, 25)


def test_foreground_keeps_tissue_and_drops_air_at_any_gain():
    made = head().voxels
    for gain in (0.01, 1.0, 50.0):
        tissue = foreground(made * np.float32(gain))
        assert not tissue[:3].any(), "air beside the head"
        assert tissue[20:28, 10:46, 8].mean() > 0.9, "brain"


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-3, 3)] * 3))
def test_ellipsoid_helper_agrees_with_its_volume(centre):
    # The tests' own yardstick is checked too: 4/3 pi abc within the voxels that its surface can cut.
    size, affine = (24, 24, 24), array_grid((24, 24, 24), (1, 1, 1))
    count = ellipsoid(size, affine, centre, (8.0, 6.0, 7.0)).sum()
    assert count == pytest.approx(4 / 3 * np.pi * 8 * 6 * 7, rel=0.03)
