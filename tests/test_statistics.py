"""Intervals and areas with known answers."""

import numpy as np

from medrec.statistics import dice, mean, pooled_auc


def test_the_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(60):
        interval = mean(list(rng.normal(0.7, 0.1, 40)), seed=trial)
        hits += interval.low <= 0.7 <= interval.high
    assert hits >= 51  # 95% of 60 is 57; fewer than 51 has a chance below 1 in 1,000


def test_a_constant_has_no_uncertainty() -> None:
    interval = mean([0.5] * 10)
    assert interval.value == 0.5
    assert np.isnan(interval.low) or interval.low == interval.high == 0.5


def test_auc_is_one_for_perfect_half_for_constant_scores() -> None:
    truths = [np.array([True, False, False]), np.array([False, True, True])]
    assert pooled_auc([t.astype(float) for t in truths], truths).value == 1.0
    assert pooled_auc([np.zeros(3), np.zeros(3)], truths).value == 0.5
    assert pooled_auc([1 - t.astype(float) for t in truths], truths).value == 0.0


def test_dice_by_hand() -> None:
    a, b = np.array([1, 1, 0, 0], bool), np.array([0, 1, 1, 0], bool)
    assert dice(a, b) == 0.5
    assert dice(a, a) == 1.0
    assert dice(a, ~a) == 0.0
    assert dice(a & ~a, b & ~b) == 1.0
