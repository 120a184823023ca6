"""Taking back what a model has said: every report of it since a day, and what became of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from medrec import objects
from medrec.dispatch.derived import REJECTED, files_of, reject
from medrec.home import Home
from medrec.store import CaseRow, State, Store

ARRIVED = (State.SENT, State.CONFIRMED)
GONE = "its objects are gone from the outbox: what was sent must be taken back at the PACS itself"


@dataclass(frozen=True, slots=True)
class Affected:
    """One report of the model; `standing` says in plain words what became of it, `sent` where its results went,
    or may have gone in part."""

    case: str
    study: str
    version: str
    finished_at: str
    verdict: str
    sent: tuple[str, ...]
    standing: str


def recall(
    store: Store,
    home: Home,
    model: str,
    since: str,
    reason: Literal["quality", "safety"] | None,
    clock: Callable[[], str],
) -> tuple[Affected, ...]:
    """Every report of a model since a day; with a `reason` each is taken back.

    What has not left stays here; for what has, a rejection is queued to each place that it went to. Raises WorldError
    when it cannot be written; calling again goes on.
    """
    found = []
    for case in store.made_by(model, since):
        if reason is not None:
            take_back(store, home, case.case, reason, clock)
        found.append(_affected(store, case))
    return tuple(found)


def take_back(store: Store, home: Home, case: str, reason: str, clock: Callable[[], str]) -> None:
    """Keep one report from leaving, and queue a rejection to each place that it went to; calling again goes on.

    The caller holds the home. Raises WorldError when the rejection cannot be written.
    """
    store.recall(case, reason, clock())
    known = store.recalled(case)
    assert known is not None
    for row in store.deliveries(case=case):
        if row.kind != "results":
            continue
        if row.state in ARRIVED or row.attempts:  # a try that failed, or was killed, may have left some of it there
            there = _write(home, case, *known)
            state, why = (State.QUEUED, "") if there else (State.FAILED, GONE)
            store.enqueue(case, row.destination, "rejection", state, clock(), why)
        if row.state not in (*ARRIVED, State.WITHDRAWN):
            store.move(row, State.WITHDRAWN, clock(), f"recalled ({known[0]})")


def _write(home: Home, case: str, reason: str, at: str) -> bool:
    """The rejection of everything that the case may have sent; False when nothing is left to tell what that was."""
    folder = home.outbox / f"{case}-{REJECTED}"
    if folder.is_dir():
        return True
    there = bool(files_of(home, case))
    if there:
        objects.place([reject(home, case, reason, at)], folder)
    return there


def _affected(store: Store, case: CaseRow) -> Affected:
    rows = store.deliveries(case=case.case)
    sent = tuple(row.destination for row in rows if row.kind == "results" and (row.state in ARRIVED or row.attempts))
    taken_back = store.recalled(case.case)
    standing = "in force"
    if case.superseded_by is not None:
        standing = f"superseded by {case.superseded_by[:12]}"
    if taken_back is not None:
        states = sorted({row.state.value for row in rows if row.kind == "rejection"})
        standing = f"recalled ({taken_back[0]})" + (f", rejection {', '.join(states)}" if states else ", never left")
    verdict = case.verdict.value if case.verdict else ""
    return Affected(case.case, case.study, case.version or "", case.finished_at, verdict, sent, standing)
