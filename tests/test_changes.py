"""Lesions of known size and place on two grids: which is which, what grew, and of what nothing may be said."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantoms import array_grid, ellipsoid

from medrec.changes import Change, Measured, Repeatability, compare
from medrec.findings import Rules, label, measure
from medrec.phantom import Triple

HERE = Repeatability(0.2, 0.5, 4.0, 1000.0, "a test")
NOWHERE = np.eye(4)
UNCHANGED = "no change beyond repeatability"
PLAIN = array_grid((40, 44, 30), (2.0, 2.0, 3.0))
OBLIQUE = array_grid((52, 40, 34), (1.5, 2.2, 2.6), (11.0, -17.0, 23.0))
ANISOTROPIC = array_grid((64, 60, 14), (1.3, 1.4, 6.5), (0.0, 8.0, 0.0))
SIZES = {id(PLAIN): (40, 44, 30), id(OBLIQUE): (52, 40, 34), id(ANISOTROPIC): (64, 60, 14)}
Ball = tuple[Triple, float]


def measured(affine: npt.NDArray[np.float64], *balls: Ball, minimum_mm3: float = 300.0) -> Measured:
    size = SIZES[id(affine)]
    mask = np.zeros(size, bool)
    for centre, radius in balls:
        mask |= ellipsoid(size, affine, centre, (radius, radius, radius))
    labels = label(mask, affine, Rules(minimum_mm3))
    findings = measure(labels, mask.astype(np.float32), affine, None)
    return Measured(labels, affine, findings, minimum_mm3)


def only(changes: tuple[Change, ...]) -> Change:
    (change,) = changes
    return change


@pytest.mark.parametrize("before", [PLAIN, OBLIQUE, ANISOTROPIC])
@pytest.mark.parametrize("now", [PLAIN, OBLIQUE, ANISOTROPIC])
def test_a_ball_of_twice_the_volume_has_grown_and_the_same_ball_has_not_on_any_grid(
    before: npt.NDArray[np.float64], now: npt.NDArray[np.float64]
) -> None:
    ball: Ball = ((3.0, -2.0, 1.0), 12.0)
    twice: Ball = (ball[0], 12.0 * 2 ** (1 / 3))
    grown = only(compare(measured(now, twice), measured(before, ball), NOWHERE, HERE))
    assert (grown.kind, grown.word) == ("same", "grown")
    assert grown.volume_change_percent == pytest.approx(100, abs=12)
    shrunk = only(compare(measured(now, ball), measured(before, twice), NOWHERE, HERE))
    assert (shrunk.word, shrunk.volume_change_percent) == ("shrunk", pytest.approx(-50, abs=6))
    same = only(compare(measured(now, ball), measured(before, ball), NOWHERE, HERE))
    assert same.word == "no change beyond repeatability"


def test_a_head_that_lies_otherwise_is_followed() -> None:
    shift = np.eye(4)
    shift[:3, 3] = (14.0, -9.0, 6.0)  # from LPS of now to LPS of before
    changes = compare(
        measured(PLAIN, ((-8.0, 4.0, -2.0), 11.0)), measured(OBLIQUE, ((6.0, -5.0, 4.0), 11.0)), shift, HERE
    )
    assert only(changes).word == "no change beyond repeatability"
    assert only(changes).overlap > 0.9


def test_what_only_one_study_shows_is_new_or_gone() -> None:
    a, b = ((-16.0, 0.0, 0.0), 9.0), ((16.0, 0.0, 0.0), 9.0)
    one, both = measured(PLAIN, a), measured(OBLIQUE, a, b)
    assert {c.word: c.now for c in compare(one, both, NOWHERE, HERE)} == {UNCHANGED: (1,), "gone": ()}
    told = {c.word: c for c in compare(both, one, NOWHERE, HERE)}
    assert set(told) == {UNCHANGED, "new"}
    assert (told["new"].before, told["new"].volume_change_percent) == ((), None)


def test_nothing_is_new_or_gone_where_the_other_study_does_not_reach() -> None:
    up = np.eye(4)
    up[2, 3] = 60.0  # the other study was made 60 mm farther down
    change = only(compare(measured(PLAIN, ((0.0, 0.0, 20.0), 10.0)), measured(PLAIN), up, HERE))
    assert (change.word, change.why) == ("not told", "the earlier study does not reach this place")
    change = only(compare(measured(PLAIN), measured(PLAIN, ((0.0, 0.0, -20.0), 10.0)), up, HERE))
    assert (change.word, change.why) == ("not told", "the later study does not reach this place")


def test_a_lesion_that_a_study_cuts_off_is_not_measured_against_the_whole() -> None:
    up = np.eye(4)
    up[2, 3] = 34.0
    whole, part = measured(PLAIN, ((0.0, 0.0, 5.0), 10.0)), measured(PLAIN, ((0.0, 0.0, 39.0), 10.0))
    change = only(compare(whole, part, up, HERE))
    assert (change.kind, change.word) == ("same", "not told")
    assert "first or last slice" in change.why


def test_splits_and_merges_are_said_and_measured_as_a_whole() -> None:
    one: Ball = ((0.0, 0.0, 0.0), 16.0)
    two: tuple[Ball, Ball] = (((-9.0, 0.0, 0.0), 6.0), ((9.0, 0.0, 0.0), 6.0))
    split = only(compare(measured(PLAIN, *two), measured(OBLIQUE, one), NOWHERE, HERE))
    assert (split.kind, split.now, split.before, split.word) == ("split", (1, 2), (1,), "shrunk")
    assert split.longest_3d_change_mm is None
    merged = only(compare(measured(OBLIQUE, one), measured(PLAIN, *two), NOWHERE, HERE))
    assert (merged.kind, merged.now, merged.before, merged.word) == ("merged", (1,), (1, 2), "grown")


def test_neighbours_that_do_not_overlap_are_neither_the_same_nor_new() -> None:
    changes = compare(measured(PLAIN, ((9.0, 0.0, 0.0), 9.0)), measured(PLAIN, ((-10.0, 0.0, 0.0), 9.0)), NOWHERE, HERE)
    assert [c.kind for c in changes] == ["only now", "only before"]
    assert all("they may be one" in c.why and c.word == "not told" for c in changes)


def test_what_is_hardly_larger_than_the_smallest_is_neither_new_nor_gone() -> None:
    small = ((0.0, 0.0, 0.0), 7.5)  # 1.8 ml
    change = only(compare(measured(PLAIN, small), measured(PLAIN, minimum_mm3=1500.0), NOWHERE, HERE))
    assert "hardly larger" in change.why
    change = only(compare(measured(PLAIN, small), measured(PLAIN), NOWHERE, replace(HERE, region_mm3=2500.0)))
    assert "come and go" in change.why
    assert only(compare(measured(PLAIN, small), measured(PLAIN), NOWHERE, HERE)).word == "new"


centres = st.tuples(*(st.integers(-28, 28) for _ in range(3)))
balls = st.lists(st.tuples(centres, st.integers(4, 13)), max_size=4)


@settings(max_examples=40, deadline=None)
@given(balls, balls)
def test_every_lesion_is_in_one_change_and_swapping_the_studies_swaps_the_words(
    now: list[Ball], before: list[Ball]
) -> None:
    a, b = measured(PLAIN, *now), measured(OBLIQUE, *before)
    forth, back = compare(a, b, NOWHERE, HERE), compare(b, a, NOWHERE, HERE)
    assert sorted(n for c in forth for n in c.now) == [f.number for f in a.findings]
    assert sorted(n for c in forth for n in c.before) == [f.number for f in b.findings]
    swapped = {"grown": "shrunk", "shrunk": "grown", "new": "gone", "gone": "new"}
    turned = {(c.before, c.now): swapped.get(c.word, c.word) for c in back}
    assert {(c.now, c.before): c.word for c in forth} == turned
