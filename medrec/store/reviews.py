"""Reviews: what people answered, what follows from it, and who may sign.

A signed answer, its record and all that follows (acceptance, recall, label, request for one) are one transaction.
Invariants: nothing follows from an answer that its person did not sign in the role of a reviewer, for this report of
this case; a signature counts once; an acceptance holds only while no other signed answer differs.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from medrec import audit
from medrec.audit import AuditRecord
from medrec.credentials import ACCEPTED as ACCEPTED_KIND
from medrec.credentials import AUDITED, CHANGED, PROMOTED, REVIEW, Register
from medrec.errors import DataError
from medrec.events import CASE_KINDS, CLAIMED, WANTED
from medrec.people import Person
from medrec.report import Status
from medrec.signing import Signer
from medrec.store.answers import WORDS, Decision, LabelRequest, ReviewRow, ReviewState, sealed, signed_facts, standing
from medrec.store.deliveries import put_recall
from medrec.store.labelled import Label, Labelled, Origin, put_label
from medrec.store.rows import CaseRow
from medrec.store.session import Tail
from medrec.store.tables import (
    ACCEPTED,
    CASES,
    LABEL_REQUESTS,
    LABELS,
    LEDGER,
    LEDGER_SUBJECTS,
    RECALLED,
    REVIEWS,
    SALTS,
)

NAME_DIGITS = 24
FEW = 500  # cases that are asked for by name; SQLite takes no more than 999 names in some builds
QUALITY = "quality"  # why a rejected report is taken back
BLIND, ANY = "blind", "any"  # what label is wanted
SAMPLED = "blind sample drawn"
MEDREC_YAML = "medrec.yaml"  # who says who somebody is, unless an operator signs it


class Reviews(Labelled):
    """What the store knows of reviews, of who may sign them, and of labels that are asked for."""

    # People

    def register(self) -> Register:
        """The people on record, with their keys and roles."""
        return Register.of(record for _, record in self.of_kinds(CHANGED))

    def change_people(self, people: Iterable[Person], by: str, at: str, signer: Signer | None = None) -> bool:
        """Put these people on record in the place of those who are; False when nothing changes.

        Raises DataError when a key was somebody else's, or an operator would have to sign it.
        """
        every = tuple(people)
        return self._extend(lambda tail: _put_people(tail, every, by, at, signer))

    def promoted(self, facts: dict[str, object], at: str, signer: Signer | None) -> None:
        """Put a promotion on record. Raises DataError when somebody who may promote would have to sign it."""

        def write(tail: Tail) -> None:
            told = facts if signer is None else signer.sign(PROMOTED, at, facts)
            if why := _register(tail.connection).unfit(PROMOTED, at, told):
                raise DataError(f"the promotion is not taken: {why}")
            tail.add(PROMOTED, at, told)

        self._extend(write)

    def audited(self, position: tuple[int, str], signer: Signer, at: str) -> None:
        """Put on record that an auditor found nothing up to a position. Raises DataError for who is none."""

        def write(tail: Tail) -> None:
            facts = signer.sign(AUDITED, at, {"head": position[1], "records": position[0]})
            if why := _register(tail.connection).unfit(AUDITED, at, facts):
                raise DataError(f"the audit is not signed: {why}")
            tail.add(AUDITED, at, facts)

        self._extend(write)

    # Answers

    def reviews(self, case: str) -> tuple[ReviewRow, ...]:
        """Every answer to a case, oldest first."""
        query = sa.select(REVIEWS).where(REVIEWS.c.case == case).order_by(REVIEWS.c.seq)
        return tuple(_review(row) for row in self._rows(query))

    def review_states(self, cases: Iterable[str] | None = None) -> dict[str, ReviewState]:
        """Where cases stand, by their key: those asked for, or all that somebody answered."""
        found: dict[str, list[ReviewRow]] = {}
        cases = None if cases is None else tuple(cases)
        few = cases is not None and len(cases) <= FEW
        where = REVIEWS.c.case.in_(cases) if few and cases is not None else sa.true()
        for row in self._rows(sa.select(REVIEWS).where(where).order_by(REVIEWS.c.seq)):
            found.setdefault(str(row.case), []).append(_review(row))
        return {key: standing(key, found.get(key, ())) for key in (found if cases is None else dict.fromkeys(cases))}

    def claim_review(self, row: ReviewRow) -> ReviewRow | None:
        """Note an answer that nobody signed; None when this way said it last. Nothing follows from it.

        Raises DataError for a case that is not here, or was not analysed.
        """
        salt = self._salt_of(row.case)
        said = replace(row, key=None, signature=None, mask_sha256=None)

        def write(tail: Tail) -> ReviewRow | None:
            c = REVIEWS.c
            way = c.page == "" if said.by_tag else c.page != ""
            query = sa.select(REVIEWS).where(c.case == row.case, c.signature.is_(None), way)
            before = tail.connection.execute(query.order_by(c.seq.desc()).limit(1)).first()
            if before is not None and _same(_review(before), said):
                return None
            new = replace(said, review=_name(said, tail.number))
            tail.add(CLAIMED, row.at, sealed(new, salt))
            _put(tail, new)
            return new

        return self._extend(write)

    def sign_review(
        self,
        row: ReviewRow,
        signer: Signer,
        label: Label | None = None,
        wants: LabelRequest | None = None,
        own: Person | None = None,
    ) -> ReviewRow:
        """Take the answer of a person who signs it, with what follows from it; `row.by` is filled in here.

        `own` is the signer as medrec.yaml has them: put on record with the answer, and not without it.

        Raises DataError when it is not the signer's to give, not of the report as it is on record, or of a case that
        was superseded or taken back.
        """
        salt = self._salt_of(row.case)
        said = replace(row, by=signer.name)
        facts = signer.sign(REVIEW, row.at, signed_facts(said, salt))
        signed = replace(said, key=str(facts["key"]), signature=str(facts["signature"]))
        return self.take_review(signed, label, wants, own)

    def take_review(
        self,
        signed: ReviewRow,
        label: Label | None = None,
        wants: LabelRequest | None = None,
        own: Person | None = None,
    ) -> ReviewRow:
        """Take an answer that was signed elsewhere; see `sign_review`."""
        salt, signed = self._salt_of(signed.case), replace(signed, problem="")

        def write(tail: Tail) -> ReviewRow:
            facts = sealed(signed, salt)
            if own is not None:
                _put_people(tail, {**_register(tail.connection).people, own.name: own}.values(), MEDREC_YAML, signed.at)
            if why := _register(tail.connection).unfit(REVIEW, signed.at, facts) or _unfit(tail.connection, signed):
                raise DataError(f"the review is not taken: {why}")
            new = replace(signed, review=_name(signed, tail.number))
            tail.add(REVIEW, signed.at, {**facts, "review": new.review})
            _put(tail, new)
            self._follow(tail, new)
            if label is not None:
                put_label(tail, label, salt)
            if wants is not None:
                put_request(tail, wants)
            return new

        return self._extend(write)

    def _follow(self, tail: Tail, row: ReviewRow) -> None:
        """Acceptance, where no other signed answer differs; a rejected report is taken back for good."""
        if row.decision is Decision.REJECT:
            put_recall(tail, row.case, QUALITY, row.at)
        if row.decision is not Decision.ACCEPT:
            return
        query = sa.select(REVIEWS).where(REVIEWS.c.case == row.case).order_by(REVIEWS.c.seq)
        state = standing(row.case, map(_review, tail.connection.execute(query)))
        there = tail.connection.execute(sa.select(ACCEPTED.c.case).where(ACCEPTED.c.case == row.case)).first()
        if there is None and state.word == WORDS[Decision.ACCEPT]:
            tail.add(ACCEPTED_KIND, row.at, {"case": row.case, "by": row.by})
            tail.connection.execute(sa.insert(ACCEPTED).values(case=row.case, reviewer=row.by, at=row.at))

    def accepted(self, case: str) -> tuple[str, str] | None:
        """(who, when) accepted the report of a case, by a review that holds to this day; None while nobody has."""
        rows = self._rows(sa.select(ACCEPTED.c.reviewer, ACCEPTED.c.at).where(ACCEPTED.c.case == case))
        if not rows:
            return None
        who, at = str(rows[0].reviewer), str(rows[0].at)
        changes = self.of_kinds(CHANGED)
        for number, record in self.about(f"case {case}"):
            facts = record.facts
            if (record.kind, facts.get("decision"), facts.get("by"), record.at) == (REVIEW, "accept", who, at):
                register = Register.of(r for n, r in changes if n < number)
                return (who, at) if not register.unfit(REVIEW, at, facts) else None
        return None

    def released(self, case: str) -> tuple[str, str] | None:
        """As `accepted`, and no other signed answer differs."""
        state = self.review_states((case,))[case]
        agreed = state.signed and state.word == WORDS[Decision.ACCEPT]
        return self.accepted(case) if agreed else None

    def _salt_of(self, case: str) -> str:
        query = sa.select(SALTS.c.salt).join(CASES, CASES.c.patient == SALTS.c.patient)
        rows = self._rows(query.where(CASES.c.case == case))
        if not rows:
            raise DataError(f"there is no case {case} in this home")
        return str(rows[0][0])

    def sealed_reviews(self) -> Iterable[tuple[int, ReviewRow, dict[str, object]]]:
        """Every answer with its record's number and what that must say; a patient's salt that is gone keys nothing."""
        query = sa.select(REVIEWS, SALTS.c.salt).join(CASES, CASES.c.case == REVIEWS.c.case)
        query = query.outerjoin(SALTS, SALTS.c.patient == CASES.c.patient)
        for row in self._rows(query.order_by(REVIEWS.c.seq)):
            yield row.seq, _review(row), sealed(_review(row), row.salt or "")

    # Labels that are asked for

    def want_labels(self, requests: Iterable[LabelRequest]) -> int:
        """Ask for labels; returns how many were not asked for before."""
        every = tuple(requests)
        return self._extend(lambda tail: sum(put_request(tail, one) for one in every))

    def draw_sample(self, facts: Mapping[str, object], requests: Iterable[LabelRequest], at: str) -> int:
        """Note a month's blind sample with its requests; 0 for a month that was drawn before, by whomever."""
        every = tuple(requests)

        def write(tail: Tail) -> int:
            c = LEDGER_SUBJECTS.c
            there = sa.select(c.seq).where(c.subject == f"month {facts['month']}", c.kind == SAMPLED)
            if tail.connection.execute(there).first() is not None:
                return 0
            tail.add(SAMPLED, at, facts)
            return sum(put_request(tail, one) for one in every)

        return self._extend(write)

    def wanted(self, *, answered: bool = False) -> tuple[LabelRequest, ...]:
        """The labels that are still wanted, or that ever were, in the order in which they were asked for."""
        every = [_request(row) for row in self._rows(sa.select(LABEL_REQUESTS).order_by(LABEL_REQUESTS.c.seq))]
        if answered:
            return tuple(every)
        c = LABELS.c
        rows = self._rows(sa.select(c.study, c.card, c.origin).where(c.superseded_by.is_(None)))
        there = {(str(r.study), str(r.card), str(r.origin)) for r in rows}
        kinds = {BLIND: (Origin.BLIND,), "any": (Origin.BLIND, Origin.EDITED_AI)}
        return tuple(
            w
            for w in every
            if not any((w.study, w.card, o.value) in there for o in kinds.get(w.wants, (Origin.BLIND,)))
        )

    def blind_audited(self) -> frozenset[str]:
        """The cases that were set aside for a blind label."""
        return frozenset(w.case for w in self.wanted(answered=True) if w.wants == BLIND)


