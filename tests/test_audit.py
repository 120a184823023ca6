"""The ledger's arithmetic: equal facts, equal bytes; whatever is touched is noticed and named."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medrec.audit import GENESIS, AuditRecord, Problem, canonical, seal, verify, written_files

AT = "2026-03-01T02:00:00Z"
patient = settings(deadline=None)  # a busy machine is no failure
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
facts = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


def chain(number: int) -> list[AuditRecord]:
    """Records of as many cases; "key0" wrote reports/key0/report.json with the digest of its key."""
    records: list[AuditRecord] = []
    for i in range(number):
        key = f"key{i}"
        files = {f"reports/{key}/report.json": sha256(key)}
        told = {"case": key, "status": "analysed", "verdict": "finding", "files": files}
        records.append(seal(records[-1].digest if records else GENESIS, "case analysed", AT, told))
    return records


def sha256(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


def problems(*args: object) -> list[str]:
    return [str(p) for p in verify(*args)]  # type: ignore[arg-type]


def resealed(record: AuditRecord, **changes: object) -> AuditRecord:
    """A forger's record: other facts, with a digest that fits them."""
    return seal(record.previous, record.kind, record.at, {**record.facts, **changes})


# Canonical bytes


def test_canonical_bytes_are_these_ones() -> None:
    told = {"b": [1, True, None], "a": "Größe"}
    assert canonical(told) == b'{"a":"Gr\\u00f6\\u00dfe","b":[1,true,null]}'


@patient
@given(facts)
def test_canonical_bytes_read_back_as_the_same_facts(told: object) -> None:
    assert json.loads(canonical(told)) == told


@patient
@given(st.dictionaries(text, facts, max_size=5), st.randoms())
def test_equal_facts_give_equal_bytes_in_any_order(told: dict[str, object], random: object) -> None:
    items = list(told.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    assert canonical(dict(items)) == canonical(told)


@patient
@given(facts, facts)
def test_different_facts_give_different_bytes(one: object, other: object) -> None:
    # Python calls 1 and True equal, the ledger does not: equal bytes may only ever come from equal facts.
    assert canonical(one) != canonical(other) or one == other


def test_true_is_not_one_in_the_ledger() -> None:
    assert canonical({"a": True}) != canonical({"a": 1})


@pytest.mark.parametrize(
    ("told", "field"),
    [
        ({"a": {"volume_ml": 1.5}}, "facts.a.volume_ml"),
        ({"a": [1, float("nan")]}, "facts.a[1]"),
        ({"a": (1, 2)}, "facts.a"),
        ({"a": b"bytes"}, "facts.a"),
        ({1: "a"}, "key 1"),
        ({"a": "\ud800"}, "facts.a"),
    ],
)
def test_what_the_ledger_does_not_take_is_refused_by_the_name_of_its_field(told: object, field: str) -> None:
    with pytest.raises(TypeError) as e:
        canonical(told)
    assert field in str(e.value)
    with pytest.raises(TypeError) as e:
        seal(GENESIS, "case analysed", AT, told)  # type: ignore[arg-type]
    assert field in str(e.value)


@pytest.mark.parametrize("at", ["2026-03-01T02:00:00", "2026-03-01T02:00:00+01:00", "yesterday"])
def test_a_record_without_a_time_in_utc_is_refused(at: str) -> None:
    with pytest.raises(ValueError, match=r"UTC|isoformat"):
        seal(GENESIS, "x", at, {})


def test_a_record_says_what_was_sealed() -> None:
    record = seal(GENESIS, "case refused", AT, {"case": "key", "reason": "missing slice"})
    assert (record.kind, record.at, record.previous) == ("case refused", AT, GENESIS)
    assert record.facts == {"case": "key", "reason": "missing slice"}
    assert record.digest == hashlib.sha256(record.body).hexdigest()


# The chain


@pytest.mark.parametrize("number", [0, 1, 5])
def test_an_untouched_ledger_has_no_problem(number: int) -> None:
    assert problems(chain(number), lambda path: sha256(path.split("/")[1])) == []


@patient
@given(st.integers(0, 4), st.data())
def test_any_changed_byte_of_a_body_is_noticed_at_its_record(i: int, data: st.DataObject) -> None:
    records = chain(5)
    body = bytearray(records[i].body)
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    records[i] = replace(records[i], body=bytes(body))
    assert f"record {i + 1}: its bytes do not match its digest" in "\n".join(problems(records))


@patient
@given(st.integers(0, 3))
def test_a_changed_record_with_a_fitting_digest_is_noticed_by_the_next(i: int) -> None:
    records = chain(5)
    records[i] = resealed(records[i], verdict="nothing marked")
    assert f"record {i + 2}: it does not follow record {i + 1}" in "\n".join(problems(records))


@patient
@given(st.integers(0, 3))
def test_a_dropped_record_is_noticed_where_it_was(i: int) -> None:
    records = chain(5)
    del records[i]
    assert f"record {i + 1}: it does not" in problems(records)[0]


@patient
@given(st.integers(0, 4), st.integers(0, 4))
def test_swapped_records_are_noticed(i: int, j: int) -> None:
    records = chain(5)
    records[i], records[j] = records[j], records[i]
    found = problems(records)
    assert bool(found) == (i != j)
    if found:
        assert found[0].startswith(f"record {min(i, j) + 1}: ")


@patient
@given(st.integers(0, 5), st.integers(0, 4))
def test_a_repeated_record_is_noticed(at: int, which: int) -> None:
    records = chain(5)
    records.insert(at, records[which])
    assert problems(records)


@patient
@given(st.integers(0, 4))
def test_an_inserted_record_is_noticed(at: int) -> None:
    records = chain(5)
    records.insert(at, seal(records[at].previous, "x", AT, {}))
    assert f"record {at + 2}: it does not follow record {at + 1}" in "\n".join(problems(records))


def test_a_predecessor_changed_beside_the_bytes_is_noticed() -> None:
    records = chain(2)
    records[0] = replace(records[0], previous="1" * 64)
    assert problems(records) == [
        "record 1: it does not open the ledger: records before it were removed, or it was changed",
        "record 1: the store names another predecessor for it than its own bytes do",
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"{}",
        b'{"at":"x","facts":[],"kind":"x","previous":"x"}',
        b'{"at": "x","facts":{},"kind":"x","previous":"x"}',
        b'{"at":"x","at":"x","facts":{},"kind":"x","previous":"x"}',
        b'{"at":"x","facts":{"a":NaN},"kind":"x","previous":"x"}',
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_no_record_are_named_and_the_rest_is_still_looked_at(body: bytes) -> None:
    broken = AuditRecord(body, hashlib.sha256(body).hexdigest(), GENESIS)
    told = {"case": "key", "files": {"reports/key/report.json": "0"}}
    found = problems([broken, seal(broken.digest, "case analysed", AT, told)], lambda path: None)
    assert found[0].startswith(("record 1: its bytes are not", "record 1: it does not have"))
    assert found[1:] == ["report.json of case key: it is gone or cannot be read"]


# The files


def test_a_changed_and_a_missing_file_are_named() -> None:
    files: Mapping[str, str | None] = {"reports/key0/report.json": "other", "reports/key1/report.json": None}
    assert problems(chain(2), files.get) == [
        "report.json of case key0: its bytes changed since it was written",
        "report.json of case key1: it is gone or cannot be read",
    ]


def test_only_the_latest_record_of_a_case_is_held_against_its_files() -> None:
    first = seal(GENESIS, "case failed", AT, {"case": "key", "files": {"reports/key/report.json": "old"}})
    files = {"reports/key/report.json": "new"}
    second = seal(first.digest, "case analysed", AT, {"case": "key", "files": files})
    assert problems([first, second], files.get) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "reports/../../x", "", "a\\..\\b"])
