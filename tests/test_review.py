"""A review counts only when its person signed it, for this report, in that role; whatever else is tried is noticed."""

import base64
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from reviewers import answer, key_file, known, person, reported, sign, signer

from medrec import credentials, signing
from medrec.audit import salted
from medrec.config import load
from medrec.credentials import Register
from medrec.dispatch.release import _allowed
from medrec.errors import ConfigError, DataError
from medrec.peers import Destination
from medrec.people import Person
from medrec.report import Status, Verdict
from medrec.statistics import share
from medrec.store import CaseRow, ReviewRow, State, Store
from medrec.store.answers import signed_facts
from medrec.store.reviews import request_of

AT, LATER, LAST = "2026-03-01T02:00:00Z", "2026-03-02T02:00:00Z", "2026-03-03T02:00:00Z"


def finished(store: Store, key: str, patient: str = "patient") -> None:
    store.remember_study(f"study {patient}", patient, AT)
    row = CaseRow(
        key, f"study {patient}", patient, "night", key, "1.0.0", "0", Status.ANALYSED, "", Verdict.FINDING, None, None,
        None, AT, 1, None,
    )  # fmt: skip
    store.finish(row, reported(key), AT)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with two reports of two patients, and two reviewers on record."""
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.start_batch("night", AT)
        finished(store, "a")
        finished(store, "b", "other")
        known(store, [person("DOE"), person("ROE"), person("PROM", "promoter")], AT)
        yield store


def problems(store: Store) -> list[str]:
    signed = credentials.check(enumerate(store.ledger(), 1))
    return [str(p) for found in (store.verify(), store.contradictions(), signed) for p in found]


def sql(store: Store, statement: str, *values: object) -> None:
    with store._writing() as connection:
        connection.exec_driver_sql(statement, values)


def signed_row(store: Store, one: signing.Signer, row: ReviewRow) -> ReviewRow:
    """An answer signed elsewhere, by whomever, in whatever name `row.by` says."""
    facts = signed_facts(row, store.salt("patient"))
    body = signing.statement("review", row.at, facts)
    return replace(row, key=one.key, signature=base64.b64encode(one.private.sign(body)).decode())


# What holds


def test_a_signed_accept_is_on_record_releases_and_verifies(store: Store) -> None:
    row = sign(store, "a", "accept", "DOE", LATER, "as I see it")
    assert store.reviews("a") == (row,)
    state = store.review_states(["a", "b"])
    assert (state["a"].word, state["a"].signed, state["a"].shown) == ("accepted", True, "accepted, signed by DOE")
    assert (state["b"].word, state["b"].signed) == ("unreviewed", False)
    assert store.accepted("a") == store.released("a") == ("DOE", LATER)
    assert store.accepted("b") is None
    assert problems(store) == []


def test_the_ledger_holds_neither_the_words_of_a_comment_nor_a_digest_that_could_be_guessed(store: Store) -> None:
    sign(store, "a", "accept", "DOE", LATER, "Mrs Miller again")
    (facts,) = (r.facts for r in store.ledger() if r.kind == "review")
    assert "Miller" not in b"".join(r.body for r in store.ledger()).decode()
    assert facts["comment"] == salted(store.salt("patient"), "Mrs Miller again")


def test_openssl_verifies_a_review_from_its_record_alone(store: Store, tmp_path: Path) -> None:
    sign(store, "a", "accept", "DOE", LATER, "seen")
    (record,) = (r for r in store.ledger() if r.kind == "review")
    (tmp_path / "said").write_bytes(signing.statement("review", record.at, record.facts))
    (tmp_path / "sig").write_bytes(base64.b64decode(str(record.facts["signature"])))
    pem = f"-----BEGIN PUBLIC KEY-----\n{record.facts['key']}\n-----END PUBLIC KEY-----\n"
    (tmp_path / "pub").write_text(pem)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "pub", "-rawin", "-in", "said", "-sigfile", "sig"]
    assert "Verified Successfully" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    (tmp_path / "said").write_bytes((tmp_path / "said").read_bytes().replace(b"accept", b"reject"))
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1


FACTS = {"case": "a", "report": "r", "page": "p", "decision": "accept", "comment": "c", "mask": "", "by": "DOE"}


@given(st.sampled_from([*FACTS]), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_whatever_is_changed_of_what_was_signed_the_signature_no_longer_fits(name: str, value: str) -> None:
    signed = signer("DOE").sign("review", AT, FACTS)
    assert signing.fits("review", AT, signed)
    assert signing.fits("review", AT, {**signed, name: value}) == (value == FACTS[name])
    assert not signing.fits("review", LATER, signed)
    assert not signing.fits("model promoted", AT, signed), "a signature of one kind is none of another"


def test_a_key_that_is_replaced_or_removed_later_leaves_what_it_signed(store: Store) -> None:
    sign(store, "a", "accept", "DOE", AT)
    store.change_people([person("DOE", key="new key")], "medrec.yaml", LATER)
    assert store.accepted("a") == ("DOE", AT)
    with pytest.raises(DataError, match="another key than that of DOE"):
        store.sign_review(answer(store, "b", "accept", "DOE", LATER), signer("DOE"))
    store.sign_review(answer(store, "b", "accept", "DOE", LATER), signer("DOE", "new key"))
    store.change_people([], "medrec.yaml", LAST)
    assert store.released("a") == ("DOE", AT)
    assert problems(store) == []
    with pytest.raises(DataError, match="nobody called DOE is on record"):
        store.sign_review(answer(store, "b", "edit", "DOE", LAST), signer("DOE", "new key"))


# Attacks that are refused


def test_who_signs_in_the_name_of_another_is_refused(store: Store) -> None:
    forged = signed_row(store, signer("ROE"), answer(store, "a", "accept", "DOE", LATER))
    with pytest.raises(DataError, match="another key than that of DOE"):
        store.take_review(forged)
    with pytest.raises(DataError, match="does not fit what it says"):
        store.take_review(replace(forged, key=signer("DOE").key))
    assert store.accepted("a") is None
    assert problems(store) == []


def test_a_signature_does_not_count_for_another_case_another_report_or_twice(store: Store) -> None:
    row = sign(store, "a", "accept", "DOE", LATER)
    for other, words in (
        (replace(row, case="b"), "does not fit"),
        (replace(row, decision=answer(store, "a", "edit", "DOE", LATER).decision), "does not fit"),
        (row, "used before"),
    ):
        with pytest.raises(DataError, match=words):
            store.take_review(other)
    elsewhere = replace(answer(store, "a", "accept", "DOE", LAST), page="0" * 64)
    with pytest.raises(DataError, match="another report than the one on record"):
        store.sign_review(elsewhere, signer("DOE"))
    assert len(store.reviews("a")) == 1


ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def respelt(text: str) -> list[str]:
    """The other base64 texts that Python reads as the same bytes: by the spare bits of the last character."""
    body = text.rstrip("=")
    near = [body[:-1] + c + "=" * (len(text) - len(body)) for c in ALPHABET if c != body[-1]]
    return [one for one in near if base64.b64decode(one, validate=True) == base64.b64decode(text)]


def test_a_withdrawn_acceptance_is_not_signed_again_by_another_spelling_of_its_signature(store: Store) -> None:
    row = sign(store, "a", "accept", "DOE", AT)
    sign(store, "a", "edit", "DOE", LATER)
    assert row.signature is not None
    assert row.key is not None
    assert len(respelt(row.signature)) == 15
    for other in respelt(row.signature):
        with pytest.raises(DataError, match="does not fit"):
            store.take_review(replace(row, signature=other))
    for key in respelt(row.key):
        with pytest.raises(DataError, match="another key"):
            store.take_review(replace(row, key=key))
        with pytest.raises(ValidationError, match="no public Ed25519 key"):
            Person(name="ROE", key=key, roles=("reviewer",))
    (facts, _) = (r.facts for r in store.ledger() if r.kind == "review")
    unchecked(store, "review", {**facts, "signature": respelt(row.signature)[0]}, AT)  # past all checks
    assert any("does not fit" in p for p in problems(store))
    assert store.released("a") is None


def test_nobody_reviews_without_the_role_or_without_being_known(store: Store) -> None:
    for name, words in (("PROM", "PROM is no reviewer"), ("WHO", "nobody called WHO")):
        with pytest.raises(DataError, match=words):
            store.sign_review(answer(store, "a", "accept", name, LATER), signer(name))
    assert store.reviews("a") == ()


def test_who_signs_first_comes_on_record_with_the_answer_and_not_without_it(store: Store) -> None:
    new, before = person("NEW"), store.position()
    other = replace(answer(store, "a", "accept", "NEW", LATER), page="0" * 64)
    with pytest.raises(DataError, match="another report than the one on record"):
        store.sign_review(other, signer("NEW"), own=new)
    for one, who, words in (
        (person("NEW", "auditor"), "NEW", "NEW is no reviewer"),
        (person("NEW", key="DOE"), "DOE", "the key of NEW was DOE's before"),
    ):
        with pytest.raises(DataError, match=words):
            store.sign_review(answer(store, "a", "accept", "NEW", LATER), signer("NEW", who), own=one)
    assert store.position() == before
    store.sign_review(answer(store, "a", "accept", "NEW", LATER), signer("NEW"), own=new)
    assert [r.kind for r in store.ledger(before[0])] == ["people changed", "review", "case accepted"]
    assert (store.released("a"), problems(store)) == (("NEW", LATER), [])


def test_a_key_stays_one_persons_also_after_both_are_gone(store: Store) -> None:
    store.change_people([], "medrec.yaml", LATER)
    with pytest.raises(DataError, match="the key of ROE was DOE's before"):
        store.change_people([person("ROE", key="DOE")], "medrec.yaml", LAST)


def test_once_there_is_an_operator_nobody_else_changes_who_may_sign(store: Store) -> None:
    boss, people = signer("BOSS"), [person("DOE"), person("BOSS", "operator")]
    store.change_people(people, "medrec.yaml", AT)
    stolen = [person("DOE", key="thief"), person("BOSS", "operator")]
    with pytest.raises(DataError, match="no operator signed it"):
        store.change_people(stolen, "medrec.yaml", LATER)
    with pytest.raises(DataError, match="DOE is no operator"):
        store.change_people(stolen, "DOE", LATER, signer("DOE"))
    assert store.change_people([*people, person("NEW")], "BOSS", LATER, boss)
    assert not store.change_people([*people, person("NEW")], "medrec.yaml", LAST), "nothing changes"
    assert problems(store) == []


def test_a_promotion_needs_a_promoter_as_soon_as_there_is_one(store: Store) -> None:
    for kind in ("model evaluated", "model eligible"):
        store.append(kind, AT, {"card": "c", "evaluation": "e"})
    facts: dict[str, object] = {"card": "c", "model": "m", "why": "better", "by": "DOE"}
    with pytest.raises(DataError, match="no promoter signed it"):
        store.promoted(facts, LATER, None)
    with pytest.raises(DataError, match="DOE is no promoter"):
        store.promoted(facts, LATER, signer("DOE"))
    store.promoted(facts, LATER, signer("PROM"))
    assert problems(store) == []
    store.append("model promoted", LAST, facts)  # past all checks
    assert "a 'model promoted' that does not count: no promoter signed it" in "\n".join(problems(store))


# Attacks on the store itself, which are noticed


def unchecked(store: Store, kind: str, facts: dict[str, object], at: str = LATER) -> None:
    """A record that is chained as it should be, by somebody who can write the database."""
    store._extend(lambda tail: tail.add(kind, at, facts))


def forged_review(store: Store) -> None:
    row = replace(answer(store, "b", "accept", "DOE", LATER), review="forged")
    facts = signer("ROE").sign("review", LATER, {**FACTS, "case": "b", "review": "forged"})
    unchecked(store, "review", {**facts, "by": "DOE", "key": signer("DOE").key})
    values = (row.review, "b", "r", "p", "accept", "c", None, "DOE", LATER, signer("DOE").key, facts["signature"], "")
    number = store.position()[0]
    sql(store, f"INSERT INTO reviews VALUES ({', '.join('?' * 12)}, {number})", *values)


def forged_acceptance(store: Store) -> None:
    unchecked(store, "case accepted", {"case": "b", "by": "DOE"})
    sql(store, "INSERT INTO accepted VALUES ('b', 'DOE', ?)", LATER)


def replayed(store: Store) -> None:
    (facts,) = (r.facts for r in store.ledger() if r.kind == "review")
    unchecked(store, "review", {**facts, "review": "again"}, AT)


def swapped_key(store: Store) -> None:
    """Another key in the name of DOE, in the very record that made it known: the chain is written anew."""
    people = [person("DOE", key="thief")]
    unchecked(store, "people changed", {**Register().change(people), "by": "medrec.yaml"})


ATTACKS: dict[str, tuple[Callable[[Store], None], str]] = {
    "a decision": (lambda s: sql(s, "UPDATE reviews SET decision = 'reject'"), "review of case a.*no record says"),
    "a comment": (lambda s: sql(s, "UPDATE reviews SET comment = 'x'"), "review of case a.*no record says"),
    "who it was": (lambda s: sql(s, "UPDATE reviews SET by = 'ROE'"), "review of case a.*no record says"),
    "a time": (lambda s: sql(s, "UPDATE reviews SET at = ?", LAST), "review of case a.*no record says"),
    "a signature": (lambda s: sql(s, "UPDATE reviews SET signature = 'x' WHERE signature > ''"), "review of case a"),
    "one is gone": (lambda s: sql(s, "DELETE FROM reviews"), "a record tells of it, but the store does not have it"),
    "its acceptance is gone": (lambda s: sql(s, "DELETE FROM accepted"), "acceptance that a record tells of"),
    "another is accepted": (lambda s: sql(s, "INSERT INTO accepted VALUES ('b', 'DOE', '')"), "tells of the accept"),
    "a request is gone": (lambda s: sql(s, "DELETE FROM label_requests"), "request for a label that a record tells"),
    "a request is changed": (lambda s: sql(s, "UPDATE label_requests SET wants = 'any'"), "of the request for a label"),
    "a request's study": (
        lambda s: sql(s, "UPDATE label_requests SET study = 'study patient'"),
        "case b.*names another study or patient",
    ),
    "a request's patient": (
        lambda s: sql(s, "UPDATE label_requests SET patient = 'patient'"),
        "case b.*names another study or patient",
    ),
    "a claim's key": (lambda s: sql(s, "UPDATE reviews SET key = 'x' WHERE signature IS NULL"), "review of case b"),
    "a claim's mask": (
        lambda s: sql(s, "UPDATE reviews SET mask_sha256 = 'x' WHERE signature IS NULL"),
        "review of case b.*no record says",
    ),
    "what is wrong with a signed one": (
        lambda s: sql(s, "UPDATE reviews SET problem = 'superseded' WHERE signature IS NOT NULL"),
        "review of case a.*no record says",
    ),
    "a review, with its record": (forged_review, "a 'review' that does not count: its signature does not fit"),
    "an acceptance, with its record": (forged_acceptance, "no signed review of case b… accepts it"),
    "a signature again": (replayed, "its signature was used before"),
    "the people": (swapped_key, "'people changed' that does not count: it does not change the people"),
}  # fmt: skip


@pytest.mark.parametrize("what", ATTACKS)
def test_what_was_forged_is_noticed_and_releases_nothing(store: Store, what: str) -> None:
    sign(store, "a", "accept", "DOE", AT)
    case = store.case("b")
    assert case is not None
    store.want_labels([request_of(case, "blind", "blind sample 2026-02", "medrec", AT)])
    store.claim_review(answer(store, "b", "edit", "x", AT))
    assert problems(store) == []
    attack, words = ATTACKS[what]
    attack(store)
    assert re.search(words, "\n".join(problems(store))), problems(store)
    assert store.released("b") is None


def swap(store: Store, table: str) -> None:
    """Change the order of the two rows of a table; the database asks for the number of a record, each once."""
    spare = store.of_kinds("people changed")[0][0]
    with store._writing() as connection:
        low, high = connection.exec_driver_sql(f"SELECT min(seq), max(seq) FROM {table}").one()
        for before, after in ((low, spare), (high, low), (spare, high)):
            connection.exec_driver_sql(f"UPDATE {table} SET seq = ? WHERE seq = ?", (after, before))


@pytest.mark.parametrize("table", ["reviews", "label_requests", "cases"])
def test_a_changed_order_is_noticed_which_would_bring_a_withdrawn_acceptance_back(store: Store, table: str) -> None:
    sign(store, "a", "accept", "DOE", AT)
    sign(store, "a", "edit", "DOE", LATER)
    case = store.case("b")
    assert case is not None
    store.want_labels([request_of(case, wants, "rejected", "DOE", AT) for wants in ("any", "blind")])
    assert (store.released("a"), problems(store)) == (None, [])
    swap(store, table)
    assert problems(store)


# Several answers


def test_signed_answers_that_differ_release_nothing_until_they_agree(store: Store) -> None:
    sign(store, "a", "accept", "DOE", AT)
    assert store.released("a")
    sign(store, "a", "edit", "ROE", LATER)
    state = store.review_states(["a"])["a"]
    assert (state.word, state.conflict) == ("needs-edit", "signed answers that differ")
    assert store.released("a") is None
    sign(store, "a", "accept", "ROE", LAST)
    assert store.released("a") == ("DOE", AT)
    assert problems(store) == []


def test_of_one_person_the_last_answer_counts_and_an_accept_after_an_edit_releases(store: Store) -> None:
    sign(store, "a", "edit", "DOE", AT)
    assert store.released("a") is None
    sign(store, "a", "accept", "DOE", LATER)
    assert store.released("a") == ("DOE", LATER)


def test_of_one_persons_claims_the_last_counts_too_however_they_were_made(store: Store) -> None:
    claims = [answer(store, "a", decision, "DOE", AT) for decision in ("accept", "reject", "edit")]
    for one, page in zip(claims, ("", claims[0].page, ""), strict=True):
        store.claim_review(replace(one, page=page))
    state = store.review_states(["a"])["a"]
    assert (state.word, state.conflict) == ("needs-edit", "")
    store.claim_review(answer(store, "a", "accept", "ROE", LATER))
    state = store.review_states(["a"])["a"]
    assert (state.word, state.by, state.conflict) == ("accepted", "ROE", "answers that differ")
    store.claim_review(replace(claims[0], page=""))
    state = store.review_states(["a"])["a"]
    assert (state.word, state.by, state.conflict) == ("accepted", "DOE", "")


def test_a_rejected_report_is_taken_back_for_good(store: Store) -> None:
    sign(store, "a", "accept", "DOE", AT)
    sign(store, "a", "reject", "ROE", LATER)
    assert store.recalled("a") == ("quality", LATER)
    assert store.released("a") is None
    with pytest.raises(DataError, match="was taken back, and stays so"):
        sign(store, "a", "accept", "ROE", LAST)
    assert store.undelivered("pacs") == tuple(c for c in store.cases() if c.case == "b")
    assert problems(store) == []


def test_a_superseded_report_is_not_signed(store: Store) -> None:
    row = store.case("a")
    assert row is not None
    store.finish(replace(row, case="c"), reported("c"), LATER)
    with pytest.raises(DataError, match="superseded by c: review that one"):
        sign(store, "a", "accept", "DOE", LATER)


def test_a_claim_changes_nothing_of_what_was_signed_and_releases_nothing(store: Store) -> None:
    claim = answer(store, "b", "accept", "DOE", AT)
    assert store.claim_review(claim) is not None
    assert store.claim_review(replace(claim, at=LATER)) is None, "the same again"
    assert (store.accepted("b"), store.released("b")) == (None, None)
    assert store.review_states(["b"])["b"].shown == "accepted, claimed: nobody signed it"
    sign(store, "a", "edit", "DOE", AT)
    store.claim_review(answer(store, "a", "accept", "DOE", LATER))
    state = store.review_states(["a"])["a"]
    assert (state.word, state.signed, state.conflict) == ("needs-edit", True, "a tag says something else")
    assert problems(store) == []


def test_an_erased_patient_takes_reviews_and_requests_along_and_the_ledger_still_verifies(store: Store) -> None:
    sign(store, "a", "reject", "DOE", LATER, "Mrs Miller again")
    store.claim_review(answer(store, "a", "accept", "x", LATER))
    store.erase("patient", (), (), "operator", LAST)
    assert (store.reviews("a"), store.review_states()) == ((), {})
    assert problems(store) == []
    with pytest.raises(DataError):
        sign(store, "a", "accept", "DOE", LAST)


def test_a_delivery_that_is_set_back_to_where_it_stood_before_is_noticed(store: Store) -> None:
    sign(store, "a", "accept", "DOE", AT)
    for kind in ("results", "rejection"):
        store.enqueue("a", "pacs", kind, State.REVIEW, AT)
        (row,) = [d for d in store.deliveries() if d.kind == kind]
        row = store.move(store.trying(store.move(row, State.QUEUED, AT)), State.SENT, LATER, objects={"1.2": "0" * 64})
        if kind == "results":
            store.move(row, State.CONFIRMED, LAST)
    store.append("delivery", LAST, {"case": "a", "to": "mlflow", "what": ["run"]})
    assert problems(store) == []
    for kind, now, before in (("results", "confirmed", "queued"), ("rejection", "sent", "waiting for review")):
        sql(store, "UPDATE deliveries SET state = ? WHERE kind = ?", before, kind)
        assert problems(store) == [f"delivery of case a… to pacs: no record says that it is {before} now"]
        sql(store, "UPDATE deliveries SET state = ? WHERE kind = ?", now, kind)
    assert problems(store) == []


def test_deliveries_wait_for_a_review_that_holds(store: Store) -> None:
    rule = Destination(peer="pacs", release="after_review")
    assert _allowed(store, "a", rule) is State.REVIEW
    sql(store, "INSERT INTO accepted VALUES ('a', 'DOE', ?)", LATER)  # as a forger would
    assert _allowed(store, "a", rule) is State.REVIEW
    sql(store, "DELETE FROM accepted")
    sign(store, "a", "accept", "DOE", LATER)
    assert _allowed(store, "a", rule) is State.QUEUED


# People in the configuration


def configured(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "medrec.yaml").write_text('accept_licences: ["CC BY-NC-SA 4.0", free use with citation]\n' + text)
    load(folder)


def test_mistakes_about_people_come_all_at_once(tmp_path: Path) -> None:
    key, other = person("A").key, person("B").key
    text = f"""promote: automatic
