"""Rows that repeat what the ledger says, held against it: nights, reviews, deliveries, sides, labels, subjects."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import sqlalchemy as sa

from medrec import events
from medrec.audit import AuditRecord, Problem, salted
from medrec.events import PATIENT
from medrec.store.batches import digest_of_summary
from medrec.store.reviews import Reviews
from medrec.store.tables import (
    ACCEPTED,
    BATCHES,
    CASES,
    DELIVERIES,
    ERASED_PATIENTS,
    LABEL_REQUESTS,
    LEDGER_SUBJECTS,
    RECALLED,
    SALTS,
    SIDES,
    STUDIES,
)
from medrec.store.watched import Watched

Row = tuple[str, ...]
DELIVERED = ("results", "rejection")
READINGS = 10  # a night writes a record in seconds, and a reading takes less
SEALED_OF_LABEL = ("card", "what", "origin", "by", "content", "source", "pixels")


class Consistency(Reviews, Watched):
    """What the store's rows say otherwise than its ledger; cases are for `Ledger.verify`."""

    def contradictions(self, original: Callable[[str], str] = str) -> Iterator[Problem]:
        """Every row that no record tells of, and every record whose row is gone or changed.

        `original` gives the pseudonym that something had before the key was rotated. Records and rows are read one
        after the other: what seems wrong while a night writes is looked at again.
        """
        for _ in range(READINGS):
            head, found = self._last(), tuple(self._contradictions(original))
            if not found or self._last() == head:
                break
        yield from found

    def _contradictions(self, original: Callable[[str], str]) -> Iterator[Problem]:
        told = _Told.of(self.ledger())
        yield from self._nights(told)
        c = ACCEPTED.c
        yield from _compared("acceptance", told.accepted, self._all(c.case, c.reviewer, c.at))
        c = RECALLED.c
        yield from _compared("recall", told.recalled, self._all(c.case, c.reason, c.at))
        d = DELIVERIES.c
        for case, to, kind, state in sorted(self._all(d.case, d.destination, d.kind, d.state)):
            if state not in told.states.get((case, to, kind), ()):
                yield Problem(f"delivery of case {case[:12]}… to {to}", f"no record says that it is {state} now")
        if (erased := len(self._all(ERASED_PATIENTS.c.patient))) != told.erasures:
            yield Problem("erased patients", f"the store names {erased}, the ledger {told.erasures}")
        yield from self._sides(told)
        yield from self._labels(told)
        yield from self.unlike(told.observed, told.shadowed, original)
        yield from self._answers(told)
        for case, place in sorted(self._all(CASES.c.case, CASES.c.seq)):
            if told.cases.get(case, place) != place:
                yield Problem(f"case {case[:12]}…", "its place among the cases was changed")
        joined = sa.select(CASES.c.case).join(STUDIES, CASES.c.study == STUDIES.c.study)
        for row in self._rows(joined.where(CASES.c.patient != STUDIES.c.patient)):
            yield Problem(f"case {str(row[0])[:12]}…", "its study is another patient's in the store")
        s = LEDGER_SUBJECTS.c
        rows = {(int(r[0]), str(r[1]), str(r[2])) for r in self._rows(sa.select(s.seq, s.subject, s.kind))}
        for number in sorted({number for number, _, _ in rows ^ told.subjects}):
            yield Problem(f"record {number}", "the store's list of what it is about was changed")

    def _all(self, *columns: "sa.Column[str]") -> set[Row]:
        return {tuple(str(v) for v in row) for row in self._rows(sa.select(*columns))}

    def _sides(self, told: "_Told") -> Iterator[Problem]:
        """Sides of patients; who was erased has none any more, and nothing finds their name in the records."""
        c, seen = SIDES.c, set()
        query = sa.select(c.patient, c.side, SALTS.c.salt).outerjoin(SALTS, SALTS.c.patient == c.patient)
        for patient, side, salt in self._rows(query):
            seen.add(name := salted(str(salt), PATIENT))
            if told.sides.get(name) != side:
                yield Problem(f"patient {str(patient)[:8]}…", f"no record says that their side is {side}")
        if len(told.sides.keys() - seen) > told.erasures:
            yield Problem("sides of patients", "more of them are gone than patients were erased")

    def _labels(self, told: "_Told") -> Iterator[Problem]:
        """Labels; their image goes by its pixels, because a rotation of the key renames it."""
        seen = set()
        for label, facts in self.sealed_labels():
            seen.add(label.label)
            record = told.labels.get(label.label)
            if record is None or any(record.get(name) != facts[name] for name in SEALED_OF_LABEL):
                yield Problem(f"label {label.label[:12]}…", "no record says what the store says of it")
            elif label.superseded_by != told.superseding.get(label.label):
                yield Problem(f"label {label.label[:12]}…", "by which label it was superseded was changed")
        for name in sorted(told.labels.keys() - seen):
            yield Problem(f"label {name[:12]}…", "a record tells of it, but the store does not have it")

    def _answers(self, told: "_Told") -> Iterator[Problem]:
        """Reviews, and labels that are asked for."""
        seen = set()
        for number, row, facts in self.sealed_reviews():
            seen.add(row.review)
            if told.reviews.get(row.review) != (number, row.at, facts):
                yield Problem(f"review of case {row.case[:12]}…", "no record says what the store says of it")
        for name in sorted(told.reviews.keys() - seen):
            yield Problem(f"review {name}", "a record tells of it, but the store does not have it")
        c = LABEL_REQUESTS.c
        rows = self._all(c.case, c.request, c.card, c.wants, c.why, c.by, c.at, c.seq)
        yield from _compared("request for a label", told.wanted, rows)
        same = sa.and_(c.study == CASES.c.study, c.patient == CASES.c.patient)
        for (case,) in self._rows(sa.select(c.case).join(CASES, CASES.c.case == c.case).where(sa.not_(same))):
            yield Problem(f"case {str(case)[:12]}…", "the request for a label of it names another study or patient")

    def _nights(self, told: "_Told") -> Iterator[Problem]:
        if not told.nights:
            return  # a home of an earlier release: its nights are sealed by the next one
        c, rows = BATCHES.c, {}
        for batch, *row in self._rows(sa.select(c.batch, c.started_at, c.finished_at, c.summary)):
            rows[str(batch)] = row
        for batch, (started, finished, summary) in sorted(rows.items()):
            sealed = told.nights.get(batch)
            if sealed is None and summary is None:
                continue  # it runs, or was killed
            if sealed is None:
                yield Problem(f"night {batch}", "the store has it, but no record tells of it")
            elif summary is None or digest_of_summary(str(summary)) != told.summaries[batch]:
                yield Problem(f"night {batch}", "its summary in the store was changed")
            elif (started, finished) != sealed:
                yield Problem(f"night {batch}", "its times in the store were changed")
        for batch in sorted(told.nights.keys() - rows.keys()):
            yield Problem(f"night {batch}", "a record tells of it, but the store does not have it")


