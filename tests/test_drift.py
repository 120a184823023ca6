"""False alarms and delays of the watch, by simulation with known changes; its bets by integration."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from medrec import drift
from medrec.drift import Group, Rules, Seen, watch

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
A_DAY = 30
FEATURES = 20
GROUPS = [Group("brain_mr", f"site {s}", f"scanner {m}") for s in range(4) for m in range(2)]
ONE = GROUPS[:1]


def ordinary(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, features): normal, heavy-tailed, skewed, counted, rare and constant ones, some of them the same."""
    z = rng.standard_normal((count, FEATURES))
    z[:, 4:8] = rng.standard_t(2, (count, 4))
    z[:, 8] = z[:, 0] + 0.1 * z[:, 9]  # two features that say nearly the same
    z[:, 10] = rng.lognormal(size=count)
    z[:, 11] = rng.random(count) < 0.05
    z[:, 12] = rng.random(count) < 0.5
    z[:, 13] = rng.integers(0, 4, count)
    z[:, 14] = 1.0
    return z


def studies(values: np.ndarray, rng: np.random.Generator, groups: list[Group] = GROUPS) -> Iterator[Seen]:
    for number, row in enumerate(values, 1):
        at = (BEGIN + timedelta(days=number / A_DAY)).isoformat(timespec="seconds")
        group = groups[rng.integers(len(groups))]
        yield Seen(number, f"{rng.integers(2**60):x}", at, group, {f"f{n}": float(v) for n, v in enumerate(row)})


def test_the_whole_panel_raises_at_most_one_false_alarm_a_year() -> None:
    years, raised = 3, 0
    for year in range(years):
        rng = np.random.default_rng(year)
        panel = watch(studies(ordinary(rng, 365 * A_DAY), rng), Rules(studies_a_year=365 * A_DAY))
        assert len(panel.lines) == len(GROUPS) * FEATURES
        raised += len(panel.alarms)
    assert raised <= years


@pytest.mark.parametrize("bet", range(len(drift.log_bets(0.0))))
def test_a_bet_pays_back_what_was_put_in_while_nothing_changes(bet: int) -> None:
    mean, _ = integrate.quad(lambda z: np.exp(drift.log_bets(z)[bet]) * stats.norm.pdf(z), -12, 12)
    assert mean == pytest.approx(1, abs=1e-6)


Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# What README states: within so many studies, among the studies of a year with 20 values each.
CHANGES: dict[str, tuple[Change, int]] = {
    "shifted by one standard deviation": (lambda x, rng: x + 1, 60),
    "shifted by two standard deviations": (lambda x, rng: x - 2, 20),
    "spread twice as wide": (lambda x, rng: 2 * x, 100),
    "a share of 5 % that becomes 40 %": (lambda x, rng: (rng.random(len(x)) < 0.4).astype(float), 80),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_real_change_is_found_within_the_stated_number_of_studies(what: str) -> None:
    change, within = CHANGES[what]
    tries, before, begun = 20, 300, []
    for seed in range(tries):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(before + within)
        x = (x < stats.norm.ppf(0.05)).astype(float) if "share" in what else x
        x[before:] = change(x[before:], rng)
        panel = watch(studies(x[:, None], rng, ONE), Rules(studies_a_year=365 * A_DAY * FEATURES))
        begun += [a.studies_before for a in panel.alarms if a.number > before][:1]
    assert len(begun) >= 0.9 * tries
    assert np.median(begun) == pytest.approx(before, abs=15)


def alternating(count: int, before: int) -> np.ndarray:
    x = np.tile([0.0, 1.0, 2.0], count)[:count]
    x[before:] += 10
    return x[:, None]


def test_an_alarm_is_raised_once_and_what_came_after_it_is_the_new_normal() -> None:
    rng = np.random.default_rng(0)
    seen = list(studies(alternating(400, 100), rng, ONE))
    (alarm,) = watch(seen, Rules()).alarms
    assert 100 < alarm.number <= 115
    assert (round(alarm.before), round(alarm.after)) == (1, 11)
    assert alarm.studies_before == 100
    assert watch(seen, Rules(), {alarm.stream: alarm.number}).alarms == ()


def test_a_stream_is_learnt_before_it_is_bet_upon() -> None:
    rng = np.random.default_rng(0)
    (line,) = watch(studies(rng.standard_normal((40, 1)), rng, ONE), Rules(reference=40)).lines
    assert (line.studies, line.evidence) == (40, None)
    (line,) = watch(studies(rng.standard_normal((41, 1)), rng, ONE), Rules(reference=40)).lines
    assert line.evidence is not None


def test_more_studies_than_foretold_raise_the_limit() -> None:
    rng = np.random.default_rng(0)
    few, many = (watch(studies(rng.standard_normal((n, 1)), rng, ONE), Rules(studies_a_year=100)) for n in (50, 500))
    assert few.limit == 100
    assert many.limit == 500
    assert watch(studies(np.ones((9, 1)), rng, ONE), Rules(4, 0.5, 100)).limit == 200


@given(st.lists(st.sampled_from([0.0, 1.0, 5.0, -3.0]), min_size=45, max_size=90), st.integers(0, 9))
def test_evidence_depends_on_the_order_of_values_only_and_not_on_their_scale(values: list[float], seed: int) -> None:
    def evidence(x: list[float]) -> list[float | None]:
        rng = np.random.default_rng(seed)
        return [line.evidence for line in watch(studies(np.array(x)[:, None], rng, ONE), Rules(reference=10)).lines]

    assert evidence(values) == evidence([1000 * np.arctan(v) + 7 for v in values])


def test_the_same_history_tells_the_same() -> None:
    seen = list(studies(ordinary(np.random.default_rng(3), 200), np.random.default_rng(3)))
    assert watch(seen, Rules()) == watch(seen, Rules())
    assert all(a.number < b.number for a, b in pairwise(seen))
