"""The one database that is the truth: batches, studies, cases, the ledger and the outbox.

Owns `Store`, its rows, and the rule that a case, its ledger record and its outbox row are written in one
transaction or not at all. SQLite in the home, or PostgreSQL by URL when several workers share it. Knows
pseudonyms and digests, never a name or a path outside the home; reads no clock (times come in as ISO-8601 UTC
text); keeps no floats.

Invariants: the ledger only grows, each record on the one before it (the database itself refuses anything
else); an analysed or refused case never changes but for being superseded; a superseded case stays; a failed
try takes no report out of force. Trouble with the database is a `WorldError` in plain words, without values.

One `Store` serves many threads. It does not survive a fork: open it in the process that uses it.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine

from medrec import audit, database
from medrec.audit import GENESIS, AuditRecord, Problem
from medrec.errors import DataError, WorldError
from medrec.report import Status, Verdict

# Longer than any transaction of ours; shorter than an operator's patience.
WAIT_S = 30.0
# A loser of the race for the head tries again; only writers faster than this in a row could starve it.
HEAD_TRIES = 200
# Records fetched at once: a ledger of years is read without being held in memory.
PAGE = 500
# What an error may say to the outbox; more helps nobody.
WHY_LENGTH = 500

# One opening at a time in this process: alembic's context is global, and closing a second handle on a new
# SQLite file would drop the locks of the first (POSIX).
_OPENING = threading.Lock()

_T = TypeVar("_T")
_META = sa.MetaData()

_BATCHES = sa.Table(
    "batches",
    _META,
    sa.Column("batch", sa.Text, primary_key=True),
    sa.Column("started_at", sa.Text, nullable=False),
    sa.Column("finished_at", sa.Text),
    sa.Column("summary", sa.Text),
)
_STUDIES = sa.Table(
    "studies",
    _META,
    sa.Column("study", sa.Text, primary_key=True),
    sa.Column("patient", sa.Text, nullable=False),
    sa.Column("first_seen", sa.Text, nullable=False),
)
_LEDGER = sa.Table(
    "ledger",
    _META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("previous", sa.Text, nullable=False, unique=True),
    sa.Column("digest", sa.Text, nullable=False, unique=True),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
_CASES = sa.Table(
    "cases",
    _META,
    sa.Column("case", sa.Text, primary_key=True),
    sa.Column("study", sa.Text, sa.ForeignKey("studies.study"), nullable=False),
    sa.Column("patient", sa.Text, nullable=False),
    sa.Column("batch", sa.Text, sa.ForeignKey("batches.batch"), nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("version", sa.Text),
    sa.Column("inputs_sha256", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("verdict", sa.Text),
    sa.Column("report", sa.Text),
    sa.Column("supersedes", sa.Text, sa.ForeignKey("cases.case")),
    sa.Column("superseded_by", sa.Text, sa.ForeignKey("cases.case")),
    sa.Column("finished_at", sa.Text, nullable=False),
    sa.Column("seconds_ms", sa.Integer, nullable=False),
    sa.Column("mlflow_run_id", sa.Text),
    sa.Column("seq", sa.Integer, sa.ForeignKey("ledger.seq"), nullable=False, unique=True),
    sa.Index("cases_by_study", "study", "model"),
    sa.Index("cases_by_batch", "batch"),
)
_OUTBOX = sa.Table(
    "outbox",
    _META,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("case", sa.Text, sa.ForeignKey("cases.case"), nullable=False),
    sa.Column("created_at", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("why", sa.Text),
    sa.Column("tried_at", sa.Text),
    sa.Column("delivered_at", sa.Text),
    sa.Index("outbox_by_kind", "kind", "delivered_at"),
)

# The fields of a case that its ledger record repeats, so that a changed row is noticed. Not the patient's
# pseudonym: the ledger cannot forget, and a patient may ask to be forgotten.
SEALED = (
    "case",
    "study",
    "batch",
    "model",
    "version",
    "inputs_sha256",
    "status",
    "reason",
    "verdict",
    "report",
    "supersedes",
    "finished_at",
    "seconds_ms",
)


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One case. `study` and `patient` are pseudonyms, `report` a path below the home, `seconds_ms` what it
    took.

    `model`, `version` are None when no card was routed; `verdict` when nothing was analysed.
    """

    case: str
    study: str
    patient: str
    batch: str
    model: str | None
    version: str | None
    inputs_sha256: str
    status: Status
    reason: str
    verdict: Verdict | None
    report: str | None
    supersedes: str | None
    superseded_by: str | None
    finished_at: str
    seconds_ms: int
    mlflow_run_id: str | None

    def sealed(self) -> dict[str, object]:
        """The fields that go into the ledger."""
        return {name: getattr(self, name) for name in SEALED}


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One night; `finished_at` and `summary` (JSON text) are None while it runs, or when it was killed."""

    batch: str
    started_at: str
    finished_at: str | None
    summary: str | None


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A case that waits for delivery, for the `attempts`-th time because of `why`."""

    id: int
    kind: str
    case: str
    created_at: str
    attempts: int
    why: str | None


