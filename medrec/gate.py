"""The gate: whether what two models did on the same locked patients lets the new one take the old one's place.

Pure statistics: no disk, no clock, no network. Owns `Scores`, `Verdict` of a challenger, and the tests. Tests are
paired, by patient, one-sided. Means: all signs of the patients' differences are flipped (exactly up to 2^14
patterns, else drawn), and the p-value is the larger of this and of a t-test corrected for skewness (P. Hall, J. R.
Statist. Soc. B 54, 1992), because flipping signs passes too many where a few patients fail badly. Pooled measures
(AUC, sensitivity): the two models' answers change places, patient by patient. Endpoints are corrected by Holm's rule;
of the safety measures every one must be shown, which needs no correction. Alpha is spent in equal parts over the uses
that the card plans.

Refuses, by a reason and never by a guess: a measure that is missing, a value that is no number, other patients for one
model than for the other, fewer patients than the card asks for, one that either model was trained on, and a locked set
that was used up.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

from medrec.declared import LESS_IS_BETTER, POOLED, Gate
from medrec.statistics import Interval, Values, mean, pooled

EXACT_UP_TO = 14  # patients: 16,384 patterns of signs
DRAWS = 20_000  # of signs; a p-value of 0.01 is then known to 0.0007
POOLED_DRAWS = 4_000
POWER = 0.8  # of the smallest detectable difference
TINY = 1e-12  # equal sums differ by rounding
ROUNDED = 1e-5  # records hold six digits of alpha

Truth = Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Scores:
    """What one model did on the locked patients.

    `values` holds, by measure, a number for each patient to whom the measure applies (a patient without a lesion has no
    lesion sensitivity); for pooled measures that is the model's probability, and `truth` says who is positive.
    """

    model: str
    values: Mapping[str, Mapping[str, float]]
    truth: Truth = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Use:
    """One use of locked patients, by what the ledger calls them, and the alpha that it spent."""

    patients: frozenset[str]
    alpha: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison: the difference (positive is better for the challenger), and the chance of it.

    `spread` is the standard deviation of the patients' differences , `detectable` the smallest
    true difference that is found in four of five trials of this size; both NaN for pooled measures.
    """

    measure: str
    hypothesis: str
    patients: int
    difference: float
    margin: float
    spread: float
    detectable: float
    p: float
    level: float
    shown: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model is eligible, and everything that speaks for and against it, in the order in which it is told."""

    eligible: bool
    reasons: tuple[str, ...]
    excluded: tuple[str, ...]
    use: int
    alpha: float
    power: tuple[str, ...]
    tests: tuple[Comparison, ...]
    acceptance: Mapping[str, Interval]

    def lines(self) -> tuple[str, ...]:
        """For people: what could be found at all comes first, then what was found, then the answer."""
        told = [f"use {self.use} of the locked patients, at level {self.alpha:.3g}", *self.power]
        told += [f"{name}: {interval}" for name, interval in self.acceptance.items()]
        told += [
            f"{t.measure}: {t.hypothesis}: difference {t.difference:+.4f} on {t.patients} patients, p = {t.p:.4g} "
            f"against {t.level:.3g}: {'shown' if t.shown else 'not shown'}"
            for t in self.tests
        ]
        return (*told, *self.reasons, "ELIGIBLE" if self.eligible else "NOT ELIGIBLE")


def decide(
    gate: Gate,
    challenger: Scores,
    champion: Scores | None,
    *,
    used: int = 0,
    seen: frozenset[str] | set[str] = frozenset(),
    seed: int = 0,
) -> Verdict:
    """Whether the challenger is eligible.

    `champion` is None for a first model, which needs the acceptance criteria only. `used` is how often the locked
    patients were used before; `seen` are patients that either model was trained on: they do not count.
    """
    reasons = [f"used up: the card plans {gate.uses} uses of the locked patients"] if used >= gate.uses else []
    scores = [s for s in (challenger, champion) if s is not None]
    patients = set().union(*(v for s in scores for v in s.values.values())) if scores else set()
    excluded = tuple(sorted(patients & set(seen)))
    scores = [_without(s, seen) for s in scores]
    reasons += _unfit(gate, scores)
    alpha = 0.0 if used >= gate.uses else gate.alpha_per_use
    if reasons:
        return Verdict(False, tuple(reasons), excluded, used + 1, alpha, (), (), {})
    accepted: dict[str, Interval] = {m: estimate(m, scores[0], gate.specificity) for m in gate.acceptance}
    reasons += _not_accepted(gate, accepted)
    tests: list[Comparison] = []
    if champion is not None:
        better = _better(gate, scores[0], scores[1], alpha, seed)
        safe = [_compared(m, scores[0], scores[1], -v, alpha, gate, seed) for m, v in gate.safety.items()]
        tests = [*better, *safe]
        if not any(t.shown for t in better):
            reasons.append("not shown to be better: " + ", ".join(t.measure for t in better))
        reasons += [f"not shown to be as safe: {t.measure}" for t in safe if not t.shown]
    power = tuple(_power(t) for t in tests)
    return Verdict(not reasons, tuple(reasons), excluded, used + 1, alpha, power, tuple(tests), accepted)


def budget(uses: Sequence[Use], gate: Gate) -> tuple[int, frozenset[str]]:
    """How many uses of the present locked patients there were, and who is used up.

    When `gate.uses` or alpha is spent, nobody who was in any use so far decides any more; those who were locked since
    have an alpha of their own.
    """
    spent, count = 0.0, 0
    seen, gone = frozenset[str](), frozenset[str]()
    for use in uses:
        spent, count, seen = spent + use.alpha, count + 1, seen | use.patients
        if count >= gate.uses or spent + gate.alpha_per_use > gate.alpha * (1 + ROUNDED):
            spent, count, gone = 0.0, 0, seen
    return count, gone


def estimate(measure: str, scores: Scores, specificity: float = 0.9) -> Interval:
    """A measure over all patients with its interval. Raises KeyError for one that the scores do not hold."""
    values = scores.values[measure]
    names = sorted(values)
    data = np.array([values[n] for n in names], float)
    if measure not in POOLED:
        return _closed(mean(list(data)))
    return pooled(data, np.array([scores.truth[n] for n in names]), _rows(measure, specificity))


def chance(differences: Values, seed: int = 0) -> Values:
    """The p-value that a mean is above 0, (..., patients) to (...): both tests must agree."""
    found: Values = np.maximum(sign_flip_p(differences, seed), skewed_p(differences))
    return found


def sign_flip_p(differences: Values, seed: int = 0) -> Values:
    """Chance that flipped signs give a mean as large as this, (..., patients) to (...)."""
    n = differences.shape[-1]
    larger = (_signs(n, seed) @ differences.T >= differences.sum(-1) - TINY).sum(0)
    return np.asarray(larger / 2**n if n <= EXACT_UP_TO else (1 + larger) / (1 + DRAWS))


@lru_cache(maxsize=4)
def _signs(patients: int, seed: int) -> Values:
    """(patterns, patients) of 1 and -1: all there are, or as many as are drawn."""
    if patients <= EXACT_UP_TO:
        flipped = (np.arange(2**patients)[:, None] >> np.arange(patients)) & 1
    else:
        flipped = np.random.default_rng(seed).integers(0, 2, (DRAWS, patients))
    return np.asarray(1 - 2 * flipped, np.float64)


def skewed_p(differences: Values) -> Values:
    """One-sided t-test of the mean, corrected for skewness by Hall's transformation, (..., patients) to (...).

    1 where nothing varies, unless all are better.
    """
    n, average, spread = differences.shape[-1], differences.mean(-1), differences.std(-1, ddof=1)
    flat = spread < TINY
    centred = differences - average[..., None]
    skewness = (centred**3).mean(-1) / np.where(flat, 1, (centred**2).mean(-1)) ** 1.5
    t = average / np.where(flat, 1, spread)
    corrected = t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / (6 * n)
    return np.where(flat, np.where(average > TINY, 0.0, 1.0), special.stdtr(n - 1, -np.sqrt(n) * corrected))


def holm(p_values: Mapping[str, float], alpha: float) -> dict[str, float]:
    """The level at which each hypothesis is to be tested (Holm 1979): 0 for those behind one that failed."""
    levels, failed = {}, False
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        level = alpha / (len(p_values) - rank)
        levels[name] = 0.0 if failed else level
        failed = failed or p > level
    return levels


def power_of(difference: float, spread: float, patients: int, alpha: float) -> float:
    """Chance of a one-sided paired t-test to find a true difference; the noncentral t distribution."""
    if spread < TINY:
        return float(difference > TINY)
    limit = special.stdtrit(patients - 1, 1 - alpha)
    return float(1 - special.nctdtr(patients - 1, difference / spread * np.sqrt(patients), limit))


def detectable(spread: float, patients: int, alpha: float, power: float = POWER) -> float:
    """The smallest true difference that is found with this power."""
    if spread < TINY:
        return 0.0
    low, high = 0.0, 50 * spread
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(middle, spread, patients, alpha) >= power else (middle, high)
    return high


def _better(gate: Gate, new: Scores, old: Scores, alpha: float, seed: int) -> list[Comparison]:
    tests = [_compared(m, new, old, margin, alpha, gate, seed) for m, margin in gate.endpoints.items()]
    levels = holm({t.measure: t.p for t in tests}, alpha)
    return [replace(t, level=(at := levels[t.measure]), shown=at > 0 and t.p <= at) for t in tests]


def _compared(measure: str, new: Scores, old: Scores, margin: float, alpha: float, gate: Gate, seed: int) -> Comparison:
    """Test "better by more than `margin`"; a negative one asks for "not worse by as much as"."""
    names = sorted(new.values[measure])
    a, b = (np.array([s.values[measure][n] for n in names], float) for s in (new, old))
    if measure in POOLED:
        truth = np.array([new.truth[n] for n in names])
        difference, p = _swapped(a, b, truth, margin, _rows(measure, gate.specificity), seed)
        spread = found = float("nan")
    else:
        d = (b - a) if measure in LESS_IS_BETTER else (a - b)
        difference, spread = float(d.mean()), float(d.std(ddof=1))
        p = float(chance(d - margin, seed))
        found = detectable(spread, len(d), alpha) + margin
    what = f"better by more than {margin:g}" if margin >= 0 else f"worse by less than {-margin:g}"
    return Comparison(measure, what, len(names), difference, margin, spread, found, p, alpha, p <= alpha)


def _swapped(
    a: Values,
    b: Values,
    truth: npt.NDArray[np.bool_],
    margin: float,
    statistic: Callable[[Values, npt.NDArray[np.bool_]], Values],
    seed: int,
) -> tuple[float, float]:
    """Difference of a pooled statistic, and the chance of it when the models' answers change places by patient."""
    difference = float((statistic(a[None], truth) - statistic(b[None], truth))[0])
    swap = np.random.default_rng(seed).integers(0, 2, (POOLED_DRAWS, len(a))).astype(bool)
    drawn = statistic(np.where(swap, b, a), truth) - statistic(np.where(swap, a, b), truth)
    larger = int((drawn >= difference - margin - TINY).sum())
    return difference, (1 + larger) / (1 + POOLED_DRAWS)


