"""The ledger: read, added to, verified."""

from collections.abc import Callable, Iterator, Mapping

import sqlalchemy as sa

from medrec import audit, events
from medrec.audit import AuditRecord, Problem, salted
from medrec.store.session import Session, head_of
from medrec.store.tables import CASES, LEDGER, LEDGER_SUBJECTS, SALTED, SALTS, SEALED

# Records fetched at once: a ledger of years is read without being held in memory.
PAGE = 500
_COLUMNS = (LEDGER.c.seq, LEDGER.c.body, LEDGER.c.digest, LEDGER.c.previous)


class Ledger(Session):
    """What the store knows of the ledger."""

    def append(self, kind: str, at: str, facts: Mapping[str, object]) -> AuditRecord:
        """Add a record that belongs to no row, on the current head.

        Raises:
            ValueError: the kind is none of `medrec.events`, belongs to a row, or the facts do not say what it asks.
            TypeError: the facts hold something that the ledger does not take.
            DataError: the record may not stand here, such as a review before there is a report.
        """
        if kind in events.WITH_ROWS:
            raise ValueError(f"a record {kind!r} is written together with the rows that it is about")
        return self._extend(lambda tail: tail.add(kind, at, facts))

    def head(self) -> str:
        """The digest of the last record; GENESIS when there is none."""
        with self._reading() as connection:
            return head_of(connection)[1]

    def ledger(self, since: int = 0) -> Iterator[AuditRecord]:
        """The records after number `since`, in order, a page at a time; those added meanwhile included."""
        return self._ledger(since, None)

    def about(self, subject: str) -> tuple[tuple[int, AuditRecord], ...]:
        """The records about a subject such as "case 0f3a…", with their numbers, oldest first."""
        c = LEDGER_SUBJECTS.c
        query = sa.select(*_COLUMNS).join(LEDGER_SUBJECTS, c.seq == LEDGER.c.seq)
        rows = self._rows(query.where(c.subject == subject).order_by(c.seq))
        return tuple((row.seq, _record(row)) for row in rows)

    def latest(self, kind: str) -> AuditRecord | None:
        """The last record of a kind, None when there is none."""
        c = LEDGER_SUBJECTS.c
        query = sa.select(*_COLUMNS).join(LEDGER_SUBJECTS, c.seq == LEDGER.c.seq)
        rows = self._rows(query.where(c.kind == kind).order_by(c.seq.desc()).limit(1))
        return _record(rows[0]) if rows else None

    def of_kinds(self, *kinds: str) -> tuple[tuple[int, AuditRecord], ...]:
        """The records of these kinds, with their numbers, oldest first."""
        c = LEDGER_SUBJECTS.c
        query = sa.select(*_COLUMNS).join(LEDGER_SUBJECTS, c.seq == LEDGER.c.seq).where(c.kind.in_(kinds))
        return tuple((row.seq, _record(row)) for row in self._rows(query.distinct().order_by(LEDGER.c.seq)))

    def position(self) -> tuple[int, str]:
        """Number and digest of the last record: an anchor for somebody else to keep. (0, GENESIS) when empty."""
        with self._reading() as connection:
            return head_of(connection)

    def digest_of(self, number: int) -> str | None:
        """The digest of a record, None when there is none of this number."""
        rows = self._rows(sa.select(LEDGER.c.digest).where(LEDGER.c.seq == number))
        return str(rows[0][0]) if rows else None

    def verify(
        self,
        file_digest: Callable[[str], str | None] | None = None,
        original: Callable[[str], str] = str,
        since: int = 0,
    ) -> Iterator[Problem]:
        """What does not match in ledger, files and cases (`audit.verify`); others may go on writing.

        `original` gives the pseudonym that a study had before the key was rotated, for one that was renamed.
        """
        columns = [CASES.c[name] for name in (*SEALED, "superseded_by")]
        query = sa.select(*columns, SALTS.c.salt).outerjoin(SALTS, SALTS.c.patient == CASES.c.patient)
        last = -1
        while last != (last := self._last()):  # cases and ledger of one moment, without holding a lock
            cases = {row.case: _as_sealed(dict(row._mapping), original) for row in self._rows(query)}
        return audit.verify(self._ledger(0, last), file_digest, cases, since)

    def _ledger(self, since: int, last: int | None) -> Iterator[AuditRecord]:
        until = sa.true() if last is None else LEDGER.c.seq <= last
        while page := self._rows(
            sa.select(*_COLUMNS).where(LEDGER.c.seq > since, until).order_by(LEDGER.c.seq).limit(PAGE)
        ):
            for row in page:
                yield _record(row)
            since = page[-1].seq


def _as_sealed(row: dict[str, object], original: Callable[[str], str]) -> dict[str, object]:
    """The fields of a case as its record has them."""
    salt = row.pop("salt")
    row["study"] = original(str(row["study"]))
    if salt is None:  # a salt that is gone while its case is not: nothing of it can match
        return row
    return row | {name: salted(str(salt), str(row[name])) for name in SALTED}


def _record(row: "sa.Row[tuple[object, ...]]") -> AuditRecord:
    return AuditRecord(_as_bytes(row.body), row.digest, row.previous)


def _as_bytes(body: object) -> bytes:
    """The stored bytes; SQLite hands out whatever type a tamperer left there, for `verify` to name."""
    return body if isinstance(body, bytes) else str(body).encode()