people:
  - {{name: DOE, key: {key}, roles: [reviewer]}}
  - {{name: DOE, key: {other}, roles: [promoter]}}
  - {{name: ROE, key: {key}, roles: [auditor, reviewer]}}
"""
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path / "own", text)
    told = "\n".join(caught.value.problems)
    for words in ("DOE is there 2 times", "somebody else's key", "who audits decides nothing", "promote: automatic"):
        assert words in told


@pytest.mark.parametrize("key", ["", "x", "MCowBQYDK2VwAyEA", base64.b64encode(b"\0" * 44).decode()])
def test_a_key_that_is_none_is_a_mistake(key: str) -> None:
    with pytest.raises(ValidationError, match="no public Ed25519 key"):
        Person(name="DOE", key=key, roles=("reviewer",))


@pytest.mark.parametrize("name", ["", " DOE", "D\\OE", "D\nOE", "D" * 65, "\u202eDOE"])
def test_a_name_that_hides_or_steers_is_a_mistake(name: str) -> None:
    with pytest.raises(ValidationError, match="wanted a name"):
        person(name)


def test_the_key_of_medrec_yaml_is_the_one_that_openssl_reads(tmp_path: Path) -> None:
    path = key_file(tmp_path, signer("DOE"))
    command = ["openssl", "pkey", "-in", str(path), "-pubout"]
    pem = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert pem.splitlines()[1] == person("DOE").key
    raw = base64.b64decode(person("DOE").key)[-32:]
    assert Ed25519PublicKey.from_public_bytes(raw) == signer("DOE").private.public_key()


def test_a_private_key_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    path = key_file(tmp_path, signer("DOE"))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        signing.Signer.load("DOE", path)


def test_the_interval_of_a_share_is_that_of_clopper_and_pearson() -> None:
    # R: binom.test(7, 10)$conf.int is 0.3475471 0.9332605
    interval = share(7, 10)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.7, 0.3475471, 0.9332605), abs=1e-6)