class Store:
    """The database, open. Made by `Store.open`; usable as a context manager."""

    def __init__(self, engine: Engine, place: str, wait_s: float) -> None:
        self._engine = engine
        self._place = place
        self._wait_s = wait_s

    @classmethod
    def open(cls, url: str, wait_s: float = WAIT_S) -> "Store":
        """Open the store at `url`; create it or bring it up to this schema before, safely at once from many.

        `sqlite:///PATH` or `postgresql+psycopg://…`; others' locks are waited for at most `wait_s` seconds.

        Raises:
            ConfigError: the URL is not one of these, or the database was written by a newer medrec.
            WorldError: the database cannot be reached, read or written.
        """
        address = database.address_of(url)
        place = address.database or "memory" if address.get_backend_name() == "sqlite" else "PostgreSQL"
        with _OPENING:
            database.create_private(address, place)
            store = cls(database.engine_of(address, wait_s), place, wait_s)
            try:
                database.migrate(store._reading, store._writing, place)
            except BaseException:
                store.close()
                raise
        return store

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Batches and studies

    def start_batch(self, batch: str, at: str) -> None:
        """Note that a batch starts; a batch that is taken up again keeps its first start."""
        self._insert_once(_BATCHES, {"batch": batch, "started_at": at})

    def finish_batch(self, batch: str, at: str, summary: str) -> None:
        """Note that a batch came to its end, with its summary as JSON text.

        Raises:
            DataError: no such batch was started.
        """
        where = _BATCHES.c.batch == batch
        if not self._update(sa.update(_BATCHES).where(where).values(finished_at=at, summary=summary)):
            raise DataError(f"batch {batch} cannot be finished: it was never started in this store")

    def batches(self) -> tuple[BatchRow, ...]:
        """All batches, oldest first."""
        rows = self._rows(sa.select(_BATCHES).order_by(_BATCHES.c.started_at, _BATCHES.c.batch))
        return tuple(BatchRow(*row) for row in rows)

    def remember_study(self, study: str, patient: str, at: str) -> None:
        """Note that a study exists; when it is known already, nothing changes."""
        self._insert_once(_STUDIES, {"study": study, "patient": patient, "first_seen": at})

    # Cases

    def case(self, key: str) -> CaseRow | None:
        """The case with this key."""
        return self._first(_CASES.c.case == key)

    def analysed(self, study: str, model: str, inputs_sha256: str) -> CaseRow | None:
        """The analysed case in force that any version of this model made of exactly these inputs."""
        return self._first(
            _of(study, model),
            _CASES.c.inputs_sha256 == inputs_sha256,
            _CASES.c.status == Status.ANALYSED.value,
            _CASES.c.superseded_by.is_(None),
        )

    def current(self, study: str, model: str | None) -> CaseRow | None:
        """The case in force: the latest that is not superseded, a failed one only when there is no other."""
        return self._first(_of(study, model), _CASES.c.superseded_by.is_(None))

    def cases(self, batch: str | None = None) -> tuple[CaseRow, ...]:
        """All cases, or those that a batch finished, in the order in which they were."""
        where = sa.true() if batch is None else _CASES.c.batch == batch
        return tuple(_case_row(row) for row in self._rows(sa.select(_CASES).where(where).order_by(_CASES.c.seq)))

    def finish(self, row: CaseRow, facts: Mapping[str, object], now: str) -> AuditRecord:
        """Write a finished case, its ledger record and its outbox row in one transaction.

        The record's facts are `facts` and the sealed fields of the row; facts["files"] holds the SHA-256 of
        each written file by its path below the home. A row of the same key is replaced when its status is
        "failed". Unless this try failed too, every earlier case of the study and model that is still in force
        is superseded by it, with a record each. `row.supersedes` and `row.superseded_by` are filled in here.

        Raises:
            DataError: the key is taken by a case that did not fail, or study or batch are unknown here.
            ValueError: the facts contradict the row, name a file outside the home, or the status is no
                result.
            TypeError: the facts hold something that the ledger does not take.
        """
        if row.status is Status.ALREADY_DONE:
            raise ValueError(f"'{row.status}' is not what becomes of a case")
        audit.written_files(facts)

        def write(tail: _Tail) -> AuditRecord:
            before = tail.connection.execute(sa.select(_CASES).where(_CASES.c.case == row.case)).first()
            if before is not None and before.status != Status.FAILED.value:
                raise DataError(
                    f"case {row.case} is finished already ({before.status}); a finished case stays as it is"
                )
            replaced = tuple(tail.connection.execute(_in_force(row)).scalars())
            kept = before.superseded_by if before is not None and row.status is Status.FAILED else None
            new = replace(row, supersedes=replaced[-1] if replaced else None, superseded_by=kept)
            # The record goes first: its place in the chain is what two writers at once collide on, so that
            # only one of them gets as far as the rows (and PostgreSQL never sees them lock each other).
            record = tail.add(f"case {row.status}", now, _merged(facts, new))
            _put(tail.connection, new, tail.number, is_new=before is None)
            tail.connection.execute(sa.update(_CASES).where(_CASES.c.case.in_(replaced)).values(superseded_by=row.case))
            for old in replaced:
                tail.add(audit.SUPERSEDED, now, {"case": old, "by": row.case, "study": row.study})
            entry = {"kind": "mlflow", "case": row.case, "created_at": now, "attempts": 0}
            tail.connection.execute(sa.insert(_OUTBOX).values(entry))
            return record

        return self._extend(write)

    # The ledger

    def append(self, kind: str, at: str, facts: Mapping[str, object]) -> AuditRecord:
        """Add a record that belongs to no row, on the current head."""
        return self._extend(lambda tail: tail.add(kind, at, facts))

    def head(self) -> str:
        """The digest of the last record; GENESIS when there is none."""
        with self._reading() as connection:
            return _head(connection)[1]

    def ledger(self, since: int = 0) -> Iterator[AuditRecord]:
        """The records after number `since`, in order, a page at a time; those added meanwhile included."""
        return self._ledger(since, None)

    def verify(self, file_digest: Callable[[str], str | None] | None = None) -> Iterator[Problem]:
        """What does not match in ledger, files and cases (`audit.verify`); others may go on writing."""
        columns = [_CASES.c[name] for name in (*SEALED, "superseded_by")]
        last = -1
        while last != (last := self._last()):  # cases and ledger of one moment, without holding a lock
            cases = {row.case: dict(row._mapping) for row in self._rows(sa.select(*columns))}
        return audit.verify(self._ledger(0, last), file_digest, cases)

    def _last(self) -> int:
        with self._reading() as connection:
            return _head(connection)[0]

    def _ledger(self, since: int, last: int | None) -> Iterator[AuditRecord]:
        columns = (_LEDGER.c.seq, _LEDGER.c.body, _LEDGER.c.digest, _LEDGER.c.previous)
        until = sa.true() if last is None else _LEDGER.c.seq <= last
        while page := self._rows(
            sa.select(*columns).where(_LEDGER.c.seq > since, until).order_by(_LEDGER.c.seq).limit(PAGE)
        ):
            for row in page:
                yield AuditRecord(_as_bytes(row.body), row.digest, row.previous)
            since = page[-1].seq

    # The outbox

    def requeue(self, kind: str, at: str) -> int:
        """Put every case that does not wait for this delivery back into the outbox; returns how many."""
        waiting = sa.select(_OUTBOX.c.case).where(_OUTBOX.c.kind == kind, _OUTBOX.c.delivered_at.is_(None))
        keys = sa.select(_CASES.c.case).where(_CASES.c.case.not_in(waiting)).order_by(_CASES.c.seq)
        with self._writing() as connection:
            entries = [
                {"kind": kind, "case": key, "created_at": at, "attempts": 0}
                for key in connection.execute(keys).scalars()
            ]
            if entries:
                connection.execute(sa.insert(_OUTBOX), entries)
        return len(entries)

    def pending(self, kind: str) -> tuple[OutboxRow, ...]:
        """What waits for delivery, oldest first."""
        c = _OUTBOX.c
        query = sa.select(c.id, c.kind, c.case, c.created_at, c.attempts, c.why)
        rows = self._rows(query.where(c.kind == kind, c.delivered_at.is_(None)).order_by(c.id))
        return tuple(OutboxRow(*row) for row in rows)

    def delivered(self, id: int, at: str) -> None:
        """Note that an outbox row arrived."""
        self._update(sa.update(_OUTBOX).where(_OUTBOX.c.id == id).values(delivered_at=at))

    def postponed(self, id: int, why: str, at: str) -> None:
        """Note that a delivery failed, and why; it stays pending."""
        values = {
            "attempts": _OUTBOX.c.attempts + 1,
            "why": why.replace("\0", "")[:WHY_LENGTH],
            "tried_at": at,
        }
        self._update(sa.update(_OUTBOX).where(_OUTBOX.c.id == id).values(values))

    def set_mlflow_run(self, case: str, run_id: str) -> None:
        """Note the MLflow run that shows a case."""
        self._update(sa.update(_CASES).where(_CASES.c.case == case).values(mlflow_run_id=run_id))

    # How the database is spoken to

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

    def _first(self, *where: "sa.ColumnElement[bool]") -> CaseRow | None:
        failed_last = sa.case((_CASES.c.status == Status.FAILED.value, 1), else_=0)
        rows = self._rows(sa.select(_CASES).where(*where).order_by(failed_last, _CASES.c.seq.desc()).limit(1))
        return _case_row(rows[0]) if rows else None

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

    def _extend(self, write: "Callable[[_Tail], _T]") -> _T:
        """Run `write` in one transaction on the ledger's head, again when another writer moved it."""
        for _ in range(HEAD_TRIES):
            # The head is read first: what `write` reads is at least as new, or the head moved and it fails.
            seen = -1
            try:
                with self._writing() as connection:
                    tail = _Tail(connection, *_head(connection))
                    seen = tail.number
                    return write(tail)
            except exc.IntegrityError:
                if self._last() == seen:
                    what = "a study, batch or case that it names is unknown here"
                    raise DataError(f"the store does not take this: {what}") from None
        raise WorldError(f"the store ({self._place}) is too busy: others were faster {HEAD_TRIES} times")


