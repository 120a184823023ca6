"""What the store must forget, rename or keep for a court: erasure, rotation of the key, holds.

Works on every table there is: what refers to a case or a study by a foreign key, or has a column called `patient` or
`study`, is erased and renamed with it, so that a room that adds a table need not think of it.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from medrec.errors import DataError
from medrec.events import ERASED, NIGHT_REWRITTEN
from medrec.store.batches import digest_of_summary
from medrec.store.cases import SALT_BYTES, Cases
from medrec.store.labelled import rename_images
from medrec.store.session import Tail
from medrec.store.tables import (
    BATCHES,
    CASES,
    ERASED_PATIENTS,
    LABELS,
    META,
    OBSERVED,
    SHADOWS,
    STUDIES,
    STUDY_PATIENTS,
)


class Privacy(Cases):
    """What the store knows of people's rights."""

    def erased_patients(self) -> frozenset[str]:
        """The patients who asked to be forgotten."""
        return frozenset(str(row[0]) for row in self._rows(sa.select(ERASED_PATIENTS.c.patient)))

    def of_patient(self, patient: str) -> tuple[str, ...]:
        """The keys of all cases of a patient."""
        with self._reading() as connection:
            return tuple(connection.execute(_keys(patient)).scalars())

    def held(self, case: str) -> str:
        """Why a case must be kept, "" when it need not be."""
        kinds = [r for _, r in self.about(f"case {case}") if r.kind.startswith("hold ")]
        return str(kinds[-1].facts["why"]) if kinds and kinds[-1].kind == "hold placed" else ""

    def erase(self, patient: str, digests: Iterable[str], models: Iterable[str], by: str, at: str) -> tuple[str, ...]:
        """Forget a patient: salt and every row go, a tombstone in the ledger stays; returns the cases' keys.

        `digests` are those of the patient's files, which nights list in their summaries. The pseudonym alone is kept,
        so that the next night does not take the patient in again.

        Raises DataError when there is no such patient, or a case is held.
        """

        def write(tail: Tail) -> tuple[str, ...]:
            keys = tuple(tail.connection.execute(_keys(patient)).scalars())
            if not keys and not tail.connection.execute(_studies(patient)).first():
                raise DataError(f"there is no case of patient {patient}, and no study is known")
            labels = tail.connection.execute(_labels(patient)).scalars()
            facts: dict[str, object] = {"cases": list(keys), "models": sorted(models), "by": by, "labels": list(labels)}
            if shadows := _shadows(tail.connection, patient):
                facts["shadows"] = shadows
            tail.add(ERASED, at, facts)
            gone = {*keys, *digests}
            _without(tail, gone, at)
            _delete(tail.connection, patient, keys)
            tail.connection.execute(sa.insert(ERASED_PATIENTS).values(patient=patient, at=at))
            return keys

        for case in self.of_patient(patient):
            if why := self.held(case):
                raise DataError(f"case {case} is on hold ({why}); lift the hold first")
        return self._extend(write)

    def pseudonyms(self) -> frozenset[str]:
        """The names of all studies and patients that there are, the erased included, of sites and devices."""
        queries = [sa.select(STUDIES.c.study), sa.select(STUDIES.c.patient), sa.select(ERASED_PATIENTS.c.patient)]
        queries += [sa.select(STUDY_PATIENTS.c.patient), *(_named(OBSERVED.c[name]) for name in ("site", "device"))]
        return frozenset(str(row[0]) for query in queries for row in self._rows(query))

    def rename(
        self,
        steps: Mapping[str, str],
        facts: Mapping[str, object],
        at: str,
        next_name: Callable[[str], str],
    ) -> None:
        """Give studies and patients their new names, everywhere, with a record of it; `steps` are new names by old.

        Sites and devices are among them. `next_name` renames everything else that has a pseudonym.
        """

        def write(tail: Tail) -> None:
            tail.add("key rotated", at, facts)
            for old, new in steps.items():
                _rename(tail.connection, old, new)
            rename_images(tail.connection, next_name)
            for batch, summary in tail.connection.execute(sa.select(BATCHES.c.batch, BATCHES.c.summary)).all():
                if summary is not None:
                    _put_summary(tail, batch, _renamed(json.loads(summary), steps), "key rotated", at)

        self._extend(write)

    def forget_run(self, case: str) -> None:
        """Note that MLflow no longer shows a case."""
        self._update(sa.update(CASES).where(CASES.c.case == case).values(mlflow_run_id=None))


