"""Batches and studies."""

import sqlalchemy as sa

from medrec.errors import DataError
from medrec.store.rows import BatchRow
from medrec.store.session import Session
from medrec.store.tables import BATCHES, STUDIES


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
        where = BATCHES.c.batch == batch
        if not self._update(sa.update(BATCHES).where(where).values(finished_at=at, summary=summary)):
            raise DataError(f"batch {batch} cannot be finished: it was never started in this store")

    def set_batch_run(self, batch: str, run_id: str) -> None:
        """Note the MLflow run that shows a batch."""
        self._update(sa.update(BATCHES).where(BATCHES.c.batch == batch).values(mlflow_run_id=run_id))

    def batches(self) -> tuple[BatchRow, ...]:
        """All batches, oldest first."""
        rows = self._rows(
            sa.select(*(BATCHES.c[name] for name in BatchRow.__slots__)).order_by(BATCHES.c.started_at, BATCHES.c.batch)
        )
        return tuple(BatchRow(*row) for row in rows)

    def remember_study(self, study: str, patient: str, at: str) -> None:
        """Note that a study exists; when it is known already, nothing changes."""
        self._insert_once(STUDIES, {"study": study, "patient": patient, "first_seen": at})
