"""An interval of a volume holds the truth as often as it says, and says how well that is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medrec import uncertainty
from medrec.uncertainty import Held, Uncertainty


def patients(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Volumes in ml: true ones, and marked ones that are off by a factor with heavy tails."""
    rng = np.random.default_rng(seed)
    true_ml = np.exp(rng.normal(4, 1, count))
    return true_ml, true_ml * np.exp(0.15 * rng.standard_t(3, count))


def test_nine_in_ten_new_patients_lie_within_on_average() -> None:
    shares = []
    for seed in range(200):
        found = uncertainty.calibrated(*patients(seed, 60), [0] * 60, "simulated")
        assert found is not None
        inside = [low <= t <= high for t, m in zip(*patients(1000 + seed, 50), strict=True)
                  for low, high in [found.interval_ml(m)]]  # fmt: skip
        shares.append(np.mean(inside))
    # Split-conformal: between the level and 2/61 above it, on average over calibrations.
    assert 0.9 - 0.01 < np.mean(shares) < 0.9 + 2 / 61 + 0.01


def test_the_coverage_that_is_stated_was_measured_on_patients_who_did_not_set_the_factors() -> None:
    true_ml, marked_ml = patients(1, 80)
    folds = np.arange(80) % 4
    marked_ml[folds == 3] = true_ml[folds == 3] * 5  # a network that the others say nothing of
    found = uncertainty.calibrated(true_ml, marked_ml, list(folds), "simulated")
    assert found is not None
    assert found.held.patients == 80
    assert found.held.share < 0.8  # with its own fold among the factors all of them would be inside


def test_small_and_large_regions_are_counted_apart() -> None:
    found = uncertainty.calibrated(*patients(2, 60), [0] * 60, "simulated")
    assert found is not None
    assert sum(h.patients for _, h in found.by_size) == 60


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [(0, 10, 0.0, 0.308), (9, 10, 0.555, 0.997), (10, 10, 0.692, 1.0), (50, 100, 0.398, 0.602)],
)
def test_the_interval_of_a_share_is_that_of_the_tables(hits: int, of: int, low: float, high: float) -> None:
    assert uncertainty.exact(hits, of) == (low, high)  # Clopper and Pearson 1934; any table of exact intervals


def test_with_fewer_than_twenty_patients_there_is_none() -> None:
    assert uncertainty.calibrated(*patients(3, 19), [0] * 19, "") is None
    assert uncertainty.calibrated(*patients(3, 20), [0] * 20, "") is not None


def test_networks_without_error_have_an_interval_without_width() -> None:
    true_ml, _ = patients(4, 40)
    found = uncertainty.calibrated(true_ml, true_ml, [0] * 40, "")
    assert found is not None
    assert (found.low, found.high, found.held.share) == (1, 1, 1)
    assert found.interval_ml(12.5) == (12.5, 12.5)


HELD = Held(patients=85, share=0.9, low=0.8, high=0.95, on="x")


@given(st.floats(0, 5000), st.floats(0.01, 1), st.floats(1, 100))
def test_an_interval_holds_what_is_marked_and_nothing_below_nought(marked: float, low: float, high: float) -> None:
    found = Uncertainty(low=low, high=high, held=HELD).interval_ml(marked)
    assert 0 <= found[0] <= marked + 1e-9
    assert found[1] >= marked - 1e-9


def test_factors_that_run_downwards_are_a_mistake() -> None:
    with pytest.raises(ValidationError, match="low must not be above high"):
        Uncertainty(low=1.2, high=0.9, held=HELD)
