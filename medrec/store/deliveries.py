"""Deliveries: what goes to a PACS, where each stands, and which cases were taken back.

Each change of a state is a record of the ledger in the same transaction. Invariants: one delivery of a kind for a case
and a destination; what was confirmed or given up is not tried again unless a person asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import sqlalchemy as sa

from medrec.report import Status
from medrec.store.ledger import Ledger
from medrec.store.rows import CaseRow, case_row
from medrec.store.session import Tail
from medrec.store.tables import CASES, DELIVERIES, RECALLED

WHY_LENGTH = 500
STATE, SENT = "delivery state", "delivery"  # kinds of records


class State(StrEnum):
    """Where a delivery stands."""

    REVIEW = "waiting for review"
    QUEUED = "queued"  # may go; also after a try at which the world was down
    HELD = "held"  # something about the destination must be mended by a person; looked at again each time
    SENT = "sent"  # taken by the PACS, not yet confirmed
    CONFIRMED = "confirmed"
    FAILED = "failed"  # the object itself is refused: not tried again
    WITHDRAWN = "withdrawn"  # superseded or recalled before it left


OPEN = (State.REVIEW, State.QUEUED, State.HELD, State.SENT)


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One case on its way to one destination; `kind` is "results", or "rejection" of what was sent before.

    `attempts` counts the times that sending was begun: with the first of them something of it may be there.
    """

    id: int
    case: str
    destination: str
    kind: str
    state: State
    why: str
    warnings: str
    attempts: int
    created_at: str
    changed_at: str


