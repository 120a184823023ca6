"""The gate: chance passes as rarely as the card says, what cannot be compared is refused, and every use costs."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from medrec import gate
from medrec.declared import Gate, looser
from medrec.gate import Scores, Use, budget, decide

GATE = Gate(primary="dice", alpha=0.05, uses=1, minimum_patients=12, acceptance={"dice": 0.1})


def scores(model: str, **values: list[float] | np.ndarray) -> Scores:
    named = {m: {f"p{n:03}": float(v) for n, v in enumerate(of)} for m, of in values.items()}
    return Scores(model, named)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def passed(challengers: "list[tuple[np.ndarray, np.ndarray]]", rules: Gate = GATE) -> int:
    return sum(decide(rules, scores("new", dice=new), scores("old", dice=old)).eligible for new, old in challengers)


def most(trials: int, share: float) -> int:
    """As many passes as chance of exactly `share` exceeds once in a thousand repetitions of the test."""
    return int(stats.binom.isf(1e-3, trials, share))


def test_of_a_thousand_equally_good_challengers_at_most_one_in_twenty_passes() -> None:
    draw = rng(1)

    # Dice as it is: most patients well, a few badly, and both models on the same easy and hard patients.
    hard, shape = draw.beta(6, 1.5, (1000, 25)), (1000, 25)
    new, old = (np.clip(hard + draw.normal(0, 0.05, shape) - draw.binomial(1, 0.08, shape) * 0.4, 0, 1) for _ in "ab")
    by_chance = np.concatenate([gate.chance(d) for d in np.split(new - old, 10)]) <= 0.05
    assert by_chance.sum() <= 50
    some = [*np.flatnonzero(by_chance)[:10], *range(10)]  # what the gate itself says of them
    assert [passed([(new[n], old[n])]) for n in some] == [int(by_chance[n]) for n in some]


def test_discrete_ties_do_not_let_chance_pass() -> None:
    draw = rng(2)
    new, old = (draw.choice([0.5, 0.5, 0.75, 1.0], (400, 20)) for _ in "ab")
    assert (gate.chance(new - old) <= 0.05).sum() <= most(400, 0.05)


def test_a_model_that_fails_a_few_patients_badly_does_not_pass_for_being_slightly_better_on_the_rest() -> None:
    draw = rng(3)  # differences of mean zero whose signs alone would let one in ten through
    differences = (1 - draw.exponential(1, (400, 40))) / 10
    assert (gate.sign_flip_p(differences) <= 0.05).sum() > most(400, 0.05)
    assert (gate.chance(differences) <= 0.05).sum() <= most(400, 0.06)  # what Hall's correction leaves at this size


def test_all_uses_together_let_through_no_more_than_one() -> None:
    rules = Gate(primary="dice", alpha=0.05, uses=5, minimum_patients=12, acceptance={"dice": 0.1})
    old, new = rng(4).beta(8, 2, (400, 1, 20)), rng(5).beta(8, 2, (400, 5, 20))
    at_once = np.stack([gate.chance(d) for d in (new - old).transpose(1, 0, 2)]) <= rules.alpha_per_use
    assert at_once.any(0).sum() <= most(400, 0.05)
    last = [decide(rules, scores("n", dice=[0.9] * 20), scores("o", dice=[0.1] * 20), used=k) for k in (0, 4, 5)]
    assert [v.alpha for v in last] == [rules.alpha_per_use, rules.alpha_per_use, 0]


def test_a_better_model_passes_and_a_worse_one_never() -> None:
    draw = rng(5)
    old = draw.beta(8, 3, 40)
    better = np.clip(old + draw.normal(0.05, 0.05, 40), 0, 1)
    assert decide(GATE, scores("new", dice=better), scores("old", dice=old)).eligible
    assert not decide(GATE, scores("new", dice=old), scores("old", dice=better)).eligible
    assert not decide(GATE, scores("new", dice=old), scores("old", dice=old)).eligible


def test_signs_are_flipped_exactly_where_they_can_be_counted() -> None:
    d = np.array([3.0, 1.0, 2.0, -0.5])
    larger = sum(np.dot(s, d) >= d.sum() for s in itertools.product((1, -1), repeat=4))
    assert gate.sign_flip_p(d) == larger / 16
    many = rng(6).normal(0.2, 1, 30)
    assert abs(gate.sign_flip_p(many) - stats.wilcoxon(many, alternative="greater").pvalue) < 0.1
    exact, drawn = gate.sign_flip_p(many[:14]), gate.sign_flip_p(np.append(many[:14], 0.0))
    assert drawn == pytest.approx(exact, abs=0.015)  # a patient without difference tells nothing


@given(st.lists(st.floats(-1, 1).map(lambda v: round(v, 3)), min_size=5, max_size=12))
def test_p_of_both_directions_together_is_at_least_one_and_order_is_irrelevant(values: list[float]) -> None:
    d = np.array(values)
    up, down = gate.sign_flip_p(d), gate.sign_flip_p(-d)
    assert up + down >= 1
    assert gate.sign_flip_p(d[::-1]) == up
    assert gate.sign_flip_p(d + 0.1) <= up + 1e-12  # better for everybody is never less significant


def test_holm_by_hand() -> None:
    levels = gate.holm({"a": 0.01, "b": 0.04, "c": 0.03}, 0.05)
    assert levels == {"a": pytest.approx(0.05 / 3), "c": pytest.approx(0.025), "b": 0.0}
    assert gate.holm({"a": 0.01, "b": 0.02}, 0.05) == {"a": 0.025, "b": 0.05}


def test_two_endpoints_cost_half_the_level_each_and_winning_one_must_not_cost_the_other() -> None:
    rules = Gate(
        primary="dice",
        also={"brier": 0.0},
        uses=1,
        minimum_patients=12,
        acceptance={"dice": 0.1},
        safety={"dice": 0.05, "brier": 0.05},
    )
    draw = rng(7)
    dice, brier = draw.beta(8, 3, 30), draw.uniform(0.1, 0.3, 30)
    better = decide(rules, scores("n", dice=dice, brier=brier - 0.05), scores("o", dice=dice, brier=brier))
    assert better.eligible  # brier: less is better
    worse = decide(rules, scores("n", dice=dice - 0.1, brier=brier - 0.05), scores("o", dice=dice, brier=brier))
    assert worse.reasons == ("not shown to be as safe: dice",)
    with pytest.raises(ValidationError, match="each needs a safety margin"):
        Gate(primary="dice", also={"brier": 0.0}, acceptance={"dice": 0.1})


def test_a_margin_must_be_exceeded() -> None:
    draw = rng(8)
    old = draw.uniform(0.5, 0.6, 30)
    new = old + draw.normal(0.03, 0.01, 30)
    wide = GATE.model_copy(update={"margin": 0.05})
    assert decide(GATE, scores("n", dice=new), scores("o", dice=old)).eligible
    assert not decide(wide, scores("n", dice=new), scores("o", dice=old)).eligible


def test_a_used_up_set_answers_nothing_more() -> None:
    better = decide(GATE, scores("n", dice=[0.9] * 20), scores("o", dice=[0.1] * 20), used=1)
    assert not better.eligible
    assert "used up" in better.reasons[0]
    assert better.tests == ()


def test_when_alpha_is_spent_only_patients_who_were_locked_since_decide_and_with_an_alpha_of_their_own() -> None:
    rules = Gate(primary="dice", alpha=0.06, uses=3, minimum_patients=12, acceptance={"dice": 0.1})
    old, new = frozenset("ab"), frozenset("abcd")
    uses = [Use(old, 0.02), Use(old, 0.02)]
    assert budget(uses, rules) == (2, frozenset())
    assert budget([*uses, Use(new, 0.02)], rules) == (0, new)
    assert budget([*uses, Use(new, 0.02), Use(frozenset("ef"), 0.02)], rules) == (1, new)
    more = Gate(primary="dice", alpha=0.06, uses=60, minimum_patients=12, acceptance={"dice": 0.1})
    assert budget([*uses, Use(old, 0.02)], more) == (0, old)  # more and smaller uses do not raise alpha


def test_patients_that_were_trained_on_do_not_count() -> None:
    old, new = [0.5] * 30, [0.5] * 20 + [1.0] * 10
    seen = {f"p{n:03}" for n in range(20, 30)}
    verdict = decide(GATE, scores("n", dice=new), scores("o", dice=old), seen=seen)
    assert verdict.excluded == tuple(sorted(seen))
    assert verdict.tests[0].patients == 20
    assert verdict.tests[0].difference == 0
    few = decide(GATE, scores("n", dice=new), scores("o", dice=old), seen={f"p{n:03}" for n in range(19)})
    assert "11 locked patients count, the card asks for 12" in few.reasons[0]


@pytest.mark.parametrize(
    ("new", "old", "why"),
    [
        ({"brier": [0.5] * 20}, {"dice": [0.5] * 20}, "dice is missing for n"),
        ({"dice": [0.5] * 19 + [math.nan]}, {"dice": [0.5] * 20}, "not a number for 1"),
        ({"dice": [0.5] * 20}, {"dice": [0.5] * 19}, "not measured on the same patients"),
        ({"dice": [0.5] * 3}, {"dice": [0.5] * 3}, "3 locked patients count"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(
    new: dict[str, list[float]], old: dict[str, list[float]], why: str
) -> None:
    verdict = decide(GATE, scores("n", **new), scores("o", **old))
    assert not verdict.eligible
    assert any(why in reason for reason in verdict.reasons)


def test_a_first_model_needs_the_acceptance_criteria_only_and_with_the_worse_end_of_its_interval() -> None:
    rules = GATE.model_copy(update={"acceptance": {"dice": 0.7, "false_positives": 1.0}})
    dice, marks = rng(9).uniform(0.65, 0.85, 30), [0.0] * 30
    assert decide(rules, scores("first", dice=dice, false_positives=marks), None).eligible
    strict = rules.model_copy(
        update={"acceptance": {"dice": dice.mean() - 0.005}}
    )  # below the mean, above the interval's low end
    verdict = decide(strict, scores("first", dice=dice), None)
    assert "not accepted: dice" in verdict.reasons[0]
    many = decide(rules, scores("first", dice=dice, false_positives=[2.0] * 30), None)
    assert "at most 1" in many.reasons[0]


def test_areas_are_compared_by_exchanging_the_models_answers() -> None:
    rules = Gate(primary="auc", uses=1, minimum_patients=20, acceptance={"auc": 0.5}, safety={"sensitivity": 0.1})
    draw, truth = rng(10), {f"p{n:03}": n % 2 == 0 for n in range(80)}
    positive = np.arange(80) % 2 == 0

    def model(name: str, skill: float) -> Scores:
        said = 1 / (1 + np.exp(-(positive * skill + draw.normal(0, 1, 80))))
        return Scores(name, scores(name, auc=said, sensitivity=said).values, truth)

    weak, strong = model("weak", 0.5), model("strong", 3.5)
    assert decide(rules, strong, weak).eligible
    assert not decide(rules, weak, strong).eligible
    alone = rules.model_copy(update={"safety": {}})
    lucky = sum(decide(alone, model("n", 1.5), model("o", 1.5), seed=n).tests[0].p <= 0.05 for n in range(40))
    assert lucky <= most(40, 0.05)
    one = Scores("one", strong.values, dict.fromkeys(truth, True))
    assert "one class" in decide(rules, one, None).reasons[0]


def test_power_and_the_smallest_detectable_difference_are_told_before_the_answer() -> None:
    draw = rng(11)
    old = draw.uniform(0.4, 0.8, 25)
    lines = decide(GATE, scores("n", dice=old + draw.normal(0, 0.1, 25)), scores("o", dice=old)).lines()
    told = next(n for n, line in enumerate(lines) if "4 of 5 trials" in line)
    assert told < next(n for n, line in enumerate(lines) if "p = " in line) < len(lines) - 1
    assert lines[-1] == "NOT ELIGIBLE"


def test_the_smallest_detectable_difference_is_what_statsmodels_and_textbooks_say() -> None:
    # Cohen's tables: a one-sided paired t-test at 0.05 with 27 pairs finds an effect of half a deviation in 4 of 5.
    assert gate.power_of(0.5, 1.0, 27, 0.05) == pytest.approx(0.81, abs=0.01)
    found = gate.detectable(0.2, 27, 0.05)
    assert gate.power_of(found, 0.2, 27, 0.05) == pytest.approx(0.8, abs=1e-6)


def test_a_gate_that_nobody_can_pass_is_a_mistake_and_a_looser_one_is_named() -> None:
    with pytest.raises(ValidationError, match="can never show anything"):
        Gate(primary="dice", minimum_patients=6, acceptance={"dice": 0.5})
    before = Gate(primary="dice", margin=0.01, acceptance={"dice": 0.7}, safety={"false_positives": 0.5})
    assert looser(before, before.model_copy(update={"margin": 0.02, "minimum_patients": 30})) == ()
    for change in (
        {"margin": 0.0},
        {"alpha": 0.1},
        {"uses": 2},
        {"minimum_patients": 10},
        {"acceptance": {"dice": 0.6}},
        {"acceptance": {"brier": 0.1}},
        {"safety": {}},
        {"safety": {"false_positives": 0.6}},
        {"primary": "brier"},
    ):
        assert looser(before, before.model_copy(update=change)), change