def _keys(patient: str) -> "sa.Select[tuple[str]]":
    """The cases of a patient, and those of studies whose files name them among others."""
    theirs = sa.or_(CASES.c.patient == patient, CASES.c.study.in_(_mixed(patient)))
    return sa.select(CASES.c.case).where(theirs).order_by(CASES.c.seq)


def _mixed(patient: str) -> "sa.Select[tuple[str]]":
    return sa.select(STUDY_PATIENTS.c.study).where(STUDY_PATIENTS.c.patient == patient)


def _studies(patient: str) -> "sa.Select[tuple[str]]":
    return sa.select(STUDIES.c.study).where(sa.or_(STUDIES.c.patient == patient, STUDIES.c.study.in_(_mixed(patient))))


def _labels(patient: str) -> "sa.Select[tuple[str]]":
    return sa.select(LABELS.c.label).where(LABELS.c.study.in_(_studies(patient))).order_by(LABELS.c.seq)


def _shadows(connection: Connection, patient: str) -> list[object]:
    """The numbers of the records about what challengers said of a patient."""
    query = sa.select(SHADOWS.c.seq).where(SHADOWS.c.study.in_(_studies(patient))).order_by(SHADOWS.c.seq)
    return list(connection.execute(query).scalars())


def _named(column: "sa.Column[str]") -> "sa.Select[tuple[str]]":
    return sa.select(column).where(column != "").distinct()


def _delete(connection: Connection, patient: str, keys: tuple[str, ...]) -> None:
    mixed = tuple(connection.execute(_mixed(patient)).scalars())
    own = tuple(connection.execute(sa.select(STUDIES.c.study).where(STUDIES.c.patient == patient)).scalars())
    studies = own + mixed
    links = {"cases.case": keys, "studies.study": studies}
    connection.execute(sa.update(CASES).where(CASES.c.case.in_(keys)).values(supersedes=None, superseded_by=None))
    for table in reversed(META.sorted_tables):
        for column in table.columns:
            targets = [values for fk in column.foreign_keys if (values := links.get(fk.target_fullname))]
            if table is not CASES and targets:
                connection.execute(sa.delete(table).where(column.in_(targets[0])))
        if "patient" in table.columns:
            connection.execute(sa.delete(table).where(table.c.patient.in_((patient, *mixed))))


def _without(tail: Tail, gone: set[str], at: str) -> None:
    """Take lines about these cases and files out of every night's summary; MLflow is to get it anew."""
    for batch, summary in tail.connection.execute(sa.select(BATCHES.c.batch, BATCHES.c.summary)).all():
        if summary is None:
            continue
        told: dict[str, Any] = json.loads(summary)
        names = {"cases": "case", "overdue": "case", "refusals": "sha256"}
        kept = {k: [line for line in told[k] if line[name] not in gone] for k, name in names.items() if k in told}
        if any(len(kept[k]) != len(told[k]) for k in kept):
            _put_summary(tail, batch, {**told, **kept}, ERASED, at)


def _put_summary(tail: Tail, batch: str, told: dict[str, Any], why: str, at: str) -> None:
    """Under a new salt: the digest of what it said before tells nothing to somebody who guesses what is gone."""
    summary = json.dumps(told | ({"salt": secrets.token_hex(SALT_BYTES)} if "salt" in told else {}), indent=1)
    tail.add(NIGHT_REWRITTEN, at, {"batch": batch, "summary": digest_of_summary(summary), "why": why})
    values = {"summary": summary, "mlflow_run_id": None}
    tail.connection.execute(sa.update(BATCHES).where(BATCHES.c.batch == batch).values(values))


def _rename(connection: Connection, old: str, new: str) -> None:
    """A study's row is copied under its new name, what refers to it moved there, and the old one removed."""
    row = connection.execute(sa.select(STUDIES).where(STUDIES.c.study == old)).first()
    if row is not None:
        connection.execute(sa.insert(STUDIES).values({**row._mapping, "study": new}))
    for table in META.sorted_tables:
        for name in ("study", "patient", "site", "device"):
            if name in table.columns and (table, name) != (STUDIES, "study"):
                connection.execute(sa.update(table).where(table.c[name] == old).values({name: new}))
    if row is not None:
        connection.execute(sa.delete(STUDIES).where(STUDIES.c.study == old))


def _renamed(value: Any, steps: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {k: _renamed(v, steps) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v, steps) for v in value]
    return steps.get(value, value) if isinstance(value, str) else value
