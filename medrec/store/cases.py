"""Cases: what became of each study, and what replaced it."""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from medrec import audit, events
from medrec.audit import AuditRecord, salted
from medrec.errors import DataError
from medrec.observed import Observed
from medrec.report import Status
from medrec.store.ledger import Ledger
from medrec.store.rows import CaseRow, case_row
from medrec.store.session import Tail
from medrec.store.tables import CASES, OBSERVED, OUTBOX, SALTED, SALTED_FACTS, SALTS

SALT_BYTES = 16
COMPARED = "medrec, by comparison"  # who says that two lesions are one, where no person does


class Cases(Ledger):
    """What the store knows of cases."""

    def case(self, key: str) -> CaseRow | None:
        """The case with this key."""
        return self._first(CASES.c.case == key)

    def analysed(self, study: str, model: str, inputs_sha256: str) -> CaseRow | None:
        """The analysed case in force that any version of this model made of exactly these inputs."""
        return self._first(
            _of(study, model),
            CASES.c.inputs_sha256 == inputs_sha256,
            CASES.c.status == Status.ANALYSED.value,
            CASES.c.superseded_by.is_(None),
        )

    def current(self, study: str, model: str | None) -> CaseRow | None:
        """The case in force: the latest that is not superseded, a failed one only when there is no other."""
        return self._first(_of(study, model), CASES.c.superseded_by.is_(None))

    def cases(self, batch: str | None = None) -> tuple[CaseRow, ...]:
        """All cases, or those that a batch finished, in the order in which they were."""
        where = sa.true() if batch is None else CASES.c.batch == batch
        return tuple(case_row(row) for row in self._rows(sa.select(CASES).where(where).order_by(CASES.c.seq)))

    def failed(self) -> tuple[str, ...]:
        """The keys of cases that failed and that nothing has replaced, oldest first."""
        c = CASES.c
        query = sa.select(c.case).where(c.status == Status.FAILED.value, c.superseded_by.is_(None)).order_by(c.seq)
        return tuple(str(row[0]) for row in self._rows(query))

    def of_person(self, patient: str, model: str) -> tuple[CaseRow, ...]:
        """The cases of a patient and a model that are in force, in the order in which they were finished."""
        c = CASES.c
        where = (c.patient == patient, c.model == model, c.superseded_by.is_(None))
        return tuple(case_row(row) for row in self._rows(sa.select(CASES).where(*where).order_by(c.seq)))

    def replaced_by(self, key: str) -> tuple[CaseRow, ...]:
        """The cases that this one took out of force."""
        where = CASES.c.superseded_by == key
        return tuple(case_row(row) for row in self._rows(sa.select(CASES).where(where).order_by(CASES.c.seq)))

    def finish(
        self,
        row: CaseRow,
        facts: Mapping[str, object],
        now: str,
        original: Callable[[str], str] = str,
        same: Sequence[tuple[int, str, int]] = (),
        observed: Observed | None = None,
    ) -> AuditRecord:
        """Write a finished case, its ledger record and its outbox row in one transaction.

        The record's facts are `facts` and the sealed fields of the row; facts["files"] holds the SHA-256 of
        each written file by its path below the home. Digests of what came from the patient are keyed with the
        patient's salt on their way into the record. A row of the same key is replaced when its status is
        "failed". Unless this try failed too, every earlier case of the study and model that is still in force
        is superseded by it, with a record each. `row.supersedes` and `row.superseded_by` are filled in here.
        `same` are (lesion, earlier case, lesion there) that were found to be one: each gets its record too.
        `original` gives the pseudonym that a study had before the key was rotated: records know it by that, always.
        `observed` is what is kept of it in numbers.

        Raises:
            DataError: the key is taken by a case that did not fail, or study or batch are unknown here.
            ValueError: the facts contradict the row, name a file outside the home, or the status is no
                result.
            TypeError: the facts hold something that the ledger does not take.
        """
        if row.status in (Status.ALREADY_DONE, Status.WAITING):
            raise ValueError(f"'{row.status}' is not what becomes of a case")
        audit.written_files(facts)
        salt = self.salt(row.patient)
        if observed is not None:
            facts = {**facts, "observed": digest_of_observed(observed, salt, original)}

        def write(tail: Tail) -> AuditRecord:
            before = tail.connection.execute(sa.select(CASES).where(CASES.c.case == row.case)).first()
            if before is not None and before.status != Status.FAILED.value:
                raise DataError(
                    f"case {row.case} is finished already ({before.status}); a finished case stays as it is"
                )
            replaced = tuple(tail.connection.execute(_in_force(row)).scalars())
            kept = before.superseded_by if before is not None and row.status is Status.FAILED else None
            new = replace(row, supersedes=replaced[-1] if replaced else None, superseded_by=kept)
            # The record goes first: its place in the chain is what two writers at once collide on, so that
            # only one of them gets as far as the rows (and PostgreSQL never sees them lock each other).
            study = original(row.study)
            record = tail.add(f"case {row.status}", now, _sealed(_merged(facts, new) | {"study": study}, salt))
            _put(tail.connection, new, tail.number, is_new=before is None)
            if observed is not None:
                tail.connection.execute(sa.insert(OBSERVED).values(case=row.case, **_kept(observed)))
            tail.connection.execute(sa.update(CASES).where(CASES.c.case.in_(replaced)).values(superseded_by=row.case))
            for old in replaced:
                told = {"case": old, "by": row.case, "study": salted(salt, study)}
                tail.add(events.SUPERSEDED, now, told)
            for lesion, earlier, number in same:
                match: dict[str, object] = {
                    "case": row.case,
                    "lesion": lesion,
                    "same_case": earlier,
                    "same_lesion": number,
                }
                tail.add(events.MATCHED, now, match | {"by": COMPARED, "why": "they overlap after registration"})
            entry = {"kind": "mlflow", "case": row.case, "created_at": now, "attempts": 0}
            tail.connection.execute(sa.insert(OUTBOX).values(entry))
            return record

        return self._extend(write)

    def salt(self, patient: str) -> str:
        """The salt of a patient; made when there is none."""
        self._insert_once(SALTS, {"patient": patient, "salt": secrets.token_hex(SALT_BYTES)})
        (row,) = self._rows(sa.select(SALTS.c.salt).where(SALTS.c.patient == patient))
        return str(row[0])

    def _first(self, *where: "sa.ColumnElement[bool]") -> CaseRow | None:
        failed_last = sa.case((CASES.c.status == Status.FAILED.value, 1), else_=0)
        rows = self._rows(sa.select(CASES).where(*where).order_by(failed_last, CASES.c.seq.desc()).limit(1))
        return case_row(rows[0]) if rows else None


