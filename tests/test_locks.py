"""Locks in the store: given once, on record, followed by rotation, forgotten with their patient."""

import sqlite3
from pathlib import Path

import pytest

from medrec.errors import DataError
from medrec.gate import Use
from medrec.splits import Side
from medrec.store import Store

AT = "2026-01-01T00:00:00Z"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(f"sqlite:///{tmp_path / 'medrec.db'}")


def test_who_has_a_side_keeps_it_and_the_ledger_names_nobody(store: Store) -> None:
    assert store.divide("toy", {"anna": Side.TEST, "bert": Side.TRAINING}, "dr. a", AT) == 2
    assert store.divide("toy", {"anna": Side.TRAINING, "bert": Side.TRAINING}, "dr. a", AT) == 0
    assert store.sides() == {"anna": Side.TEST, "bert": Side.TRAINING}
    (record,) = store.ledger()
    assert record.kind == "patients divided"
    assert b"anna" not in record.body
    assert list(store.contradictions()) == []
    assert store.divide("toy", {"anna": Side.APART, "carl": Side.TEST}, "dr. a", AT) == 2
    assert store.divide("toy", {"anna": Side.TEST}, "dr. a", AT) == 0  # for good
    assert store.sides()["anna"] is Side.APART
    assert list(store.contradictions()) == []


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE sides SET side = 'training' WHERE patient = 'anna'", "no record says that their side is training"),
        ("UPDATE sides SET patient = 'carl' WHERE patient = 'anna'", "no record says that their side is test"),
        ("DELETE FROM sides WHERE patient = 'anna'", "more of them are gone than patients were erased"),
    ],
)
def test_a_side_that_somebody_changed_in_the_database_is_named(
    store: Store, tmp_path: Path, statement: str, words: str
) -> None:
    store.divide("toy", {"anna": Side.TEST, "bert": Side.TRAINING}, "dr. a", AT)
    with sqlite3.connect(tmp_path / "medrec.db") as database:
        database.execute(statement)
    assert words in "\n".join(str(p) for p in store.contradictions())


def test_each_use_is_counted_by_the_model_s_name(store: Store) -> None:
    for n in range(3):
        store.use("toy", f"card{n}", ("anna",), n + 1, 0.01, "dr. a", AT)
    assert (len(store.uses("toy")), len(store.uses("other"))) == (3, 0)
    assert store.uses("toy", besides="card1") == (Use(frozenset(store.keyed(["anna"]).values()), 0.01),) * 2
    assert [r.facts["use"] for _, r in store.of_kinds("test set used")] == [1, 2, 3]


def test_a_model_that_passed_no_gate_cannot_be_promoted(store: Store) -> None:
    store.append("model trained", AT, {"card": "c", "weights": "w"})
    with pytest.raises(DataError, match="without 'model eligible'"):
        store.append("model promoted", AT, {"card": "c", "by": "dr. a"})