class _Tail:
    """The end of the ledger within one transaction: each record added becomes the head."""

    def __init__(self, connection: Connection, number: int, digest: str) -> None:
        self.connection = connection
        self.number = number
        self._digest = digest

    def add(self, kind: str, at: str, facts: Mapping[str, object]) -> AuditRecord:
        record = audit.seal(self._digest, kind, at, facts)
        self.number += 1
        values = {
            "seq": self.number,
            "previous": record.previous,
            "digest": record.digest,
            "body": record.body,
        }
        self.connection.execute(sa.insert(_LEDGER).values(values))
        self._digest = record.digest
        return record


def _head(connection: Connection) -> tuple[int, str]:
    query = sa.select(_LEDGER.c.seq, _LEDGER.c.digest).order_by(_LEDGER.c.seq.desc()).limit(1)
    row = connection.execute(query).first()
    return (0, GENESIS) if row is None else (row.seq, row.digest)


def _as_bytes(body: object) -> bytes:
    """The stored bytes; SQLite hands out whatever type a tamperer left there, for `verify` to name."""
    return body if isinstance(body, bytes) else str(body).encode()


def _of(study: str, model: str | None) -> "sa.ColumnElement[bool]":
    return sa.and_(_CASES.c.study == study, _CASES.c.model.is_not_distinct_from(model))


