"""A stack is what DICOM PS3.3 C.7.6.2 says, or it is refused for a named reason."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantoms import AXIAL, DOUBLE_OBLIQUE, SAGITTAL, scan_file, stack

from medrec.phantom import grid
from medrec.series import Reason, Series, Skipped, arrange, group

SIZE = (12, 10, 6)
SPACING_MM = (1.5, 2.0, 5.0)
FEET_FIRST = (0.0, 180.0, 0.0)
ORIENTATIONS = {
    "axial": AXIAL,
    "feet first": FEET_FIRST,
    "sagittal": SAGITTAL,
    "coronal": (90.0, 0.0, 0.0),
    "oblique": (20.0, 0.0, 0.0),
    "double oblique": DOUBLE_OBLIQUE,
}


def axial(size=SIZE, decimals=9):
    return stack(grid(size, SPACING_MM), size, decimals)


def moved(file, mm):
    return replace(file, position_mm=tuple(np.add(file.position_mm, mm).tolist()))


def reason_of(files):
    """The reason of a refusal, after checking that no file got lost in it."""
    result = arrange(files)
    assert isinstance(result, Skipped), "should have been refused"
    assert sorted(f.ordinal for f in result.files) == sorted(f.ordinal for f in files)
    assert result.what == files[0].series
    return result.reason


def arranged(files):
    """The series, after checking that it holds each file once."""
    result = arrange(files)
    assert isinstance(result, Series), str(result)
    assert sorted(f.ordinal for f in result.files) == sorted(f.ordinal for f in files)
    return result


# Order and conservation


@settings(deadline=None)
@given(st.permutations(axial()))
def test_order_of_files_is_irrelevant(files):
    series = arranged(files)
    assert [f.ordinal for f in series.files] == [0, 1, 2, 3, 4, 5]
    assert series == arrange(axial())


@settings(deadline=None)
@given(st.permutations(axial()[:2] + axial()[3:]))
def test_order_of_files_is_irrelevant_to_a_refusal(files):
    assert arrange(files) == arrange(axial()[:2] + axial()[3:])


def test_order_of_files_is_irrelevant_to_copies_and_rounded_orientations():
    files = axial(size=(12, 10, 3))
    files[1] = replace(files[1], orientation=(1.0, 0.0004, 0.0, -0.0004, 1.0, 0.0))
    files.append(replace(files[2], sha256="f" * 64, ordinal=3))
    assert len({repr(arrange(list(order))) for order in permutations(files)}) == 1


def test_slices_follow_position_and_not_instance_names_or_digests():
    files = axial()
    names = [replace(f, instance=f"instance {9 - k}", sha256=f"{k * 7 % 5:064x}") for k, f in enumerate(files)]
    assert [f.ordinal for f in arranged(names).files] == [0, 1, 2, 3, 4, 5]


def test_slices_are_ordered_along_the_normal_even_when_acquired_against_it():
    backwards = stack(grid(SIZE, SPACING_MM, flip=(False, False, True)), SIZE)
    assert [f.ordinal for f in arranged(backwards).files] == [5, 4, 3, 2, 1, 0]


def test_grouping_keeps_every_file_once_and_forgets_the_order():
    files = [
        replace(f, study=study, series=series, ordinal=10 * n + f.ordinal)
        for n, (study, series) in enumerate([("b", "x"), ("a", "y"), ("a", "z")])
        for f in axial()
    ]
    studies = group(files)
    assert [s.study for s in studies] == ["a", "b"]
    assert sorted(f.ordinal for s in studies for f in s.files) == sorted(f.ordinal for f in files)
    assert studies == group(reversed(files))


def test_grouping_orders_series_by_number_and_numberless_ones_last():
    numbered = [scan_file(series=name, series_number=n) for name, n in (("p", None), ("q", 30), ("r", 4))]
    assert [files[0].series for files in group(numbered)[0].series] == ["r", "q", "p"]


def test_grouping_tells_all_patients_of_a_study():
    files = [scan_file(patient="two", ordinal=1), scan_file(patient="one")]
    assert group(files)[0].patients == ("one", "two")


# What is accepted


@pytest.mark.parametrize("rotation_deg", ORIENTATIONS.values(), ids=ORIENTATIONS)
@pytest.mark.parametrize("flip", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_every_orientation_is_a_stack_with_its_own_direction(rotation_deg, flip):
    files = stack(grid(SIZE, SPACING_MM, rotation_deg, flip), SIZE)
    series = arranged(files)
    first, second = (np.array(c[0].position_mm) for c in series.slices[:2])
    np.testing.assert_allclose(series.direction_mm, second - first, atol=1e-8)
    row, column = np.split(np.array(files[0].orientation), 2)
    assert np.dot(series.direction_mm, np.cross(row, column)) == pytest.approx(5.0)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(-40, 40)] * 3),
    st.floats(0.8, 6),
    st.integers(3, 60),
    st.tuples(*[st.floats(-200, 200)] * 3),
)
def test_positions_rounded_to_a_hundredth_of_a_millimetre_are_accepted(rotation_deg, gap_mm, slices, centre):
    size = (12, 10, slices)
    files = stack(grid(size, (1, 1, gap_mm), rotation_deg, centre_lps_mm=centre), size, decimals=2)
    assert np.linalg.norm(arranged(files).direction_mm) == pytest.approx(gap_mm, abs=0.01)


def test_sixty_rounded_slices_do_not_add_up_their_rounding():
    size = (12, 10, 60)
    affine = grid(size, (1, 1, 3.333), DOUBLE_OBLIQUE)
    series = arranged(stack(affine, size, decimals=2))
    np.testing.assert_allclose(series.direction_mm, np.array(affine)[:3, 2], atol=0.01 / 59 + 1e-9)
    assert series.extent_mm == pytest.approx(60 * 3.333, abs=0.02)


def test_the_worst_rounding_of_thin_oblique_slices_is_accepted():
    # A normal along (1, 1, 1) and every position off by half of 0.01 mm along all axes, to and fro.
    size = (12, 10, 9)
    affine = grid(size, (1, 1, 0.8), (np.degrees(np.arcsin(3**-0.5)), 45.0, 0.0))
    normal = np.array(affine)[:3, 2] / 0.8
    assert np.abs(normal) == pytest.approx([3**-0.5] * 3)
    files = [moved(f, 0.005 * np.sign(normal) * (-1) ** f.ordinal) for f in stack(affine, size)]
    arranged(files)


def test_a_copy_whose_position_was_written_with_fewer_digits_is_a_copy():
    files = stack(grid(SIZE, SPACING_MM, DOUBLE_OBLIQUE), SIZE)
    rounded = stack(grid(SIZE, SPACING_MM, DOUBLE_OBLIQUE), SIZE, decimals=2)[2]
    arranged([*files, replace(rounded, sha256="a" * 64, ordinal=6)])


def test_two_slices_are_a_stack():
    assert len(arranged(axial(size=(12, 10, 2))).slices) == 2


def test_copies_of_a_slice_count_once_and_are_all_kept():
    files = axial()
    series = arranged([*files, replace(files[2], sha256="a" * 64, ordinal=6)])
    assert [len(copies) for copies in series.slices] == [1, 1, 2, 1, 1, 1]
    assert {f.ordinal for f in series.slices[2]} == {2, 6}


@pytest.mark.parametrize("lost", ["position_mm", "orientation", "spacing_mm"])
def test_a_copy_that_lost_its_geometry_does_not_poison_the_whole_slice_beside_it(lost):
    files = axial()
    for k in (0, 3):
        # The digest sorts the broken copy first.
        broken = replace(files[k], sha256="0" * 64, ordinal=6, **{lost: None})
        series = arranged([broken, *files])
        assert [f.ordinal for f in series.slices[k]] == [k, 6], "the whole one must lead: it has the geometry"


def test_a_slice_of_which_no_copy_has_geometry_is_refused():
    files = axial()
    files[3] = replace(files[3], position_mm=None)
    twice = [*files, replace(files[3], sha256="a" * 64, ordinal=6)]
    assert reason_of(twice) is Reason.MISSING_POSITION


# What is refused


@pytest.mark.parametrize("gone", [1, 2, 3, 4])
def test_a_missing_slice_is_named(gone):
    files = axial()
    del files[gone]
    assert reason_of(files) is Reason.MISSING_SLICE
    assert f"10.00 mm between slices {gone} and {gone + 1}, where 5.00 mm" in arrange(files).detail


def test_a_missing_slice_is_named_in_the_shortest_series_that_can_show_it():
    files = axial(size=(12, 10, 4))
    assert reason_of([files[0], files[1], files[3]]) is Reason.MISSING_SLICE


@settings(deadline=None)
@given(st.sets(st.integers(1, 18), min_size=1, max_size=9))
def test_whatever_is_missing_inside_is_never_passed_over(gone):
    size = (12, 10, 20)
    files = [f for f in stack(grid(size, SPACING_MM, DOUBLE_OBLIQUE), size) if f.ordinal not in gone]
    kept = np.diff([f.ordinal for f in files])
    assert len(set(kept)) == 1 or reason_of(files) in (Reason.MISSING_SLICE, Reason.IRREGULAR)


@pytest.mark.parametrize("shift_mm", [0.3, -0.3, 2.0, -2.0])
def test_an_irregular_distance_is_refused(shift_mm):
    files = axial()
    files[2] = moved(files[2], (0, 0, shift_mm))
    assert reason_of(files) is Reason.IRREGULAR


def test_distances_that_drift_within_the_tolerance_are_refused_when_they_add_up():
    files = axial(size=(12, 10, 60))
    drifted = [moved(f, (0, 0, 0.001 * f.ordinal**2)) for f in files]  # steps of 5.00 to 5.12 mm
    assert reason_of(drifted) is Reason.IRREGULAR


@pytest.mark.parametrize("degrees", [2.0, 15.0, -15.0])
def test_a_gantry_tilt_is_told_from_positions(degrees):
    tilted = arrange([moved(f, (0, 5 * f.ordinal * np.tan(np.radians(degrees)), 0)) for f in axial()])
    assert tilted.gantry_tilt_deg == pytest.approx(abs(degrees), abs=1e-3)
    assert tilted.direction_mm == pytest.approx((0, 5 * np.tan(np.radians(degrees)), 5))


def test_positions_rounded_by_a_scanner_are_no_tilt():
    rounded = [moved(f, (0, 0.01 * (f.ordinal % 2), 0)) for f in axial()]
    assert arrange(rounded).gantry_tilt_deg == 0


def test_a_slice_that_is_shifted_sideways_is_refused():
    files = axial()
    files[3] = moved(files[3], (1, 0, 0))
    assert reason_of(files) is Reason.IRREGULAR


def test_different_slices_at_one_position_are_refused():
    files = axial()
    again = [replace(f, sha256=f"{k:064x}", instance=f"again {k}", ordinal=6 + k) for k, f in enumerate(files)]
    assert reason_of(files + again) is Reason.SAME_POSITION
    assert reason_of(files + again[2:3]) is Reason.SAME_POSITION


def test_copies_at_different_positions_are_refused():
    files = axial()
    copy = moved(replace(files[2], sha256="a" * 64, ordinal=6), (0, 0, 1))
    assert reason_of([*files, copy]) is Reason.CONFLICTING_COPIES


def test_one_instance_uid_for_all_slices_is_refused():
    assert reason_of([replace(f, instance="same") for f in axial()]) is Reason.CONFLICTING_COPIES


def test_one_slice_and_its_copy_are_no_volume():
    assert reason_of([scan_file()]) is Reason.TOO_FEW_SLICES
    assert reason_of([scan_file(), scan_file(sha256="a" * 64, ordinal=1)]) is Reason.TOO_FEW_SLICES


TILTED_BY_1_DEG = (1.0, 0.0, 0.0, 0.0, float(np.cos(0.0175)), float(np.sin(0.0175)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"position_mm": None}, Reason.MISSING_POSITION),
        ({"orientation": None}, Reason.MISSING_ORIENTATION),
        ({"spacing_mm": None}, Reason.MISSING_SPACING),
        ({"rows": 11}, Reason.MIXED),
        ({"columns": 11}, Reason.MIXED),
        ({"modality": "CT"}, Reason.MIXED),
        ({"frame_of_reference": "other"}, Reason.MIXED),
        ({"frame_of_reference": None}, Reason.MIXED),
        ({"spacing_mm": (2.0, 1.6)}, Reason.MIXED),
        ({"spacing_mm": (2.0, -1.5)}, Reason.BAD_GEOMETRY),
        ({"orientation": TILTED_BY_1_DEG}, Reason.MIXED),
        ({"orientation": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)}, Reason.MIXED),
        ({"frames": 3}, Reason.MULTI_FRAME),
        ({"photometric": "RGB"}, Reason.NOT_GREYSCALE),
        ({"photometric": "MONOCHROME1"}, Reason.NOT_GREYSCALE),
    ],
)
@pytest.mark.parametrize("where", [0, 3, 5])
def test_one_file_that_differs_is_the_named_reason(change, reason, where):
    files = axial()
    files[where] = replace(files[where], **change)
    assert reason_of(files) is reason


@pytest.mark.parametrize(
    "change",
    [
        {"spacing_mm": (0.0, 1.5)},
        {"spacing_mm": (-2.0, 1.5)},
        {"spacing_mm": (float("nan"), 1.5)},
        {"spacing_mm": (1e-9, 1.5)},
        {"spacing_mm": (2.0, 1e9)},
        {"orientation": (0.0,) * 6},
        {"orientation": (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)},
        {"orientation": (1.0, 0.0, 0.0, 0.0, 2.0, 0.0)},
        {"orientation": (1.0, 0.0, 0.0, 0.1, 0.995, 0.0)},
        {"orientation": (float("nan"),) * 6},
        {"orientation": (1.0, 0.0, 0.0, 0.0, float("nan"), 0.0)},
        {"position_mm": (float("nan"), 0.0, 0.0)},
        {"position_mm": (0.0, float("inf"), 0.0)},
        {"position_mm": (0.0, 0.0, 1e300)},
    ],
    ids=str,
)
def test_impossible_geometry_is_refused(change):
    assert reason_of([replace(f, **change) for f in axial()]) is Reason.BAD_GEOMETRY
    files = axial()
    files[4] = replace(files[4], **change)
    assert reason_of(files) in (Reason.BAD_GEOMETRY, Reason.MIXED), "nor does it slip through in one file"


def test_a_refusal_reads_as_a_sentence_without_any_identifier():
    files = axial()
    del files[2]
    text = str(arrange(files))
    assert text.startswith("missing slice: ")
    assert "instance" not in text
    assert "series" not in text


def test_arranging_changes_nothing():
    files = axial()[::-1]
    before = list(files)
    arrange(files)
    assert files == before
