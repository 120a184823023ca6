"""Lesions measure what geometry says: shapes with known sizes, and brute force over all corners on small ones."""

from itertools import combinations, product
from math import dist, hypot, pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from phantoms import AXIAL, DOUBLE_OBLIQUE, SAGITTAL, array_grid, ellipsoid

from medrec.findings import Rules, label, measure
from medrec.phantom import Head, Lesion, grid, render
from medrec.volume import Volume, midplane_left_mm

EVERYTHING = Rules(minimum_volume_mm3=0.0)
SPACINGS = [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (0.8, 1.4, 2.5)]
ANGLES = [AXIAL, (0.0, 0.0, 30.0), (20.0, 0.0, 0.0), DOUBLE_OBLIQUE, SAGITTAL]


def findings_of(mask, affine, rules=EVERYTHING, probability=None, midplane_mm=0.0):
    values = np.ones(mask.shape, np.float32) if probability is None else probability
    return measure(label(mask, affine, rules), values, affine, midplane_mm)


def only(mask, affine, **kwargs):
    findings = findings_of(mask, affine, **kwargs)
    assert len(findings) == 1
    return findings[0]


def filled(size, low, high):
    mask = np.zeros(size, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def world(affine, ijk):
    return affine[:3, :3] @ np.array(ijk) + affine[:3, 3]


# Volumes


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("rotation_deg", ANGLES)
@pytest.mark.parametrize("shift_mm", [(0.0, 0.0, 0.0), (0.3, -0.4, 0.9)])
def test_a_sphere_of_10_mm_is_4189_mm3_and_20_mm_across(spacing, rotation_deg, shift_mm):
    size = tuple(int(26 / s) + 2 for s in spacing)
    affine = array_grid(size, spacing, rotation_deg)
    found = only(ellipsoid(size, affine, shift_mm, (10.0, 10.0, 10.0)), affine)
    # Only voxels that the surface cuts can err: surface x mean width of a voxel / its volume of them, each by half a
    # voxel at random. Four standard deviations of that: 2% for 1 mm voxels, 5% for slices of 3 mm.
    cut = 4 * pi * 10**2 * sum(spacing) / 2 / np.prod(spacing)
    assert found.volume_mm3 == pytest.approx(4189, abs=4 * 0.5 * np.prod(spacing) * sqrt(cut))
    diagonal = hypot(*spacing)
    assert found.longest_3d_mm == pytest.approx(20, abs=diagonal)
    assert found.longest_axial_mm == pytest.approx(20, abs=diagonal)
    assert found.perpendicular_mm == pytest.approx(20, abs=diagonal)
    np.testing.assert_allclose(found.centroid_lps_mm, shift_mm, atol=0.1 * max(spacing))


def test_a_volume_counts_voxels_exactly():
    affine = array_grid((9, 9, 9), (0.5, 2.0, 3.0), DOUBLE_OBLIQUE)
    assert only(filled((9, 9, 9), (1, 2, 3), (4, 6, 8)), affine).volume_mm3 == pytest.approx(3 * 4 * 5 * 3.0)


# Lengths, exact


@pytest.mark.parametrize("rotation_deg", ANGLES)
def test_one_voxel_measures_its_diagonals(rotation_deg):
    affine = array_grid((5, 5, 5), (0.8, 1.4, 2.5), rotation_deg)
    found = only(filled((5, 5, 5), (2, 2, 2), (3, 3, 3)), affine)
    assert found.longest_axial_mm == pytest.approx(hypot(0.8, 1.4))
    assert found.longest_3d_mm == pytest.approx(hypot(0.8, 1.4, 2.5))
    assert (found.axial_slice, found.first_slice, found.last_slice) == (2, 2, 2)


def test_one_voxel_of_1_mm_measures_141_hundredths_both_ways():
    found = only(filled((3, 3, 3), (1, 1, 1), (2, 2, 2)), np.eye(4))
    assert found.longest_axial_mm == pytest.approx(sqrt(2))
    assert found.perpendicular_mm == pytest.approx(sqrt(2))
    assert found.longest_3d_mm == pytest.approx(sqrt(3))


@pytest.mark.parametrize("rotation_deg", ANGLES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_box_measures_its_diagonals(rotation_deg, spacing):
    size = (12, 12, 8)
    affine = array_grid(size, spacing, rotation_deg, centre_lps_mm=(40.0, -30.0, 20.0))
    found = only(filled(size, (3, 2, 1), (6, 10, 6)), affine)
    a, b, c = (n * s for n, s in zip((3, 8, 5), spacing, strict=True))
    assert found.longest_axial_mm == pytest.approx(hypot(a, b))
    assert found.longest_3d_mm == pytest.approx(hypot(a, b, c))
    # The longest chord at right angles to a rectangle's diagonal leaves a corner and ends on the long side.
    assert found.perpendicular_mm == pytest.approx(min(a, b) * hypot(a, b) / max(a, b))
    assert (found.first_slice, found.last_slice) == (1, 5)
    np.testing.assert_allclose(found.centroid_lps_mm, world(affine, (4, 5.5, 3)))
    corners = np.array([world(affine, c) for c in product((2.5, 5.5), (1.5, 9.5), (0.5, 5.5))])
    np.testing.assert_allclose(found.box_lps_mm, (corners.min(0), corners.max(0)))


@pytest.mark.parametrize("turn_deg", [0.0, 17.0, 45.0, 80.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 4.0), (0.8, 1.4, 4.0)])
def test_an_ellipse_measures_its_axes_within_a_voxel(turn_deg, spacing):
    size = (52, 52, 6)
    affine = array_grid(size, spacing, (0.0, 0.0, turn_deg))
    # Radii of 13 and 7 mm in the slice through the centre, less elsewhere. Centre between slices 2 and 3: moved to 3.
    found = only(ellipsoid(size, affine, (0.0, 0.0, 2.0), (13.0, 7.0, 6.0)), affine)
    assert found.axial_slice == 3
    assert found.longest_axial_mm == pytest.approx(26, abs=hypot(*spacing[:2]))
    assert found.perpendicular_mm == pytest.approx(14, abs=hypot(*spacing[:2]))


def test_a_hole_or_a_dent_does_not_shorten_a_diameter():
    ring = filled((9, 9, 3), (1, 1, 1), (8, 8, 2))
    ring[3:6, 3:6] = False
    whole = only(filled((9, 9, 3), (1, 1, 1), (8, 8, 2)), np.eye(4))
    found = only(ring, np.eye(4))
    assert found.longest_axial_mm == whole.longest_axial_mm
    assert found.perpendicular_mm == pytest.approx(whole.perpendicular_mm)
    assert found.volume_mm3 == whole.volume_mm3 - 9


# Lengths, against brute force


def corners_of(mask, affine, k=None):
    """World coordinates of all corners of all voxels of a mask, or of one slice's in its middle plane."""
    voxels = [v for v in np.argwhere(mask) if k is None or v[2] == k]
    steps = list(product((-0.5, 0.5), (-0.5, 0.5), (-0.5, 0.5) if k is None else (0.0,)))
    return np.array(sorted({tuple(v + s) for v in voxels for s in steps})) @ affine[:3, :3].T + affine[:3, 3]


def longest_chord(points, along, across):
    """The longest chord of the points' hull in the direction `across`, from all pairs of points."""
    u, v = points @ along, points @ across
    best = 0.0
    for at in u:
        hits = list(v[np.abs(u - at) < 1e-9])
        for a, b in combinations(range(len(u)), 2):
            if min(u[a], u[b]) < at - 1e-9 and at + 1e-9 < max(u[a], u[b]):
                hits.append(v[a] + (at - u[a]) / (u[b] - u[a]) * (v[b] - v[a]))
        best = max(best, max(hits) - min(hits))
    return best


small_masks = hnp.arrays(bool, st.tuples(*[st.integers(1, 4)] * 3)).filter(np.any)
lengths = st.floats(0.3, 5)


@settings(max_examples=60, deadline=None)
@given(small_masks, st.tuples(lengths, lengths, lengths), st.tuples(*[st.floats(-90, 90)] * 3), st.floats(-0.4, 0.4))
def test_measures_equal_brute_force_on_any_small_lesion(mask, spacing, rotation_deg, shear):
    affine = array_grid(mask.shape, spacing, rotation_deg)
    affine[:3, 2] += shear * affine[:3, 0]
    labels = mask.astype(np.int32)  # whatever its shape, it is one lesion here
    (found,) = measure(labels, np.ones(mask.shape, np.float32), affine, 0.0)
    assert found.longest_3d_mm == pytest.approx(max(dist(a, b) for a, b in combinations(corners_of(mask, affine), 2)))
    by_slice = {k: corners_of(mask, affine, k) for k in set(np.argwhere(mask)[:, 2])}
    longest = {k: max(dist(a, b) for a, b in combinations(c, 2)) for k, c in by_slice.items()}
    assert found.longest_axial_mm == pytest.approx(max(longest.values()))
    assert longest[found.axial_slice] == pytest.approx(max(longest.values()))
    a, b = (world(affine, e) for e in found.longest_axial_ends_ijk)
    c, d = (world(affine, e) for e in found.perpendicular_ends_ijk)
    assert dist(a, b) == pytest.approx(found.longest_axial_mm)
    assert dist(c, d) == pytest.approx(found.perpendicular_mm)
    assert np.dot(b - a, d - c) == pytest.approx(0, abs=1e-6)
    along = (b - a) / dist(a, b)
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    across = np.cross(normal / np.linalg.norm(normal), along)
    expected = longest_chord(by_slice[found.axial_slice], along, across)
    assert found.perpendicular_mm == pytest.approx(expected, abs=1e-6)
    assert {e[2] for e in (*found.longest_axial_ends_ijk, *found.perpendicular_ends_ijk)} == {found.axial_slice}
    every = corners_of(mask, affine)
    np.testing.assert_allclose(found.box_lps_mm, (every.min(0), every.max(0)), atol=1e-9)


SIZES = ("volume_mm3", "longest_axial_mm", "perpendicular_mm", "longest_3d_mm")


def a_lump(size=(20, 20, 10)):
    """An irregular lesion: two overlapping ellipsoids, with no two equal diameters."""
    affine = array_grid(size, (1.0, 1.2, 2.0))
    return ellipsoid(size, affine, (1, 0, 0), (6, 4, 5)) | ellipsoid(size, affine, (-2, 3, 3), (3, 5, 4))


@pytest.mark.parametrize("rotation_deg", ANGLES)
@pytest.mark.parametrize("centre", [(0.0, 0.0, 0.0), (123.0, -45.0, 67.0)])
def test_sizes_do_not_change_when_the_patient_turns_or_moves(rotation_deg, centre):
    mask = a_lump()
    here = only(mask, array_grid(mask.shape, (1.0, 1.2, 2.0)))
    there = only(mask, array_grid(mask.shape, (1.0, 1.2, 2.0), rotation_deg, centre_lps_mm=centre))
    for name in SIZES:
        assert getattr(there, name) == pytest.approx(getattr(here, name)), name


@pytest.mark.parametrize("flip", list(product((1, -1), repeat=3)))
def test_sizes_and_places_do_not_depend_on_how_the_array_runs(flip):
    mask = a_lump()
    affine = array_grid(mask.shape, (1.0, 1.2, 2.0))
    turned = affine.copy()
    for axis, sign in enumerate(flip):
        if sign < 0:
            turned[:3, 3] += (mask.shape[axis] - 1) * affine[:3, axis]
            turned[:3, axis] *= -1
    one, other = only(mask, affine), only(mask[:: flip[0], :: flip[1], :: flip[2]], turned)
    for name in (*SIZES, "centroid_lps_mm", "side"):
        assert getattr(one, name) == pytest.approx(getattr(other, name)), name
    np.testing.assert_allclose(one.box_lps_mm, other.box_lps_mm)


# Sides


def lump_at(left_mm, flip=(False, False, False), rotation_deg=AXIAL):
    size = (40, 40, 40)
    affine = array_grid(size, (3.0, 3.0, 3.0), rotation_deg, flip)
    return ellipsoid(size, affine, (left_mm, 5.0, -5.0), (9.0, 9.0, 9.0)), affine


@pytest.mark.parametrize("flip", list(product((False, True), repeat=3)))
@pytest.mark.parametrize("rotation_deg", [AXIAL, DOUBLE_OBLIQUE, SAGITTAL])
def test_left_is_the_patients_left_in_every_orientation(flip, rotation_deg):
    assert only(*lump_at(20.0, flip, rotation_deg)).side == "left"
    assert only(*lump_at(-20.0, flip, rotation_deg)).side == "right"
    assert only(*lump_at(2.0, flip, rotation_deg)).side == "both sides of the midline"


def test_sides_are_told_from_the_heads_middle_and_not_from_the_origin():
    mask, affine = lump_at(20.0)
    assert only(mask, affine, midplane_mm=45.0).side == "right"
    assert only(mask, affine, midplane_mm=18.0).side == "both sides of the midline"


def test_a_tenth_beyond_the_midline_is_still_one_side():
    mask = filled((20, 3, 3), (0, 1, 1), (20, 2, 2))
    affine = np.eye(4)
    assert only(mask, affine, midplane_mm=1.5).side == "left"  # 2 of 20 voxels beyond
    assert only(mask, affine, midplane_mm=2.5).side == "both sides of the midline"
    assert only(mask, affine, midplane_mm=17.5).side == "right"
    assert only(mask, affine, midplane_mm=16.5).side == "both sides of the midline"


@pytest.mark.parametrize("flip_i", [False, True])
def test_a_phantom_with_its_lesion_on_the_left_reads_left_and_its_mirror_right(flip_i):
    size = (48, 56, 20)
    for sign, side in ((1, "left"), (-1, "right")):
        lesion = Lesion((sign * 30.0, 0.0, 10.0), (14.0, 14.0, 14.0))
        affine = grid(size, (4.0, 4.0, 6.0), (5.0, 0.0, 0.0), (flip_i, False, False), (10.0, 0.0, 0.0))
        head = Head((lesion,), size, affine)
        voxels, mask = render(head)
        middle = midplane_left_mm(Volume(voxels.astype(np.float32), head.affine, "arbitrary", "a", "0" * 64))
        assert only(mask, head.affine, midplane_mm=middle).side == side == lesion.side


# Components


def test_voxels_that_touch_at_a_corner_are_one_lesion():
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert len(findings_of(mask, np.eye(4))) == 1
    mask[4, 4, 4] = True
    assert len(findings_of(mask, np.eye(4))) == 2


def test_lesions_come_largest_first_and_small_ones_not_at_all():
    affine = np.diag([0.5, 2.0, 3.0, 1.0])  # 3 mm3 a voxel
    mask = np.zeros((20, 6, 6), bool)
    mask[0:2, 0, 0] = True  # 6 mm3
    mask[4:9, 0, 0] = True  # 15 mm3
    mask[12:15, 3, 3] = True  # 9 mm3
    assert [f.volume_mm3 for f in findings_of(mask, affine)] == pytest.approx([15, 9, 6])
    kept = findings_of(mask, affine, Rules(minimum_volume_mm3=9.0))
    assert [(f.number, round(f.volume_mm3)) for f in kept] == [(1, 15), (2, 9)], "at the minimum counts"
    assert findings_of(mask, affine, Rules(minimum_volume_mm3=15.5)) == ()


def test_an_empty_mask_has_no_findings():
    assert findings_of(np.zeros((4, 4, 4), bool), np.eye(4)) == ()


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(bool, (5, 5, 4)), st.integers(1, 6))
def test_every_voxel_is_in_its_lesion_or_in_one_that_is_too_small(mask, minimum):
    labels = label(mask, np.eye(4), Rules(float(minimum)))
    assert not labels[~mask].any()
    assert sorted(set(labels[labels > 0])) == list(range(1, labels.max() + 1))
    sizes = [f.volume_mm3 for f in findings_of(mask, np.eye(4), Rules(float(minimum)))]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == (labels > 0).sum()
    dropped = label(mask & (labels == 0), np.eye(4), EVERYTHING)
    assert np.bincount(dropped.ravel())[1:].max(initial=0) < minimum


