"""Measures and robustness: known answers, and what is moved moves with its truth."""

import numpy as np
import pytest
from phantoms import array_grid
from test_pictures import disc

from medrec import calibration
from medrec.learning import measures, robustness
from medrec.learning.cases import LabelledCase
from medrec.learning.measures import Answer
from medrec.learning.pictures import LabelledPicture
from medrec.volume import Volume


def an_answer(mask: np.ndarray, truth: np.ndarray, patient: str = "p", chance: float | None = None) -> Answer:
    spacing = (1.0,) * mask.ndim
    return Answer(patient, mask.astype(np.float32), mask, truth, spacing, chance, bool(truth.any()), True)


def box(size: tuple[int, ...], *corners: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[tuple(slice(a, b) for a, b in corners)] = True
    return mask


def test_two_boxes_three_voxels_apart_have_the_distance_that_can_be_counted() -> None:
    a, b = box((40, 40, 8), (5, 15), (5, 15), (2, 3)), box((40, 40, 8), (5, 15), (5, 15), (5, 6))
    assert measures.surface_distance(a, b, (1.0, 1.0, 4.0)) == pytest.approx(12, abs=1e-4)  # 3 slices of 4 mm
    assert measures.surface_distance(a, a, (1.0, 1.0, 4.0)) == 0
    assert measures.surface_distance(a, b & ~b, (1.0, 1.0, 4.0)) == pytest.approx(np.hypot(np.hypot(40, 40), 32))


def test_lesions_are_counted_by_touch() -> None:
    truth = box((20, 20), (1, 4), (1, 4)) | box((20, 20), (10, 14), (10, 14))
    mask = box((20, 20), (2, 6), (2, 6)) | box((20, 20), (1, 3), (15, 17)) | box((20, 20), (17, 19), (1, 3))
    assert measures.lesions_found(mask, truth) == (1, 2, 2)
    diagonal = box((6, 6), (0, 1), (0, 1)) | box((6, 6), (1, 2), (1, 2))
    assert measures.lesions_found(diagonal, diagonal) == (1, 1, 0)  # corners touch


def test_a_patient_counts_once_and_sensitivity_only_where_there_is_a_lesion() -> None:
    lesion, none = box((9, 9), (2, 5), (2, 5)), np.zeros((9, 9), bool)
    found = measures.scores(
        "m",
        [an_answer(lesion, lesion, "a"), an_answer(none, lesion, "a"), an_answer(none, none, "b"),
         an_answer(lesion, none, "c")],
    )  # fmt: skip
    assert found.values["dice"] == {"a": 0.5, "b": 1.0, "c": 0.0}
    assert found.values["lesion_sensitivity"] == {"a": 0.5}
    assert found.values["false_positives"] == {"a": 0.0, "b": 0.0, "c": 1.0}


def test_area_and_brier_are_of_patients_and_absent_when_all_are_alike() -> None:
    lesion, none = box((9, 9), (2, 5), (2, 5)), np.zeros((9, 9), bool)
    both = measures.scores("m", [an_answer(lesion, lesion, "a", 0.9), an_answer(none, none, "b", 0.2)])
    assert both.values["auc"] == {"a": 0.9, "b": 0.2}
    assert both.values["brier"]["a"] == pytest.approx(0.01)
    assert both.truth == {"a": True, "b": False}
    alike = measures.scores("m", [an_answer(lesion, lesion, "a", 0.9)])
    assert "auc" not in alike.values


def test_froc_exists_only_where_there_are_images_without_lesion() -> None:
    lesion, none = box((9, 9), (2, 5), (2, 5)), np.zeros((9, 9), bool)
    assert measures.froc([an_answer(lesion, lesion)]) == ()
    points = measures.froc([an_answer(lesion, lesion), an_answer(lesion, none)])
    assert points[2] == (0.5, 0.5, 1.0)


def a_picture() -> LabelledPicture:
    mask = disc((60, 50), 25, 20, 9)
    pixels = np.where(mask, 0.8, 0.3).astype(np.float32)
    return LabelledPicture("i", "p", "", pixels, mask, True, "0" * 64)


def a_case() -> LabelledCase:
    mask = box((30, 26, 9), (8, 20), (9, 18), (2, 6))
    ramp = np.linspace(0, 60, 30)[:, None, None]
    voxels = (np.where(mask, 900, 300) + ramp).astype(np.float32)
    volume = Volume(voxels, array_grid((30, 26, 9), (2.0, 2.0, 5.0), (10.0, 5.0, 0.0)), "arbitrary", "s", "0" * 64)
    return LabelledCase("study", "p", {"flair": volume}, mask)


@pytest.mark.parametrize("payload", [a_picture(), a_case()], ids=["picture", "volume"])
def test_every_change_keeps_the_lesion_under_its_mask_and_is_the_same_every_time(
    payload: LabelledPicture | LabelledCase,
) -> None:
    assert {"intensity", "contrast", "noise", "blur", "rotation", "scale"} <= set(robustness.changes(payload))
    for change in robustness.changes(payload):
        one, two = robustness.changed(payload, change), robustness.changed(payload, change)
        a, b = (p.pixels if isinstance(p, LabelledPicture) else p.inputs["flair"].voxels for p in (one, two))
        assert np.array_equal(a, b), change
        assert a[one.mask].mean() > a[~one.mask].mean() + 0.3 * (a.max() - a.min()), change
        same = payload.pixels if isinstance(payload, LabelledPicture) else payload.inputs["flair"].voxels
        assert a.shape != same.shape or not np.array_equal(a, same), change


def test_thicker_slices_lie_between_the_two_that_they_are_made_of() -> None:
    case = a_case()
    thick = robustness.changed(case, "slice thickness")
    assert isinstance(thick, LabelledCase)
    before, after = case.inputs["flair"].affine_ijk_to_lps, thick.inputs["flair"].affine_ijk_to_lps
    middle = (before @ [3, 4, 2, 1] + before @ [3, 4, 3, 1]) / 2
    assert np.allclose(after @ [3, 4, 1, 1], middle)
    assert thick.mask.shape == (30, 26, 4)
    assert thick.mask.sum() * 2 == case.mask.sum()


def test_a_smaller_and_a_turned_lesion_have_the_area_that_geometry_says() -> None:
    picture = a_picture()
    smaller = robustness.changed(picture, "scale")
    assert smaller.mask.sum() / picture.mask.sum() == pytest.approx(robustness.SCALE**2, rel=0.05)
    assert robustness.changed(picture, "rotation").mask.sum() == pytest.approx(picture.mask.sum(), rel=0.05)


def test_temperature_and_slope_are_those_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    honest = 1 / (1 + np.exp(-rng.normal(0, 2, 6000)))
    truth = rng.random(6000) < honest
    sure = 1 / (1 + np.exp(-2.5 * calibration.logits(honest)))  # says more than it knows
    assert calibration.temperature(sure, truth) == pytest.approx(2.5, rel=0.08)
    slope, intercept = calibration.slope_and_intercept(sure, truth)
    assert slope == pytest.approx(1 / 2.5, rel=0.08)
    assert abs(intercept) < 0.1
    assert calibration.temperature(sure, np.ones(6000, bool)) == 1.0
    assert calibration.brier(np.array([1.0, 0.0]), np.array([True, False])) == 0
    found = calibration.intervals(honest[:300], truth[:300])
    assert found["calibration slope"].low < 1 < found["calibration slope"].high