def _rows(measure: str, specificity: float) -> Callable[[Values, npt.NDArray[np.bool_]], Values]:
    def areas(scores: Values, truth: npt.NDArray[np.bool_]) -> Values:
        """(draws, patients) to the area under each row's ROC curve, ties counting half."""
        from scipy import stats  # as in `statistics`

        ranks = stats.rankdata(scores, axis=1)
        positive, negative = int(truth.sum()), int((~truth).sum())
        found: Values = (ranks[:, truth].sum(1) - positive * (positive + 1) / 2) / (positive * negative)
        return found

    def sensitivities(scores: Values, truth: npt.NDArray[np.bool_]) -> Values:
        """(draws, patients) to the share of positives above the threshold that so many negatives stay below."""
        limit = np.quantile(scores[:, ~truth], specificity, axis=1, method="higher")
        found: Values = (scores[:, truth] > limit[:, None]).mean(1)
        return found

    return areas if measure == "auc" else sensitivities


def _without(scores: Scores, seen: frozenset[str] | set[str]) -> Scores:
    values = {m: {p: v for p, v in of.items() if p not in seen} for m, of in scores.values.items()}
    return Scores(scores.model, values, scores.truth)


def _unfit(gate: Gate, scores: list[Scores]) -> list[str]:
    """Why no test can be made, every reason at once."""
    problems = []
    for measure in gate.measures:
        if absent := [s.model for s in scores if not s.values.get(measure)]:
            problems.append(f"{measure} is missing for {' and '.join(absent)}")
            continue
        problems += [
            f"{measure} of {s.model} is not a number for {bad} patients"
            for s in scores
            if (bad := sum(not np.isfinite(v) for v in s.values[measure].values()))
        ]
        sets = [set(s.values[measure]) for s in scores]
        if any(other != sets[0] for other in sets[1:]):
            problems.append(f"{measure}: the two models were not measured on the same patients")
        count = len(sets[0])
        if count < gate.minimum_patients:
            problems.append(f"{measure}: {count} locked patients count, the card asks for {gate.minimum_patients}")
        if measure in POOLED:
            problems += _one_class(measure, scores)
    return problems


