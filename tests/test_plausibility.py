"""What does not look like a head is never given a plain verdict."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from medrec.phantom import Head, Lesion, grid, random_head, render
from medrec.plausibility import doubts
from medrec.volume import HU, Volume, midplane_left_mm

SIZE, SPACING = (96, 112, 28), (2.0, 2.0, 5.0)
HEAD = Head((Lesion((30.0, -12.0, 14.0), (15.0, 18.0, 14.0)),), SIZE, grid(SIZE, SPACING), seed=1)
VOXELS = render(HEAD)[0].astype(np.float32)
EXTENT_MM = (100.0, 280.0)


def volume(voxels: np.ndarray, affine: np.ndarray | None = None) -> Volume:
    return Volume(
        np.ascontiguousarray(voxels, np.float32), (HEAD.affine if affine is None else affine).copy(), "", "s", "0" * 64
    )


def blank(voxels: np.ndarray) -> np.ndarray:
    voxels[:, :, 10:] = 0
    return voxels


def gap(voxels: np.ndarray) -> np.ndarray:
    voxels[:, :, 12] = 0
    return voxels


def hot(voxels: np.ndarray) -> np.ndarray:
    voxels[:, :, 0] *= 100
    return voxels


SPOILED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "constant": (lambda v: np.full_like(v, 300), "same value"),
    "noise": (lambda v: np.random.default_rng(0).rayleigh(100, v.shape), "not air"),
    "two thirds blank": (blank, "blank"),
    "a blank slice in the middle": (gap, "between others are blank"),
    "one hot slice": (hot, "not air"),  # against it, all other slices are air
    "shifted below zero": (lambda v: v - 150, "negative"),
    "sixteen times coarser": (lambda v: v[::16, ::16], "too coarse"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_head_is_doubted_for_what_is_wrong_with_it(name: str) -> None:
    spoil, words = SPOILED[name]
    found = doubts(volume(spoil(VOXELS.copy())), EXTENT_MM, False)
    assert any(words in text for text in found), found


def test_a_head_of_impossible_size_is_doubted_in_its_own_unit() -> None:
    affine = HEAD.affine @ np.diag([3.0, 3.0, 1.0, 1.0])
    (text,) = doubts(volume(VOXELS, affine), EXTENT_MM, True)
    assert "mm (nominal)" in text
    assert doubts(volume(VOXELS, affine), None, True) == ()


@pytest.mark.parametrize("seed", range(6))
def test_heads_as_scanners_vary_them_are_not_doubted(seed: int) -> None:
    head = random_head(np.random.default_rng(seed), 2)
    assert doubts(volume(render(head)[0], head.affine), EXTENT_MM, False) == ()


def test_a_body_in_ct_is_judged_by_what_is_not_air_whose_value_is_below_zero() -> None:
    body = replace(volume(VOXELS / VOXELS.max() * 1400 - 1000), unit=HU)
    assert doubts(body, None, False) == ()
    (text,) = doubts(replace(volume(SPOILED["noise"][0](VOXELS)), unit=HU), None, False)
    assert "not a picture of a body" in text


def test_the_middle_of_a_head_that_the_image_cuts_on_one_side_is_not_known() -> None:
    assert midplane_left_mm(volume(VOXELS)) == pytest.approx(0, abs=3)
    for cut in (slice(40, None), slice(None, 50)):
        affine = HEAD.affine.copy()
        affine[:3, 3] += affine[:3, 0] * (cut.start or 0)
        assert midplane_left_mm(volume(VOXELS[cut], affine)) is None
