"""The outbox: what waits to be copied elsewhere."""

import sqlalchemy as sa

from medrec.store.rows import OutboxRow
from medrec.store.session import Session
from medrec.store.tables import BATCHES, CASES, OUTBOX

# What an error may say to the outbox; more helps nobody.
WHY_LENGTH = 500


class Outbox(Session):
    """What the store knows of deliveries to MLflow."""

    def requeue(self, kind: str, at: str) -> int:
        """Put every case that does not wait for this delivery back into the outbox, and every night; returns how many
        cases.
        """
        waiting = sa.select(OUTBOX.c.case).where(OUTBOX.c.kind == kind, OUTBOX.c.delivered_at.is_(None))
        keys = sa.select(CASES.c.case).where(CASES.c.case.not_in(waiting)).order_by(CASES.c.seq)
        with self._writing() as connection:
            entries = [
                {"kind": kind, "case": key, "created_at": at, "attempts": 0}
                for key in connection.execute(keys).scalars()
            ]
            if entries:
                connection.execute(sa.insert(OUTBOX), entries)
            connection.execute(sa.update(BATCHES).values(mlflow_run_id=None))
        return len(entries)

    def pending(self, kind: str) -> tuple[OutboxRow, ...]:
        """What waits for delivery, oldest first."""
        c = OUTBOX.c
        query = sa.select(c.id, c.kind, c.case, c.created_at, c.attempts, c.why)
        rows = self._rows(query.where(c.kind == kind, c.delivered_at.is_(None)).order_by(c.id))
        return tuple(OutboxRow(*row) for row in rows)

    def lease(self, kind: str, worker: str, now: str, until: str) -> OutboxRow | None:
        """Take the oldest entry that waits and that nobody holds; no other worker gets it before `until`.

        A worker that dies leaves it to be taken then, no longer fresh: what it may have left behind is looked for.
        Times are ISO-8601 UTC of one length, which sort as they follow.
        """
        c, other = OUTBOX.c, OUTBOX.alias()
        free = sa.and_(
            c.kind == kind,
            c.delivered_at.is_(None),
            sa.or_(c.leased_until.is_(None), c.leased_until <= now),
        )
        before = sa.exists().where(other.c.case == c.case, other.c.kind == kind, other.c.id < c.id)
        columns = (c.id, c.kind, c.case, c.created_at, c.attempts, c.why)
        fresh = sa.and_(c.attempts == 0, c.leased_by.is_(None), sa.not_(before))
        query = sa.select(*columns, fresh.label("fresh")).where(free).order_by(c.id).limit(1)
        taken = {"leased_by": worker, "leased_until": until}
        while rows := self._rows(query):
            row = rows[0]
            if self._update(sa.update(OUTBOX).where(c.id == row.id, free).values(taken)):
                return OutboxRow(row.id, row.kind, row.case, row.created_at, row.attempts, row.why, bool(row.fresh))
        return None

    def free_leases(self, kind: str, worker: str) -> None:
        """Let go of what a worker holds, when it is known to be dead; what it left behind is still looked for."""
        c = OUTBOX.c
        held = sa.and_(c.kind == kind, c.leased_by == worker, c.delivered_at.is_(None))
        self._update(sa.update(OUTBOX).where(held).values(leased_until=None))

    def delivered(self, id: int, at: str) -> None:
        """Note that an outbox row arrived."""
        values = {"delivered_at": at, "leased_until": None}
        self._update(sa.update(OUTBOX).where(OUTBOX.c.id == id).values(values))

    def postponed(self, id: int, why: str, at: str) -> None:
        """Note that a delivery failed, and why; it stays pending."""
        values = {
            "attempts": OUTBOX.c.attempts + 1,
            "leased_until": None,
            "why": why.replace("\0", "")[:WHY_LENGTH],
            "tried_at": at,
        }
        self._update(sa.update(OUTBOX).where(OUTBOX.c.id == id).values(values))

    def set_mlflow_run(self, case: str, run_id: str) -> None:
        """Note the MLflow run that shows a case."""
        self._update(sa.update(CASES).where(CASES.c.case == case).values(mlflow_run_id=run_id))
