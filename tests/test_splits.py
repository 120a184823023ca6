"""Sides: by patient, by key, for good; and who is the same person stands on the same side."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from medrec import splits
from medrec.splits import Candidate, Side


def draw(key: str = "key") -> splits.Draw:
    return lambda name: hashlib.sha256(f"{key} {name}".encode()).hexdigest()


def people(count: int, first: int = 0, **changed: object) -> list[Candidate]:
    return [
        Candidate(f"p{n:04}", "large" if n % 3 else "small", True, False)._replace(**changed)  # type: ignore[arg-type]
        for n in range(first, first + count)
    ]


def divided(
    them: list[Candidate], known: dict[str, Side] | None = None, links: tuple[tuple[str, str], ...] = (), key: str = "k"
) -> dict[str, Side]:
    names = {c.patient for c in them} | set(known or {})
    return splits.assign(them, splits.groups(sorted(names), links), known or {}, 0.2, draw(key))


def test_the_same_key_gives_the_same_sides_in_any_order_and_another_key_others() -> None:
    them = people(100)
    assert divided(them) == divided(them[::-1])
    assert divided(them) != divided(them, key="other")


def test_a_fifth_of_each_stratum_is_locked() -> None:
    them = people(300)
    sides = divided(them)
    for stratum in ("small", "large"):
        own = [sides[c.patient] for c in them if c.stratum == stratum]
        assert own.count(Side.TEST) == round(len(own) / 5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.data())
def test_later_patients_fall_into_place_and_nobody_changes_sides(portions: list[int], data: st.DataObject) -> None:
    known: dict[str, Side] = {}
    them: list[Candidate] = []
    locked = 0
    for portion in portions:
        them += people(portion, len(them))
        now = divided(them, known)
        assert all(now[p] is side for p, side in known.items())
        assert sum(s is Side.TEST for s in now.values()) >= locked  # the test set grows
        known, locked = now, sum(s is Side.TEST for s in now.values())
    if len(them) > 20:
        assert abs(locked - len(them) / 5) <= 2


def test_the_same_person_under_other_names_stands_on_one_side() -> None:
    them = people(60)
    links = (*((f"p{n:04}", f"p{n + 30:04}") for n in range(30)), ("p0000", "p0001"))
    sides = divided(them, links=links)
    assert all(sides[a] is sides[b] for a, b in links)
    assert Side.APART not in sides.values()


def test_a_newcomer_who_is_a_locked_patient_is_locked_as_well_and_one_of_both_sides_stands_apart() -> None:
    them = people(40)
    known = divided(them)
    test = next(p for p, s in known.items() if s is Side.TEST)
    learnt = next(p for p, s in known.items() if s is Side.TRAINING)
    more = [*them, *people(1, 900)]
    assert divided(more, known, (("p0900", test),))["p0900"] is Side.TEST
    assert divided(more, known, (("p0900", learnt),))["p0900"] is Side.TRAINING
    assert divided(people(1, 900), known, (("p0900", test),))["p0900"] is Side.TEST  # relabelled: the old name is gone
    both = divided(more, known, (("p0900", test), ("p0900", learnt)))
    assert {both[p] for p in ("p0900", test, learnt)} == {Side.APART}
    joined = splits.groups([c.patient for c in more], [(test, learnt)])
    assert splits.conflicts(joined, known) == (min(test, learnt),)


def test_who_was_seen_by_a_model_or_has_no_blind_label_is_never_locked() -> None:
    sides = divided([*people(50, seen=True), *people(50, 50, testable=False), *people(20, 100)])
    assert all(sides[f"p{n:04}"] is Side.TRAINING for n in range(100))
    assert sum(s is Side.TEST for s in sides.values()) == 20  # a fifth of 120, of those who can be
    locked = {"p0000": Side.TEST}
    joined = splits.assign(
        [*people(1), *people(1, 1, seen=True)], {"p0000": "p0000", "p0001": "p0000"}, locked, 0.2, draw()
    )
    assert set(joined.values()) == {Side.APART}


def test_quotas_add_up_to_the_share_of_all() -> None:
    assert sum(splits.quotas({str(n): 1 for n in range(25)}, 0.2).values()) == 5
    assert splits.quotas({"a": 10, "b": 20}, 0.2) == {"a": 2, "b": 4}


def test_who_watches_the_training_is_drawn_by_stratum_too() -> None:
    them = [(c.patient, c.stratum) for c in people(90)]
    watching = splits.watching(them, 0.2, draw())
    assert len(watching) == 18
    assert sum(s == "small" for p, s in them if p in watching) == 6
