"""A stranger is told from the patients of the training, at a rate of false alarms that is told as well."""

import numpy as np
import pytest
from scipy import ndimage

from medrec import familiarity
from medrec.familiarity import LOOKS, Familiar, Rows

NUMBERS = LOOKS + 6


def crowd(seed: int, count: int, kind: int = 0, mean: float = 0.0) -> Rows:
    """Correlated normal rows of so many patients, one each."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(NUMBERS, NUMBERS)) / 4 + np.eye(NUMBERS)
    rows = rng.normal(size=(count, NUMBERS)) @ mixing + mean
    return Rows(rows, np.full(count, kind), tuple(f"{kind} {n}" for n in range(count)))


def both(a: Rows, b: Rows) -> Rows:
    return Rows(np.concatenate([a.rows, b.rows]), np.concatenate([a.kinds, b.kinds]), a.patients + b.patients)


def test_whoever_is_like_the_others_is_at_about_one_and_the_limit_is_passed_as_rarely_as_it_says() -> None:
    known = crowd(1, 120)
    distances, _ = familiarity.held_out(known)
    limit = familiarity.limit(distances, 0.05)
    fitted = familiarity.fit(known)
    later = np.array([fitted.distance(row) for row in crowd(2, 2000).rows])
    assert 0.7 < np.median(later) < 1.4
    # The share beyond a conformal limit of n patients is at most 1/20 on average; its standard deviation is 2% here.
    assert (later > limit).mean() < 0.05 + 2 * 0.02


def test_distances_of_those_who_shaped_the_fit_are_too_small_and_are_not_what_limits_come_from() -> None:
    known = crowd(3, 60)
    fitted = familiarity.fit(known)
    own = np.array([fitted.distance(row) for row in known.rows])
    away, _ = familiarity.held_out(known)
    assert (away > own).all()


def test_a_stranger_along_a_direction_in_which_nobody_varied_is_far_away() -> None:
    known = crowd(4, 80)
    flat = Rows(np.concatenate([known.rows, np.zeros((80, 1))], 1), known.kinds, known.patients)
    fitted = familiarity.fit(flat)
    row = flat.rows[0].copy()
    near = fitted.distance(row)
    row[-1] = 5.0
    assert fitted.distance(row) > 5 * near
    assert fitted.strangest(row) == "its texture, as the network sees it"


def test_an_image_that_is_called_another_kind_is_nearer_to_what_it_is() -> None:
    known = both(crowd(5, 60), crowd(6, 60, kind=1, mean=1.5))
    fitted = familiarity.fit(known)
    own = [fitted.margin(row) for row in crowd(7, 100).rows]
    called = [fitted.margin(row) for row in crowd(8, 100, kind=1, mean=1.5).rows]
    assert np.mean([m > 0 for m, _ in own]) > 0.95
    assert np.mean([m < 0 and nearest == 1 for m, nearest in called]) > 0.95
    assert familiarity.fit(crowd(5, 60)).margin(known.rows[0]) == (float("inf"), 0)


def test_all_rows_of_a_patient_are_away_together() -> None:
    known = crowd(9, 30)
    twice = Rows(np.repeat(known.rows, 2, 0), np.repeat(known.kinds, 2), tuple(np.repeat(known.patients, 2)))
    alone, _ = familiarity.held_out(known)
    paired, _ = familiarity.held_out(twice)
    assert np.allclose(paired[::2], paired[1::2])
    assert (paired > 0.5 * np.repeat(alone, 2)).all()  # with the twin in the fit they would be much smaller


def test_the_curve_of_risk_keeps_the_most_familiar() -> None:
    distances = np.arange(10.0)
    scores = np.where(distances < 5, 0.9, 0.5)
    assert familiarity.risk_coverage(distances, scores, (1.0, 0.8, 0.5)) == (
        (1.0, pytest.approx(0.7)),
        (0.8, pytest.approx(0.75)),
        (0.5, pytest.approx(0.9)),
    )


@pytest.mark.parametrize("alarms", [0.01, 0.05, 0.3])
def test_no_more_than_the_stated_share_of_the_calibrating_patients_lies_beyond_the_limit(alarms: float) -> None:
    values = np.random.default_rng(1).normal(size=85)
    assert (values > familiarity.limit(values, alarms)).mean() <= alarms


def test_noise_and_blur_show_in_the_looks_and_a_shift_in_place_does_not() -> None:
    rng = np.random.default_rng(2)
    image = ndimage.gaussian_filter(rng.normal(size=(3, 64, 64)), (0, 3, 3)).astype(np.float32) * 5
    plain = familiarity.looks(image)
    assert len(plain) == LOOKS
    fine = slice(len(familiarity.BRIGHTNESS) - 1, LOOKS)
    noisy = familiarity.looks((image + 0.3 * rng.normal(size=image.shape)).astype(np.float32))
    blurred = familiarity.looks(ndimage.gaussian_filter(image, (0, 3, 3)))
    assert (noisy[fine] > plain[fine]).all()
    assert (blurred[fine] < plain[fine]).all()
    assert np.allclose(familiarity.looks(image[:, :, ::-1])[: fine.start], plain[: fine.start])


RIGHT = {"means": np.zeros((1, 2)), "spread": np.ones(2), "precision": np.eye(2), "shared": np.eye(2)}
SPOILT = {
    "an array is missing": {k: RIGHT[k] for k in ("means", "spread", "precision")},
    "sizes differ": {**RIGHT, "means": np.zeros((1, 3))},
    "not a number": {**RIGHT, "means": np.full((1, 2), np.nan)},
    "no spread": {**RIGHT, "spread": np.zeros(2)},
    "no mean": {**RIGHT, "means": np.zeros((0, 2))},
    "flat means": {**RIGHT, "means": np.zeros(2)},
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_file_that_holds_something_else_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Familiar.of({k: np.asarray(v, np.float32) for k, v in SPOILT[name].items()})


def test_what_is_written_says_the_same_when_it_is_read() -> None:
    fitted = familiarity.fit(crowd(10, 40))
    again = Familiar.of(fitted.arrays())
    row = crowd(11, 1).rows[0]
    assert again.distance(row) == pytest.approx(fitted.distance(row), rel=1e-3)