def digest_of_observed(observed: Observed, salt: str, original: Callable[[str], str]) -> str:
    """What a case's record keeps of its numbers: with first names of site and device, keyed with the patient's salt."""
    first = replace(observed, site=original(observed.site), device=original(observed.device))
    return salted(salt, first.digest)


def _kept(observed: Observed) -> dict[str, str]:
    names = {name: getattr(observed, name) for name in ("site", "device", "scanner")}
    return names | {"numbers": json.dumps(dict(observed.values), sort_keys=True, allow_nan=False)}


def _of(study: str, model: str | None) -> "sa.ColumnElement[bool]":
    return sa.and_(CASES.c.study == study, CASES.c.model.is_not_distinct_from(model))


def _in_force(row: CaseRow) -> "sa.Select[tuple[str]]":
    """The keys of the cases that `row` supersedes, oldest first; a failure replaces nothing, a refusal no result.

    A study that no model asked for, and that one now does, is no longer without a model.
    """
    if row.status is Status.FAILED:
        return sa.select(CASES.c.case).where(sa.false())
    same = sa.or_(_of(row.study, row.model), _of(row.study, None))
    earlier = sa.and_(same, CASES.c.superseded_by.is_(None), CASES.c.case != row.case)
    if row.status is Status.REFUSED:  # a copy that arrived incomplete takes no finished report out of force
        earlier = sa.and_(earlier, CASES.c.status != Status.ANALYSED.value)
    return sa.select(CASES.c.case).where(earlier).order_by(CASES.c.seq)


def _merged(facts: Mapping[str, object], row: CaseRow) -> dict[str, object]:
    sealed = row.sealed()
    for name in facts.keys() & sealed.keys() - {"supersedes"}:
        if facts[name] != sealed[name]:
            raise ValueError(f"facts[{name!r}] of case {row.case} is not what its row says")
    return {**facts, **sealed}


def _sealed(facts: dict[str, object], salt: str) -> dict[str, object]:
    """Facts as they go into the ledger: what could be computed from the patient's files is keyed."""
    keyed = {name: salted(salt, str(facts[name])) for name in SALTED}
    for name in SALTED_FACTS:
        value = facts.get(name)
        if isinstance(value, list):
            keyed[name] = [salted(salt, v) for v in value]  # type: ignore[assignment]
        elif isinstance(value, dict):
            keyed[name] = {k: salted(salt, v) for k, v in value.items()}  # type: ignore[assignment]
    return {"files": {}, **facts, **keyed}


def _put(connection: Connection, row: CaseRow, number: int, *, is_new: bool) -> None:
    values = {name: getattr(row, name) for name in CaseRow.__slots__} | {
        "status": row.status.value,
        "verdict": None if row.verdict is None else row.verdict.value,
        "seq": number,
    }
    if is_new:
        connection.execute(sa.insert(CASES).values(values))
    else:
        connection.execute(sa.update(CASES).where(CASES.c.case == row.case).values(values))