def _one_class(measure: str, scores: list[Scores]) -> list[str]:
    names = set(scores[0].values[measure])
    if any(n not in s.truth for s in scores for n in names):
        return [f"{measure}: the truth is not known for every patient"]
    if any(s.truth[n] != scores[0].truth[n] for s in scores for n in names):
        return [f"{measure}: the two models were held against different truths"]
    if len({scores[0].truth[n] for n in names}) < 2:
        return [f"{measure}: all locked patients are of one class"]
    return []


def _not_accepted(gate: Gate, found: Mapping[str, Interval]) -> list[str]:
    problems = []
    for measure, limit in gate.acceptance.items():
        less = measure in LESS_IS_BETTER
        end = found[measure].high if less else found[measure].low
        if not (end <= limit if less else end >= limit):
            word = "at most" if less else "at least"
            problems.append(f"not accepted: {measure} is {found[measure]}, {word} {limit:g} is asked for at that end")
    return problems


def _power(test: Comparison) -> str:
    if not np.isfinite(test.spread):
        return f"{test.measure}: {test.patients} patients; power is not computed for pooled measures"
    margin = abs(test.margin) or test.spread / 2
    chance = power_of(margin, test.spread, test.patients, test.level) if test.level else 0.0
    return (
        f"{test.measure}: {test.patients} patients differ with standard deviation {test.spread:.4f}; the smallest true "
        f"difference found in 4 of 5 trials is {test.detectable:+.4f}, the power for {margin:.4f} beyond the margin "
        f"{chance:.0%}"
    )


def _closed(interval: Interval) -> Interval:
    """A constant has no bootstrap interval: then it is the interval."""
    bounds = (interval.low, interval.high)
    return interval if np.isfinite(bounds).all() else Interval(interval.value, interval.value, interval.value)
