"""A head that was moved by a known rotation and shift is found again; what cannot be laid on it has other numbers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from phantoms import array_grid
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medrec.coarse import AIR, OUTSIDE, Coarse, coarse_of
from medrec.dicom import Archive, Pseudonyms
from medrec.phantom import Head, Lesion, Triple, grid, render
from medrec.priors import LEAST_SIMILARITY, MOST_DISAGREEMENT_MM
from medrec.registration import ARM_MM, Registration, register
from medrec.series import group
from medrec.stacks import stacks
from medrec.volume import Volume, to_world

LEFT = Lesion((28.0, -14.0, 12.0), (13.0, 12.0, 13.0))
CORNERS = ARM_MM * np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])


def motion(turn_deg: Triple, shift_mm: Triple) -> npt.NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def rescanned(
    volume: Volume, moved: npt.NDArray[np.float64], affine: npt.NDArray[np.float64], size: tuple[int, ...], seed: int
) -> Volume:
    """The head of a volume, moved, with noise and another bias field, on another grid; `moved` is new to old LPS mm."""
    mapping = np.linalg.inv(volume.affine_ijk_to_lps) @ moved @ affine
    there = ndimage.affine_transform(volume.voxels, mapping[:3, :3], mapping[:3, 3], size, order=1, mode="constant")
    rng, top = np.random.default_rng(seed), np.percentile(volume.voxels, 99.5)
    slopes = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    bias = np.exp(sum(rng.normal(0, 0.1) * x for x in slopes))
    noisy = np.hypot(there * bias + rng.normal(0, 0.03 * top, size), rng.normal(0, 0.03 * top, size))
    return Volume(noisy.astype(np.float32), affine, volume.unit, "series", "")


@cache
def phantom(**changes: object) -> Volume:
    head = replace(Head((LEFT,), (64, 72, 26), grid((64, 72, 26), (3.0, 3.0, 5.0)), seed=3), **changes)  # type: ignore[arg-type]
    return Volume(render(head)[0].astype(np.float32), head.affine, "", "series", "")


def error_mm(found: Registration | None, truth: npt.NDArray[np.float64], middle: npt.NDArray[np.float64]) -> float:
    assert found is not None
    corners = CORNERS + middle
    return float(np.linalg.norm(to_world(found.matrix, corners) - to_world(truth, corners), axis=1).max())


@pytest.mark.parametrize("seed", range(4))
def test_a_moved_head_is_found_again_on_oblique_and_anisotropic_grids(seed: int) -> None:
    rng = np.random.default_rng(seed)
    turn, shift = rng.uniform(-14, 14, 3), rng.uniform(-25, 25, 3)
    truth = motion(tuple(turn), tuple(shift))  # type: ignore[arg-type]
    affine = array_grid((76, 90, 22), (2.5, 2.6, 6.5), tuple(rng.uniform(-12, 12, 3)))
    again = rescanned(phantom(), truth, affine, (76, 90, 22), seed)
    found = register(coarse_of(again), coarse_of(phantom()))
    assert error_mm(found, truth, np.zeros(3)) < 3.0  # half of the slices' distance
    assert found is not None
    assert found.similarity > LEAST_SIMILARITY
    assert found.disagreement_mm < MOST_DISAGREEMENT_MM


def test_a_lesion_that_has_grown_does_not_draw_the_head_along() -> None:
    larger = phantom(lesions=(Lesion(LEFT.centre_lps_mm, (24.0, 24.0, 24.0)),))
    found = register(coarse_of(larger), coarse_of(phantom()))
    assert error_mm(found, np.eye(4), np.zeros(3)) < 0.5
    assert found is not None
    assert found.similarity > LEAST_SIMILARITY


@pytest.mark.parametrize("scale", [0.92, 0.96, 1.04])
def test_a_head_of_another_size_is_not_taken_for_the_same(scale: float) -> None:
    found = register(coarse_of(phantom(scale=scale, seed=8)), coarse_of(phantom()))
    assert found is None or found.similarity < LEAST_SIMILARITY


def test_equal_images_lie_on_each_other_and_give_equal_numbers() -> None:
    image = coarse_of(phantom())
    with ThreadPoolExecutor(2) as threads:  # a night has three studies under way
        first, second = threads.map(register, (image, image), (image, image))
    assert first is not None
    assert second is not None
    assert error_mm(first, np.eye(4), np.zeros(3)) < 0.05
    assert first.similarity > 0.999
    assert (first.matrix == second.matrix).all()


def test_an_image_that_shows_nothing_is_laid_on_nothing() -> None:
    empty = Coarse(np.full((20, 20, 20), AIR, np.uint8), np.diag([3.0, 3.0, 3.0, 1.0]))
    assert register(empty, coarse_of(phantom())) is None


def test_a_coarse_image_says_where_the_image_does_not_reach() -> None:
    affine = array_grid((30, 30, 20), (2.0, 2.0, 3.0), (0.0, 0.0, 45.0))
    coarse = coarse_of(Volume(np.full((30, 30, 20), 100, np.float32), affine, "", "series", ""))
    assert coarse.levels[0, 0].tolist() == [OUTSIDE] * coarse.levels.shape[2]  # a corner that a turned square leaves
    middle = tuple(n // 2 for n in coarse.levels.shape)
    assert coarse.levels[middle] > AIR
    known_mm3 = (coarse.levels != OUTSIDE).sum() * coarse.spacing_mm**3
    assert known_mm3 == pytest.approx(60 * 60 * 60, rel=0.1)


def test_a_large_body_is_kept_coarser_and_a_small_one_at_3_mm() -> None:
    body = Volume(np.zeros((64, 64, 100), np.float32), np.diag([8.0, 8.0, 10.0, 1.0]), "HU", "series", "")
    assert coarse_of(body).levels.size < 2_000_000
    assert coarse_of(phantom()).spacing_mm == 3.0


def flair_of(patient: Path) -> Volume:
    archive = Archive(patient, Pseudonyms(b"x" * 32), {})
    for study in group(archive.index().files):
        for files in study.series:
            for series in stacks(files):
                if "FLAIR" in series.first.words:  # type: ignore[union-attr]
                    loaded = archive.load(series)  # type: ignore[arg-type]
                    return loaded[0]  # type: ignore[index]
    raise AssertionError("no FLAIR")


@pytest.mark.slow
def test_real_heads_are_found_again_and_not_taken_for_each_other(shared_data: Path) -> None:
    patients = sorted((shared_data / "brain_mr" / "dicom").iterdir())[:2]
    heads = [flair_of(p) for p in patients]
    for number, head in enumerate(heads):
        middle = to_world(head.affine_ijk_to_lps, (np.array([head.voxels.shape]) - 1) / 2)[0]
        truth = motion((5.0, -4.0, 6.0), (6.0, 3.0, -4.0))
        affine = array_grid((170, 190, 26), (1.3, 1.3, 6.0), (7.0, -4.0, 0.0), centre_lps_mm=tuple(middle))
        again = rescanned(head, truth, affine, (170, 190, 26), number)
        found = register(coarse_of(again), coarse_of(head))
        assert error_mm(found, truth, middle) < 2.0
        assert found is not None
        assert found.similarity > LEAST_SIMILARITY
        another = register(coarse_of(again), coarse_of(heads[number - 1]))
        assert another is None or another.similarity < LEAST_SIMILARITY - 0.2
