"""Calipers are found where they were drawn, tissue is not taken for them, and painting out touches nothing else."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from medrec.models import marks

Image = npt.NDArray[np.float32]


def tissue(seed: int = 0, brightness: float = 0.35) -> Image:
    """Speckle with horizontal layers, as an ultrasound of the breast has."""
    rng = np.random.default_rng(seed)
    speckle = ndimage.gaussian_filter(rng.rayleigh(1.0, (180, 160)), (0.8, 2.0))
    layers = 1 + 0.5 * np.sin(np.arange(180) / 9)[:, None]
    return np.clip(speckle / speckle.mean() * layers * brightness, 0, 1).astype(np.float32)


def draw(image: Image, row: int, column: int, arm: int, diagonal: bool, level: float = 0.95) -> None:
    for n in range(-arm, arm + 1):
        for dr, dc in ((n, n), (n, -n)) if diagonal else ((n, 0), (0, n)):
            image[row + dr, column + dc] = level


PLACES = ((40, 50), (80, 30), (81, 120), (130, 75))


@pytest.mark.parametrize("diagonal", [False, True], ids=["plus", "times"])
@pytest.mark.parametrize("arm", [4, 5, 6])
def test_crosses_are_found_where_they_were_drawn(arm: int, diagonal: bool) -> None:
    image = tissue()
    for place in PLACES:
        draw(image, *place, arm, diagonal)
    found = marks.find(image)
    for row, column in PLACES:
        near = [m for m in found if abs(m.row - row) <= 2 and abs(m.column - column) <= 2]
        assert near
        assert not near[0].text
    assert len(found) <= len(PLACES) + 1


@pytest.mark.parametrize("seed", range(4))
def test_tissue_is_hardly_ever_taken_for_a_cross(seed: int) -> None:
    assert len(marks.find(tissue(seed))) <= 1


def test_crossings_in_one_line_are_text() -> None:
    image = tissue(brightness=0.1)
    for column in range(30, 130, 16):
        draw(image, 150, column, 4, False)
    draw(image, 60, 80, 5, False)
    found = marks.find(image)
    assert {m.text for m in found if m.row > 140} == {True}
    assert [m.text for m in found if m.row < 100] == [False]


def test_painting_out_hides_the_crosses_and_leaves_the_rest_as_it_was() -> None:
    before = tissue()
    image = before.copy()
    for place in PLACES:
        draw(image, *place, 5, False)
    found = marks.find(image)
    clean = marks.painted_out(image, found)
    assert not [m for m in marks.find(clean) if any(abs(m.row - r) < 8 and abs(m.column - c) < 8 for r, c in PLACES)]
    rows, columns = np.indices(image.shape)
    far = np.all([np.hypot(rows - m.row, columns - m.column) > marks.RADIUS_PX + 1 for m in found], axis=0)
    assert np.array_equal(clean[far], before[far])
    assert np.isfinite(clean).all()
    assert clean.max() <= image.max()


def test_an_image_without_marks_comes_back_as_it_was() -> None:
    image = tissue()
    assert marks.painted_out(image, ()) is image


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (20, 20)])
def test_any_size_of_image_is_looked_at(shape: tuple[int, int]) -> None:
    assert marks.find(np.zeros(shape, np.float32)) == ()
