"""The ledger: read, added to, verified."""

from collections.abc import Callable, Iterator, Mapping

import sqlalchemy as sa

from medrec import audit
from medrec.audit import AuditRecord, Problem
from medrec.store.session import Session, head_of
from medrec.store.tables import CASES, LEDGER, SEALED

# Records fetched at once: a ledger of years is read without being held in memory.
PAGE = 500


class Ledger(Session):
    """What the store knows of the ledger."""

    def append(self, kind: str, at: str, facts: Mapping[str, object]) -> AuditRecord:
        """Add a record that belongs to no row, on the current head."""
        return self._extend(lambda tail: tail.add(kind, at, facts))

    def head(self) -> str:
        """The digest of the last record; GENESIS when there is none."""
        with self._reading() as connection:
            return head_of(connection)[1]

    def ledger(self, since: int = 0) -> Iterator[AuditRecord]:
        """The records after number `since`, in order, a page at a time; those added meanwhile included."""
        return self._ledger(since, None)

    def verify(self, file_digest: Callable[[str], str | None] | None = None) -> Iterator[Problem]:
        """What does not match in ledger, files and cases (`audit.verify`); others may go on writing."""
        columns = [CASES.c[name] for name in (*SEALED, "superseded_by")]
        last = -1
        while last != (last := self._last()):  # cases and ledger of one moment, without holding a lock
            cases = {row.case: dict(row._mapping) for row in self._rows(sa.select(*columns))}
        return audit.verify(self._ledger(0, last), file_digest, cases)

    def _ledger(self, since: int, last: int | None) -> Iterator[AuditRecord]:
        columns = (LEDGER.c.seq, LEDGER.c.body, LEDGER.c.digest, LEDGER.c.previous)
        until = sa.true() if last is None else LEDGER.c.seq <= last
        while page := self._rows(
            sa.select(*columns).where(LEDGER.c.seq > since, until).order_by(LEDGER.c.seq).limit(PAGE)
        ):
            for row in page:
                yield AuditRecord(_as_bytes(row.body), row.digest, row.previous)
            since = page[-1].seq


def _as_bytes(body: object) -> bytes:
    """The stored bytes; SQLite hands out whatever type a tamperer left there, for `verify` to name."""
    return body if isinstance(body, bytes) else str(body).encode()