def test_equal_lesions_are_numbered_the_same_way_every_time():
    mask = filled((9, 9, 3), (1, 1, 1), (3, 3, 2)) | filled((9, 9, 3), (5, 1, 1), (7, 3, 2))
    first = findings_of(mask, np.eye(4))
    assert [f.centroid_lps_mm for f in first] == [(1.5, 1.5, 1.0), (5.5, 1.5, 1.0)], "in the order of the array"
    assert all(findings_of(mask.copy(order="F"), np.eye(4)) == first for _ in range(3))


def test_of_equal_slices_the_first_is_measured():
    found = only(filled((9, 9, 9), (2, 2, 3), (7, 5, 8)), np.eye(4))
    assert found.axial_slice == 3


def test_probability_is_the_mean_within_the_lesion_alone():
    mask = filled((8, 8, 8), (1, 1, 1), (3, 3, 3)) | filled((8, 8, 8), (5, 5, 5), (6, 7, 6))
    probability = np.full(mask.shape, 0.1, np.float32)
    probability[1:3, 1:3, 1:3] = np.linspace(0.6, 1.0, 8).reshape(2, 2, 2)
    probability[5, 5, 5], probability[5, 6, 5] = 0.5, 0.7
    large, small = findings_of(mask, np.eye(4), probability=probability)
    assert large.probability == pytest.approx(0.8)
    assert small.probability == pytest.approx(0.6)


def test_a_lesion_that_touches_all_borders_is_measured():
    found = only(np.ones((4, 5, 6), bool), np.diag([2.0, 1.0, 3.0, 1.0]))
    assert found.longest_3d_mm == pytest.approx(hypot(8, 5, 18))
    assert found.box_lps_mm == ((-1.0, -0.5, -1.5), (7.0, 4.5, 16.5))


def test_measuring_changes_nothing():
    mask, affine = lump_at(20.0)
    labels = label(mask, affine, EVERYTHING)
    probability = np.ones(mask.shape, np.float32)
    for array in (mask, affine, labels, probability):
        array.setflags(write=False)
    assert measure(labels, probability, affine, 0.0)
