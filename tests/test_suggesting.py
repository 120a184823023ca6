"""What to label next: cases whose features lie where geometry says which must come first."""

import json
import random
from pathlib import Path

import pytest
from test_watching import NORTH, a_case
from tiny import ready_home
from typer.testing import CliRunner

from medrec.choice import Candidate, choose
from medrec.cli import app
from medrec.errors import DataError
from medrec.events import DIVIDED
from medrec.home import Home
from medrec.labels.suggesting import suggest
from medrec.splits import Side
from medrec.store import Label, Origin, ShadowRow, Store

AT = "2026-03-01T00:00:00Z"


def at(case: str, x: float, y: float, doubt: float = 0.0, patient: str = "") -> Candidate:
    return Candidate(case, patient or case, {"x": x, "y": y}, {"doubtful": doubt})


# Four corners of a square with ten cases each close together, and one far away from all.
CORNERS = {
    (cx, cy): [at(f"{cx}{cy}{n}", cx + 0.01 * n, cy + 0.013 * n) for n in range(10)] for cx in (0, 9) for cy in (0, 9)
}
EVERY = [c for corner in CORNERS.values() for c in corner]


def corner(candidate: Candidate) -> tuple[int, int]:
    return round(candidate.features["x"]), round(candidate.features["y"])


def test_one_of_each_cluster_is_chosen_before_a_second_of_any_and_none_of_what_is_labelled() -> None:
    labelled = [c.features for c in CORNERS[0, 0][:3]]
    chosen = [corner(c.candidate) for c in choose(EVERY, labelled, 3)]
    assert sorted(chosen) == [(0, 9), (9, 0), (9, 9)]
    assert chosen[0] == (9, 9)  # the farthest of a square


def test_without_any_label_the_first_is_a_doubtful_one_and_then_the_clusters_follow() -> None:
    sure = [c for c in EVERY if c.case != "903"]
    first, *rest = choose([*sure, at("903", 9.03, 0.039, doubt=0.9)], (), 4)
    assert first.candidate.case == "903"
    assert first.why == ("doubtful", "nothing is labelled yet")
    assert sorted(corner(c.candidate) for c in rest) == [(0, 0), (0, 9), (9, 9)]


def test_doubt_decides_between_cases_that_are_equally_far() -> None:
    twins = [at("a", 5, 5), at("b", 5, 5, doubt=0.8), at("c", 5, 5, doubt=0.1)]
    assert [c.candidate.case for c in choose(twins, [{"x": 0.0, "y": 0.0}], 1)] == ["b"]


def test_a_patient_is_chosen_once() -> None:
    same = [at(str(n), n, n, patient="one") for n in range(5)] + [at("other", 2, 2)]
    assert len(choose(same, [{"x": 0.0, "y": 0.0}], 6)) == 2


def test_the_order_of_candidates_is_irrelevant_and_scale_of_a_feature_too() -> None:
    shuffled = random.Random(1).sample(EVERY, len(EVERY))
    labelled = [{"x": 0.0, "y": 0.0}]
    chosen = [c.candidate.case for c in choose(EVERY, labelled, 6)]
    assert [c.candidate.case for c in choose(shuffled, labelled, 6)] == chosen
    scaled = [
        Candidate(c.case, c.patient, {"x": 1000 * c.features["x"] - 7, "y": c.features["y"]}, c.doubts) for c in EVERY
    ]
    assert [c.candidate.case for c in choose(scaled, [{"x": -7.0, "y": 0.0}], 6)] == chosen


def test_one_broken_number_does_not_choose_for_all() -> None:
    broken = at("broken", 1e12, 0)
    chosen = choose([*EVERY, broken], [{"x": 0.0, "y": 0.0}], 2)
    assert corner(chosen[0].candidate) == (9, 9) or chosen[1].candidate.case != "broken"
    assert all(c.distance < 20 for c in chosen)


def test_the_reason_names_the_features_that_differ() -> None:
    (far,) = choose([at("far", 9, 0), at("near", 0.1, 0)], [{"x": 0.0, "y": 0.0}, {"x": 0.2, "y": 0.1}], 1)
    assert far.why == ("unlike what is labelled: x",)
    assert choose([], [], 3) == ()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    home = ready_home(tmp_path / "home")
    store = Store.open(home.store_url)
    for number in range(1, 9):
        values = {"FLAIR noise": float(number), "networks disagree": 0.9 if number == 4 else 0.02}
        a_case(store, number, NORTH, values)
    return store


def label(store: Store, number: int) -> None:
    store.add_label(
        Label(
            *("", "tiny", f"study {number}", f"patient {number}", "image", "mask", "0" * 64, {}, Origin.BLIND, "b", AT),
            *("1" * 64, "2" * 64, "3" * 64),
        )
    )


def cases(store: Store, count: int, **how: bool) -> list[int]:
    return [int(s.chosen.candidate.case, 16) for s in suggest(store, "tiny", count, **how).suggested]


def test_a_locked_patient_is_suggested_to_who_labels_blind_only(store: Store) -> None:
    label(store, 1)
    store.divide("tiny", {"patient 8": Side.TEST, "patient 7": Side.APART, "patient 2": Side.TRAINING}, "b", AT)
    open_to_all = cases(store, 20)
    assert sorted(open_to_all) == [2, 3, 4, 5, 6]
    assert sorted(cases(store, 20, blind=True)) == [2, 3, 4, 5, 6, 7, 8]
    assert {s.locked for s in suggest(store, "tiny", 20, blind=True).suggested} == {True, False}
    assert DIVIDED


def test_networks_that_disagree_come_first_with_the_number(store: Store) -> None:
    label(store, 5)
    first = suggest(store, "tiny", 1).suggested[0]
    assert int(first.chosen.candidate.case, 16) == 4
    assert first.chosen.why[0] == "the networks that outline overlap by a Dice of 0.10"


def test_a_challenger_that_says_otherwise_is_a_reason(store: Store) -> None:
    label(store, 5)
    facts = {"verdict": ["finding", "nothing marked"], "volume_ml": [5.0, 0.0], "lesions": [1, 0], "dice": 0.0}
    batch = store.batches()[-1].batch
    store.add_shadow(ShadowRow("study 6", "patient 6", "c" * 64, "d" * 64, batch, AT, facts))
    chosen = {int(s.chosen.candidate.case, 16): s.chosen.why for s in suggest(store, "tiny", 2).suggested}
    assert chosen[6][0] == "champion and challenger give another verdict"


def test_the_command_prints_the_reasons_and_a_model_without_cases_is_a_mistake(store: Store, tmp_path: Path) -> None:
    home = Home(tmp_path / "home").root
    result = CliRunner().invoke(app, ["labels", "suggest", "3", "--home", str(home), "--json"])
    told = json.loads(result.stdout)
    assert (told["card"], len(told["suggested"]), told["candidates"]) == ("tiny", 3, 8)
    assert all(s["chosen"]["why"] for s in told["suggested"])
    with pytest.raises(DataError, match="nothing to choose from"):
        suggest(store, "kidney", 1)
