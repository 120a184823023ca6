"""Claims: which worker is on which case, and until when the others leave it alone."""

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy import exc

from medrec.report import Status
from medrec.store.session import Session
from medrec.store.tables import CASES, CLAIMS


class Claims(Session):
    """What the store knows of work in progress. Times are ISO-8601 UTC of one length, which sort as they follow."""

    def claim(self, case: str, worker: str, now: str, until: str) -> bool:
        """Take a case that nobody holds, or whose holder let its time run out; False when another has it."""
        c = CLAIMS.c
        free = sa.and_(c.case == case, sa.or_(c.until <= now, c.worker == worker))
        if self._update(sa.update(CLAIMS).where(free).values(worker=worker, until=until)):
            return True
        try:
            with self._writing() as connection:
                connection.execute(sa.insert(CLAIMS).values(case=case, worker=worker, until=until))
        except exc.IntegrityError:
            return False
        return True

    def renew_claims(self, worker: str, until: str) -> None:
        """Hold all that a worker holds for longer."""
        self._update(sa.update(CLAIMS).where(CLAIMS.c.worker == worker).values(until=until))

    def holds_claim(self, case: str, worker: str, now: str) -> bool:
        """Whether a case is still this worker's."""
        c = CLAIMS.c
        return bool(self._rows(sa.select(c.case).where(c.case == case, c.worker == worker, c.until > now)))

    def free_claims(self, worker: str, case: str | None = None) -> None:
        """Let go of a case, or of all that a worker holds."""
        c = CLAIMS.c
        where = c.worker == worker if case is None else sa.and_(c.worker == worker, c.case == case)
        with self._writing() as connection:
            connection.execute(sa.delete(CLAIMS).where(where))

    def claims(self, now: str) -> dict[str, str]:
        """The worker that holds each case."""
        c = CLAIMS.c
        return {row.case: row.worker for row in self._rows(sa.select(c.case, c.worker).where(c.until > now))}

    def unfinished(self, cases: Iterable[str]) -> frozenset[str]:
        """Those of some cases that have no result yet; a failed one has none."""
        done = self._rows(sa.select(CASES.c.case).where(CASES.c.status != Status.FAILED.value))
        return frozenset(cases) - {str(row[0]) for row in done}