def request_of(row: CaseRow, wants: str, why: str, by: str, at: str) -> LabelRequest:
    """A request for a label of what a case was made of."""
    name = hashlib.sha256(audit.canonical([row.case, wants, why])).hexdigest()[:NAME_DIGITS]
    return LabelRequest(name, row.case, row.study, row.patient, row.model or "", wants, why, by, at)


def put_request(tail: Tail, one: LabelRequest) -> bool:
    """Ask for a label within a transaction of the store's; False when it was asked for before."""
    there = sa.select(LABEL_REQUESTS.c.request).where(LABEL_REQUESTS.c.request == one.request)
    if tail.connection.execute(there).first() is not None:
        return False
    facts = {name: getattr(one, name) for name in ("request", "case", "card", "wants", "why", "by")}
    tail.add(WANTED, one.at, facts)
    values = {name: getattr(one, name) for name in LabelRequest.__slots__} | {"seq": tail.number}
    tail.connection.execute(sa.insert(LABEL_REQUESTS).values(values))
    return True


def _put_people(tail: Tail, people: Iterable[Person], by: str, at: str, signer: Signer | None = None) -> bool:
    """As `Reviews.change_people`, within a transaction."""
    every, before = tuple(people), _register(tail.connection)
    if before.change(every)["register"] == before.digest:
        return False
    facts = {**before.change(every), "by": by}
    facts = facts if signer is None else signer.sign(CHANGED, at, facts)
    if why := before.unfit(CHANGED, at, facts):
        hint = "" if signer is not None else "; medrec review enrol --by OPERATOR --key FILE signs for them"
        raise DataError(f"the people in medrec.yaml are not taken: {why}{hint}")
    tail.add(CHANGED, at, facts)
    return True


