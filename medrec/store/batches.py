"""Batches and studies."""

import hashlib

import sqlalchemy as sa

from medrec.errors import DataError
from medrec.events import NIGHT_FINISHED
from medrec.store.rows import BatchRow
from medrec.store.session import Session, Tail
from medrec.store.tables import BATCHES, LEDGER_SUBJECTS, STUDIES, STUDY_PATIENTS


class Batches(Session):
    """What the store knows of nights and studies."""

    def start_batch(self, batch: str, at: str) -> None:
        """Note that a batch starts; a batch that is taken up again keeps its first start."""
        self._insert_once(BATCHES, {"batch": batch, "started_at": at})

    def finish_batch(self, batch: str, at: str, summary: str) -> None:
        """Note that a batch came to its end, with its summary as JSON text.

        Raises:
            DataError: no such batch was started.
        """

        def write(tail: Tail) -> None:
            where = BATCHES.c.batch == batch
            started = tail.connection.execute(sa.select(BATCHES.c.started_at).where(where)).scalar()
            if started is None:
                raise DataError(f"batch {batch} cannot be finished: it was never started in this store")
            tail.add(NIGHT_FINISHED, at, _night(batch, started, at, summary))
            tail.connection.execute(sa.update(BATCHES).where(where).values(finished_at=at, summary=summary))

        self._extend(write)

    def seal_nights(self, at: str) -> None:
        """Give the nights that an earlier release finished their records: once, before any night has one."""

        def write(tail: Tail) -> None:
            there = sa.select(LEDGER_SUBJECTS.c.seq).where(LEDGER_SUBJECTS.c.kind == NIGHT_FINISHED).limit(1)
            if tail.connection.execute(there).first() is not None:
                return
            for row in tail.connection.execute(sa.select(BATCHES).where(BATCHES.c.summary.is_not(None))).all():
                tail.add(NIGHT_FINISHED, at, _night(row.batch, row.started_at, row.finished_at, row.summary))

        self._extend(write)

    def set_batch_run(self, batch: str, run_id: str) -> None:
        """Note the MLflow run that shows a batch."""
        self._update(sa.update(BATCHES).where(BATCHES.c.batch == batch).values(mlflow_run_id=run_id))

    def show_again(self, batch: str) -> None:
        """Note that what MLflow shows of a batch is not what it should show any more."""
        self._update(sa.update(BATCHES).where(BATCHES.c.batch == batch).values(mlflow_run_id=None))

    def batches(self) -> tuple[BatchRow, ...]:
        """All batches, oldest first."""
        rows = self._rows(
            sa.select(*(BATCHES.c[name] for name in BatchRow.__slots__)).order_by(BATCHES.c.started_at, BATCHES.c.batch)
        )
        return tuple(BatchRow(*row) for row in rows)

    def recent_batches(self, most: int) -> tuple[BatchRow, ...]:
        """The last batches, newest first."""
        order = (BATCHES.c.started_at.desc(), BATCHES.c.batch.desc())
        rows = self._rows(sa.select(*(BATCHES.c[name] for name in BatchRow.__slots__)).order_by(*order).limit(most))
        return tuple(BatchRow(*row) for row in rows)

    def unshown_batches(self) -> tuple[BatchRow, ...]:
        """Finished batches that no MLflow run shows yet, oldest first."""
        c = BATCHES.c
        query = sa.select(*(c[name] for name in BatchRow.__slots__))
        where = (c.mlflow_run_id.is_(None), c.summary.is_not(None))
        return tuple(BatchRow(*row) for row in self._rows(query.where(*where).order_by(c.started_at, c.batch)))

    def newest_study(self) -> str | None:
        """When the study that came last was first seen; None where there is none."""
        c = STUDIES.c
        rows = self._rows(sa.select(c.first_seen).order_by(c.first_seen.desc()).limit(1))
        return str(rows[0][0]) if rows else None

    def remember_study(self, study: str, patient: str, at: str, patients: tuple[str, ...] = ()) -> None:
        """Note that a study exists; when it is known already, nothing changes.

        `patients` are all whom its files name, where that is more than one; `patient` is the study's own name then.
        """
        self._insert_once(STUDIES, {"study": study, "patient": patient, "first_seen": at})
        if len(patients) < 2:
            return
        c = STUDY_PATIENTS.c
        with self._writing() as connection:
            known = set(connection.execute(sa.select(c.patient).where(c.study == study)).scalars())
            for one in sorted(set(patients) - known):
                connection.execute(sa.insert(STUDY_PATIENTS).values(study=study, patient=one))


def digest_of_summary(summary: str) -> str:
    """What the ledger keeps of a night's summary, which carries a salt of its own."""
    return hashlib.sha256(summary.encode()).hexdigest()


def _night(batch: str, started: str, finished: str, summary: str) -> dict[str, object]:
    told: dict[str, object] = {"batch": batch, "started_at": started, "finished_at": finished}
    return told | {"summary": digest_of_summary(summary)}