class Deliveries(Ledger):
    """What the store knows of deliveries to a PACS."""

    def undelivered(self, destination: str) -> tuple[CaseRow, ...]:
        """Analysed cases in force that have no delivery of results to a destination, oldest first."""
        there = sa.select(DELIVERIES.c.case).where(
            DELIVERIES.c.destination == destination, DELIVERIES.c.kind == "results"
        )
        query = sa.select(CASES).where(
            CASES.c.status == Status.ANALYSED.value,
            CASES.c.superseded_by.is_(None),
            CASES.c.case.not_in(there),
            CASES.c.case.not_in(sa.select(RECALLED.c.case)),
        )
        return tuple(case_row(row) for row in self._rows(query.order_by(CASES.c.seq)))

    def in_force(self) -> tuple[CaseRow, ...]:
        """Analysed cases that were neither superseded nor taken back, in the order in which they were finished."""
        query = sa.select(CASES).where(
            CASES.c.status == Status.ANALYSED.value,
            CASES.c.superseded_by.is_(None),
            CASES.c.case.not_in(sa.select(RECALLED.c.case)),
        )
        return tuple(case_row(row) for row in self._rows(query.order_by(CASES.c.finished_at, CASES.c.seq)))

    def enqueue(self, case: str, destination: str, kind: str, state: State, at: str, why: str = "") -> None:
        """Begin a delivery, unless there is one of this kind already."""

        def write(tail: Tail) -> None:
            c = DELIVERIES.c
            where = sa.and_(c.case == case, c.destination == destination, c.kind == kind)
            if tail.connection.execute(sa.select(c.id).where(where)).first() is not None:
                return
            tail.add(STATE, at, _facts(case, destination, kind, state, why))
            values = {"case": case, "destination": destination, "kind": kind, "state": state.value, "why": why}
            values |= {"warnings": "", "created_at": at, "changed_at": at}
            tail.connection.execute(sa.insert(DELIVERIES).values(**values, attempts=0))

        self._extend(write)

    def deliveries(self, *, states: Sequence[State] = tuple(State), case: str | None = None) -> tuple[DeliveryRow, ...]:
        """Deliveries in these states, oldest first; those of one case, or of all."""
        c = DELIVERIES.c
        where = [c.state.in_([s.value for s in states])] + ([c.case == case] if case is not None else [])
        return tuple(_row(row) for row in self._rows(sa.select(DELIVERIES).where(*where).order_by(c.id)))

    def move(
        self,
        row: DeliveryRow,
        state: State,
        at: str,
        why: str = "",
        warnings: str = "",
        objects: Mapping[str, str] | None = None,
    ) -> DeliveryRow:
        """Note where a delivery stands now; returns it. What changed nothing leaves no record.

        `objects` are the SHA-256 of what was sent by SOP Instance UID, for the ledger; ours follow from content.
        """
        why, warnings = why[:WHY_LENGTH], warnings[:WHY_LENGTH] or row.warnings
        new = replace(row, state=state, why=why, warnings=warnings, changed_at=at)
        values = {name: getattr(new, name) for name in ("why", "warnings", "changed_at")}

        def write(tail: Tail) -> None:
            if state is not row.state or why != row.why:
                told = _facts(row.case, row.destination, row.kind, state, why)
                told |= {"warnings": warnings} if warnings else {}
                told |= {"what": sorted(objects), "objects": dict(objects), "kind": row.kind} if objects else {}
                tail.add(STATE if objects is None else SENT, at, told)
            where = DELIVERIES.c.id == row.id
            tail.connection.execute(sa.update(DELIVERIES).where(where).values(**values, state=state.value))

        self._extend(write)
        return new

    def trying(self, row: DeliveryRow) -> DeliveryRow:
        """Note that sending begins, before it does: a night that is killed then has perhaps sent something."""
        new = replace(row, attempts=row.attempts + 1)
        self._update(sa.update(DELIVERIES).where(DELIVERIES.c.id == row.id).values(attempts=new.attempts))
        return new

    def sent(self, case: str, destination: str, kind: str) -> frozenset[str]:
        """The SOP Instance UIDs of what a destination was last sent, from the ledger; none when it was sent nothing."""
        told = [r.facts for _, r in self.about(f"case {case}") if r.kind == SENT]
        # "objects" are there in a record of ours alone: one of MLflow's has none.
        last = [f["objects"] for f in told if f["to"] == destination and "objects" in f and f.get("kind", kind) == kind]
        return frozenset(last[-1]) if last and isinstance(last[-1], dict) else frozenset()

    def recall(self, case: str, reason: str, at: str) -> bool:
        """Note that a case is taken back, which nothing undoes; says whether it was not before."""

        return self._extend(lambda tail: put_recall(tail, case, reason, at))

    def recalled(self, case: str) -> tuple[str, str] | None:
        """(why, when) a case was taken back; None when it was not."""
        rows = self._rows(sa.select(RECALLED.c.reason, RECALLED.c.at).where(RECALLED.c.case == case))
        return (str(rows[0].reason), str(rows[0].at)) if rows else None

    def made_by(self, model: str, since: str) -> tuple[CaseRow, ...]:
        """The analysed cases of a model that were finished at or after `since` (ISO-8601 UTC), superseded ones too."""
        query = sa.select(CASES).where(
            CASES.c.model == model, CASES.c.status == Status.ANALYSED.value, CASES.c.finished_at >= since
        )
        return tuple(case_row(row) for row in self._rows(query.order_by(CASES.c.seq)))


def put_recall(tail: Tail, case: str, reason: str, at: str) -> bool:
    """Take a case back within a transaction of the store's; False when it was before."""
    if tail.connection.execute(sa.select(RECALLED.c.case).where(RECALLED.c.case == case)).first() is not None:
        return False
    tail.add("case recalled", at, {"case": case, "reason": reason})
    tail.connection.execute(sa.insert(RECALLED).values(case=case, reason=reason, at=at))
    return True


def _facts(case: str, destination: str, kind: str, state: State, why: str) -> dict[str, object]:
    told: dict[str, object] = {"case": case, "to": destination, "what": kind, "state": state.value}
    return told | ({"why": why} if why else {})


def _row(row: "sa.Row[tuple[object, ...]]") -> DeliveryRow:
    values = {name: row._mapping[name] for name in DeliveryRow.__slots__}
    return DeliveryRow(**(values | {"state": State(str(values["state"]))}))