def test_a_record_that_names_a_file_outside_the_home_is_named_and_the_file_not_touched(path: str) -> None:
    told = {"case": "key", "files": {path: "0"}}
    with pytest.raises(ValueError, match="outside the home"):
        written_files(told)

    def touched(path: str) -> str | None:
        raise AssertionError(path)

    record = seal(GENESIS, "case analysed", AT, told)
    assert problems([record], touched) == ["record 1: it names a file outside the home"]


@pytest.mark.parametrize("files", [["a"], "a", {"a": 1}, {"a": None}])
def test_files_that_are_no_table_of_digests_are_named(files: object) -> None:
    record = seal(GENESIS, "case analysed", AT, {"case": "key", "files": files})
    assert problems([record], lambda path: None) == ["record 1: its files are no table of paths and digests"]


def test_a_long_case_key_is_shortened_but_the_file_named_in_full() -> None:
    key = sha256("key")
    record = seal(GENESIS, "case analysed", AT, {"case": key, "files": {f"reports/{key}/deep/mask.nii.gz": "0"}})
    assert list(verify([record], lambda path: None)) == [
        Problem(f"deep/mask.nii.gz of case {key[:12]}…", "it is gone or cannot be read")
    ]


# The store's cases


def row(key: str, **changes: object) -> dict[str, object]:
    return {"case": key, "status": "analysed", "verdict": "finding", "superseded_by": None, **changes}


def test_cases_that_agree_with_their_records_are_no_problem() -> None:
    assert problems(chain(2), None, {"key0": row("key0"), "key1": row("key1")}) == []


def test_a_changed_row_is_named_with_what_both_say() -> None:
    found = problems(chain(2), None, {"key0": row("key0"), "key1": row("key1", verdict="nothing marked")})
    what = "verdict is 'nothing marked' in the store, 'finding' in the ledger (record 2)"
    assert found == [f"case key1: {what}"]


def test_a_row_without_record_and_a_record_without_row_are_named() -> None:
    assert problems(chain(2), None, {"key0": row("key0"), "key2": row("key2")}) == [
        "case key1: record 2 tells of it, but the store does not have it",
        "case key2: the store has it, but no record tells of it",
    ]


def test_the_last_record_cannot_be_cut_off_while_its_case_stays() -> None:
    assert problems(chain(2)[:1], None, {"key0": row("key0"), "key1": row("key1")}) == [
        "case key1: the store has it, but no record tells of it"
    ]


def test_a_hidden_supersession_is_named() -> None:
    records = chain(2)
    records.append(seal(records[-1].digest, "case superseded", AT, {"case": "key0", "by": "key1"}))
    rows = {"key0": row("key0", superseded_by="key1"), "key1": row("key1")}
    assert problems(records, None, rows) == []
    rows["key0"] = row("key0")
    (found,) = problems(records, None, rows)
    assert found.startswith("case key0: superseded_by is nothing in the store, 'key1' in the ledger")


def test_a_case_record_without_a_key_is_named() -> None:
    record = seal(GENESIS, "case failed", AT, {})
    assert problems([record]) == ["record 1: it does not say which case it is about"]