def _in_force(row: CaseRow) -> "sa.Select[tuple[str]]":
    """The keys of the cases that `row` supersedes, oldest first; a failure replaces nothing, a refusal no result.

    A study that no model asked for, and that one now does, is no longer without a model.
    """
    if row.status is Status.FAILED:
        return sa.select(_CASES.c.case).where(sa.false())
    same = sa.or_(_of(row.study, row.model), _of(row.study, None))
    earlier = sa.and_(same, _CASES.c.superseded_by.is_(None), _CASES.c.case != row.case)
    if row.status is Status.REFUSED:  # a copy that arrived incomplete takes no finished report out of force
        earlier = sa.and_(earlier, _CASES.c.status != Status.ANALYSED.value)
    return sa.select(_CASES.c.case).where(earlier).order_by(_CASES.c.seq)


def _merged(facts: Mapping[str, object], row: CaseRow) -> dict[str, object]:
    sealed = row.sealed()
    for name in facts.keys() & sealed.keys() - {"supersedes"}:
        if facts[name] != sealed[name]:
            raise ValueError(f"facts[{name!r}] of case {row.case} is not what its row says")
    return {**facts, **sealed}


def _put(connection: Connection, row: CaseRow, number: int, *, is_new: bool) -> None:
    values = {name: getattr(row, name) for name in CaseRow.__slots__} | {
        "status": row.status.value,
        "verdict": None if row.verdict is None else row.verdict.value,
        "seq": number,
    }
    if is_new:
        connection.execute(sa.insert(_CASES).values(values))
    else:
        connection.execute(sa.update(_CASES).where(_CASES.c.case == row.case).values(values))


def _case_row(row: "sa.Row[tuple[object, ...]]") -> CaseRow:
    values = {name: row._mapping[name] for name in CaseRow.__slots__}
    verdict = values["verdict"]
    values |= {"status": Status(values["status"]), "verdict": None if verdict is None else Verdict(verdict)}
    return CaseRow(**values)