def _register(connection: Connection) -> Register:
    """As `Reviews.register`, within a transaction."""
    c = LEDGER_SUBJECTS.c
    query = sa.select(LEDGER).where(LEDGER.c.seq.in_(sa.select(c.seq).where(c.kind == CHANGED))).order_by(LEDGER.c.seq)
    return Register.of(AuditRecord(row.body, row.digest, row.previous) for row in connection.execute(query))


def _unfit(connection: Connection, row: ReviewRow) -> str:
    """Why an answer that its person signed may not be taken, "" when it may."""
    if row.decision not in (Decision.ACCEPT, Decision.REJECT, Decision.EDIT):
        return f"{row.decision.value!r} is no decision"
    case = connection.execute(sa.select(CASES).where(CASES.c.case == row.case)).first()
    if case is None or case.status != Status.ANALYSED.value:
        return "there is no report of this case to review"
    if case.superseded_by is not None:
        return f"the case was superseded by {case.superseded_by}: review that one"
    if connection.execute(sa.select(RECALLED.c.case).where(RECALLED.c.case == row.case)).first() is not None:
        return "the report was taken back, and stays so; another version of the model makes another report"
    if connection.execute(sa.select(REVIEWS.c.review).where(REVIEWS.c.signature == row.signature)).first() is not None:
        return "its signature was used before"
    body = connection.execute(sa.select(LEDGER).where(LEDGER.c.seq == case.seq)).first()
    assert body is not None
    record = AuditRecord(body.body, body.digest, body.previous)
    files = record.facts.get("files") if record.kind in CASE_KINDS else None
    told = files if isinstance(files, dict) else {}
    own = {name: told.get(f"reports/{row.case}/{name}") for name in ("report.json", "report.html")}
    if (row.report, row.page) != (own["report.json"], own["report.html"]):
        return "it is about another report than the one on record"
    return ""


def _name(row: ReviewRow, number: int) -> str:
    said = [row.case, row.decision.value, row.by, row.at, row.signature or "", number]
    return hashlib.sha256(audit.canonical(said)).hexdigest()[:NAME_DIGITS]


def _same(one: ReviewRow, other: ReviewRow) -> bool:
    return replace(one, review="", at="") == replace(other, review="", at="")


def _put(tail: Tail, row: ReviewRow) -> None:
    values = {n: getattr(row, n) for n in ReviewRow.__slots__} | {"decision": row.decision.value, "seq": tail.number}
    tail.connection.execute(sa.insert(REVIEWS).values(values))


def _review(row: "sa.Row[tuple[object, ...]]") -> ReviewRow:
    values = {name: row._mapping[name] for name in ReviewRow.__slots__}
    return ReviewRow(**values | {"decision": Decision(values["decision"])})


def _request(row: "sa.Row[tuple[object, ...]]") -> LabelRequest:
    return LabelRequest(**{name: row._mapping[name] for name in LabelRequest.__slots__})
