"""How the rooms' methods speak to the database: reading, writing, and adding to the ledger's end.

Owns `Session`, which the methods of `Store` build on, and `Tail`, the end of the ledger within one transaction.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from medrec import audit, database, events
from medrec.audit import GENESIS, AuditRecord
from medrec.errors import DataError, WorldError
from medrec.store.tables import LEDGER, LEDGER_SUBJECTS

# A loser of the race for the head tries again; only writers faster than this in a row could starve it.
HEAD_TRIES = 200

_T = TypeVar("_T")


class Session:
    """A database, open; the methods of `Store` are added to it, a file for each of its parts."""

    def __init__(self, engine: Engine, place: str, wait_s: float) -> None:
        self._engine = engine
        self._place = place
        self._wait_s = wait_s

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with database.plain_words(self._place, self._wait_s), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        engine = self._engine.execution_options(medrec_writes=True)
        with database.plain_words(self._place, self._wait_s), engine.begin() as connection:
            yield connection

    def _rows(self, query: "sa.Select[tuple[object, ...]]") -> "list[sa.Row[tuple[object, ...]]]":
        with self._reading() as connection:
            return list(connection.execute(query))

    def _last(self) -> int:
        with self._reading() as connection:
            return head_of(connection)[0]

    def _update(self, statement: sa.Update) -> int:
        with self._writing() as connection:
            return connection.execute(statement).rowcount

    def _insert_once(self, table: sa.Table, values: Mapping[str, str]) -> None:
        key = table.primary_key.columns[0]
        with self._reading() as connection:
            if connection.execute(sa.select(key).where(key == values[key.name])).first() is not None:
                return
        try:
            with self._writing() as connection:
                connection.execute(sa.insert(table).values(dict(values)))
        except exc.IntegrityError:
            pass  # another writer noted it in between

    def _extend(self, write: "Callable[[Tail], _T]") -> _T:
        """Run `write` in one transaction on the ledger's head, again when another writer moved it."""
        for _ in range(HEAD_TRIES):
            # The head is read first: what `write` reads is at least as new, or the head moved and it fails.
            seen = -1
            try:
                with self._writing() as connection:
                    tail = Tail(connection, *head_of(connection))
                    seen = tail.number
                    return write(tail)
            except exc.IntegrityError:
                if self._last() == seen:
                    what = "a study, batch or case that it names is unknown here"
                    raise DataError(f"the store does not take this: {what}") from None
        raise WorldError(f"the store ({self._place}) is too busy: others were faster {HEAD_TRIES} times")


class Tail:
    """The end of the ledger within one transaction: each record added becomes the head."""

    def __init__(self, connection: Connection, number: int, digest: str) -> None:
        self.connection = connection
        self.number = number
        self._digest = digest

    def add(self, kind: str, at: str, facts: Mapping[str, object]) -> AuditRecord:
        """Seal a record on the end; it is the end then.

        Raises DataError when a record of its kind may not stand here, ValueError when it does not say what it must.
        """
        if absent := events.missing(kind, facts):
            raise ValueError(f"a record {kind!r} must say {', '.join(absent)}")
        about = events.subjects(kind, facts)
        if why := events.misplaced(kind, self._before(about), about):
            raise DataError(f"the ledger does not take this: {why}")
        record = audit.seal(self._digest, kind, at, facts)
        self.number += 1
        values = {
            "seq": self.number,
            "previous": record.previous,
            "digest": record.digest,
            "body": record.body,
        }
        self.connection.execute(sa.insert(LEDGER).values(values))
        for subject in about:
            entry = {"seq": self.number, "subject": subject, "kind": kind}
            self.connection.execute(sa.insert(LEDGER_SUBJECTS).values(entry))
        self._digest = record.digest
        return record

    def _before(self, about: tuple[str, ...]) -> dict[str, set[str]]:
        """The kinds of the records that there are about each subject."""
        c, found = LEDGER_SUBJECTS.c, {subject: set[str]() for subject in about}
        for row in self.connection.execute(sa.select(c.subject, c.kind).where(c.subject.in_(about)).distinct()):
            found[row.subject].add(row.kind)
        return found


def head_of(connection: Connection) -> tuple[int, str]:
    """Number and digest of the last record; 0 and GENESIS when there is none."""
    query = sa.select(LEDGER.c.seq, LEDGER.c.digest).order_by(LEDGER.c.seq.desc()).limit(1)
    row = connection.execute(query).first()
    return (0, GENESIS) if row is None else (row.seq, row.digest)
