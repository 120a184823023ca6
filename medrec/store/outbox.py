"""The outbox: what waits to be copied elsewhere."""

import sqlalchemy as sa

from medrec.store.rows import OutboxRow
from medrec.store.session import Session
from medrec.store.tables import CASES, OUTBOX

# What an error may say to the outbox; more helps nobody.
WHY_LENGTH = 500


class Outbox(Session):
    """What the store knows of deliveries to MLflow."""

    def requeue(self, kind: str, at: str) -> int:
        """Put every case that does not wait for this delivery back into the outbox; returns how many."""
        waiting = sa.select(OUTBOX.c.case).where(OUTBOX.c.kind == kind, OUTBOX.c.delivered_at.is_(None))
        keys = sa.select(CASES.c.case).where(CASES.c.case.not_in(waiting)).order_by(CASES.c.seq)
        with self._writing() as connection:
            entries = [
                {"kind": kind, "case": key, "created_at": at, "attempts": 0}
                for key in connection.execute(keys).scalars()
            ]
            if entries:
                connection.execute(sa.insert(OUTBOX), entries)
        return len(entries)

    def pending(self, kind: str) -> tuple[OutboxRow, ...]:
        """What waits for delivery, oldest first."""
        c = OUTBOX.c
        query = sa.select(c.id, c.kind, c.case, c.created_at, c.attempts, c.why)
        rows = self._rows(query.where(c.kind == kind, c.delivered_at.is_(None)).order_by(c.id))
        return tuple(OutboxRow(*row) for row in rows)

    def delivered(self, id: int, at: str) -> None:
        """Note that an outbox row arrived."""
        self._update(sa.update(OUTBOX).where(OUTBOX.c.id == id).values(delivered_at=at))

    def postponed(self, id: int, why: str, at: str) -> None:
        """Note that a delivery failed, and why; it stays pending."""
        values = {
            "attempts": OUTBOX.c.attempts + 1,
            "why": why.replace("\0", "")[:WHY_LENGTH],
            "tried_at": at,
        }
        self._update(sa.update(OUTBOX).where(OUTBOX.c.id == id).values(values))

    def set_mlflow_run(self, case: str, run_id: str) -> None:
        """Note the MLflow run that shows a case."""
        self._update(sa.update(CASES).where(CASES.c.case == case).values(mlflow_run_id=run_id))
