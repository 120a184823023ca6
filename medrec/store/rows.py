"""The rows that the store hands out."""

from dataclasses import dataclass

import sqlalchemy as sa

from medrec.report import Status, Verdict
from medrec.store.tables import SEALED


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
    """One night; `finished_at` and `summary` (JSON text) are None while it runs, or when it was killed.

    `mlflow_run_id` is the run that shows it, once there is one.
    """

    batch: str
    started_at: str
    finished_at: str | None
    summary: str | None
    mlflow_run_id: str | None = None


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A case that waits for delivery, for the `attempts`-th time because of `why`.

    `fresh` says that nobody ever tried to deliver the case, neither this entry nor another.
    """

    id: int
    kind: str
    case: str
    created_at: str
    attempts: int
    why: str | None
    fresh: bool = False


def case_row(row: "sa.Row[tuple[object, ...]]") -> CaseRow:
    """A row of the table as what the rooms know."""
    values = {name: row._mapping[name] for name in CaseRow.__slots__}
    verdict = values["verdict"]
    values |= {"status": Status(values["status"]), "verdict": None if verdict is None else Verdict(verdict)}
    return CaseRow(**values)
