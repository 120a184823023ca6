"""Intervals and areas with known answers."""

import numpy as np

from medrec.statistics import auc, dice, mean, mean_of_images, pooled_auc


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


def test_auc_is_the_share_of_pairs_in_the_right_order_and_draws_of_one_class_are_drawn_again() -> None:
    scores, truth = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    area = auc(scores, truth)  # of four pairs three are in order
    assert area.value == 0.75
    assert 0 <= area.low <= area.value <= area.high <= 1
    alone = auc(np.arange(12.0), np.arange(12) == 11)  # one positive: many draws have none
    assert (alone.value, alone.low, alone.high) == (1.0, 1.0, 1.0)


def test_images_of_one_patient_are_not_independent() -> None:
    rng = np.random.default_rng(2)
    levels = rng.normal(0.8, 0.1, 30)
    values, patients = np.repeat(levels, 20), [f"p{n}" for n in np.repeat(np.arange(30), 20)]
    together, alone = mean_of_images(list(values), patients), mean(list(levels))
    assert together.value == np.mean(values)
    assert 0.8 < (together.high - together.low) / (alone.high - alone.low) < 1.25
    apart = mean_of_images(list(values), [str(n) for n in range(600)])
    assert (apart.high - apart.low) < 0.4 * (together.high - together.low)