@dataclass(slots=True)
class _Told:
    """What the ledger says that rows must say too."""

    nights: dict[str, tuple[object, object]] = field(default_factory=dict)
    summaries: dict[str, object] = field(default_factory=dict)
    accepted: set[Row] = field(default_factory=set)
    recalled: set[Row] = field(default_factory=set)
    states: dict[Row, set[str]] = field(default_factory=dict)
    subjects: set[tuple[int, str, str]] = field(default_factory=set)
    sides: dict[str, str] = field(default_factory=dict)
    labels: dict[str, dict[str, object]] = field(default_factory=dict)
    superseding: dict[str, str] = field(default_factory=dict)
    observed: dict[str, object] = field(default_factory=dict)
    shadowed: dict[int, dict[str, object]] = field(default_factory=dict)
    reviews: dict[str, tuple[int, str, dict[str, object]]] = field(default_factory=dict)
    cases: dict[str, str] = field(default_factory=dict)
    wanted: set[Row] = field(default_factory=set)
    erasures: int = 0

    @classmethod
    def of(cls, records: Iterator[AuditRecord]) -> "_Told":
        """All of it; a record that is spoilt or says too little is for `Ledger.verify` to name."""
        told = cls()
        for number, record in enumerate(records, 1):
            try:
                kind, facts = record.kind, record.facts
            except ValueError:
                continue
            told.subjects |= {(number, subject, kind) for subject in events.subjects(kind, facts)}
            if record.holds and kind in events.KINDS and not events.missing(kind, facts):
                told.add(kind, facts, record.at, number)
        return told

    def add(self, kind: str, facts: dict[str, object], at: str, number: int) -> None:
        """Take up one record."""
        case, batch = str(facts.get("case")), str(facts.get("batch"))
        if kind in events.CASE_KINDS:
            self.cases[case] = str(number)  # of a case that failed and was tried again the last one
        if kind == events.NIGHT_FINISHED:
            self.nights[batch], self.summaries[batch] = (facts["started_at"], facts["finished_at"]), facts["summary"]
        elif kind == events.NIGHT_REWRITTEN:
            self.summaries[batch] = facts["summary"]
        elif kind == "case accepted":
            self.accepted.add((case, str(facts["by"]), at))
        elif kind == "case recalled":
            self.recalled.add((case, str(facts["reason"]), at))
        elif kind in ("delivery", "delivery state"):
            self._stands(case, str(facts["to"]), facts)
        elif kind == events.DIVIDED and isinstance(facts["patients"], dict):
            self.sides |= {str(name): str(side) for side, names in facts["patients"].items() for name in names}
        elif kind == events.LABEL:
            self.labels[str(facts["label"])] = facts
            if facts.get("supersedes"):
                self.superseding[str(facts["supersedes"])] = str(facts["label"])
        elif kind in events.CASE_KINDS and "observed" in facts:
            self.observed[case] = facts["observed"]
        elif kind == events.SHADOWED:
            self.shadowed[number] = facts
        elif kind in ("review", events.CLAIMED):
            self.reviews[str(facts.get("review"))] = number, at, facts
        elif kind == events.WANTED:
            said = (str(facts[n]) for n in ("case", "request", "card", "wants", "why", "by"))
            self.wanted.add((*said, at, str(number)))
        elif kind == events.ERASED:
            self.erasures += 1
            own = facts.get("labels")
            for name in own if isinstance(own, list) else ():
                self.labels.pop(str(name), None)
            gone = set(facts["cases"]) if isinstance(facts["cases"], list) else set()
            self.accepted = {row for row in self.accepted if row[0] not in gone}
            self.recalled = {row for row in self.recalled if row[0] not in gone}
            self.observed = {case: digest for case, digest in self.observed.items() if case not in gone}
            shadows = facts.get("shadows")
            for record in shadows if isinstance(shadows, list) else ():
                self.shadowed.pop(record, None)
            self.wanted = {row for row in self.wanted if row[0] not in gone}
            self.reviews = {name: told for name, told in self.reviews.items() if told[2]["case"] not in gone}

    def _stands(self, case: str, to: str, facts: dict[str, object]) -> None:
        """Where a delivery stands by its last record; one of an earlier release does not say of which kind it is."""
        kind, state = facts.get("kind", facts["what"]), str(facts.get("state", ""))
        if isinstance(kind, str):
            self.states[case, to, kind] = {state}
            return
        for each in DELIVERED:
            self.states.setdefault((case, to, each), set()).add(state)


def _compared(what: str, told: set[Row], rows: set[Row]) -> Iterator[Problem]:
    for case, *_ in sorted(told - rows):
        yield Problem(f"case {case[:12]}…", f"the {what} that a record tells of is not in the store")
    for case, *_ in sorted(rows - told):
        yield Problem(f"case {case[:12]}…", f"no record tells of the {what} in the store")
