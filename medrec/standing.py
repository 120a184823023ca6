"""How things stand: what `medrec status` tells, from the store, the schedule, the lock and the disk.

Owns `Standing`. Changes nothing. Invariant: what is overdue is said first, and decides the exit code.
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from medrec import delivery, notices, reviewing
from medrec.config import Settings
from medrec.home import Home
from medrec.report import Status
from medrec.store import BatchRow, Store

NIGHTS = 5
LATELY, SHOWN_CHANGES = timedelta(days=14), 10  # of what the watch found
DISK_SHARE = 0.05  # less than this share of the disk free, or
DISK_BYTES = 5 * 2**30  # less than a few nights' reports


@dataclass(frozen=True, slots=True)
class NightLine:
    """One of the last nights; `outcome` is "running" or "did not end" for one without an end."""

    batch: str
    started_at: str
    finished_at: str | None
    outcome: str
    studies: int
    waiting: int
    failed: int


@dataclass(frozen=True, slots=True)
class Standing:
    """All of it; `overdue` and `warnings` are sentences."""

    at: str
    overdue: tuple[str, ...]
    warnings: tuple[str, ...]
    next_night: str | None
    running: bool
    nights: tuple[NightLine, ...]
    waiting: int
    failed: tuple[str, ...]
    to_mlflow: int
    deliveries: Mapping[str, int]
    workers: Mapping[str, int]
    newest_study: str | None
    reviews: Mapping[str, int]
    overdue_reviews: tuple[str, ...]
    ledger_records: int
    ledger_head: str
    disk_free_bytes: int
    disk_bytes: int

    def to_json(self) -> str:
        """One JSON object, on several lines."""
        return json.dumps(asdict(self), indent=1)

    @property
    def exit_code(self) -> int:
        """1 when a night is overdue."""
        return 1 if self.overdue else 0


def standing(home: Home, store: Store, settings: Settings, now: datetime) -> Standing:
    """How things stand now (UTC). Raises WorldError when the store cannot be read."""
    running = home.is_busy()
    nights = tuple(_line(row, running and number == 0) for number, row in enumerate(store.recent_batches(NIGHTS)))
    newest, failed = store.newest_study(), store.failed()
    disk = shutil.disk_usage(home.root)
    silence = notices.of_silence(settings.schedule, newest, now)
    warnings = [notice.text for notice in silence]
    warnings += _changed(store, now)
    if failed:
        warnings.append(f"{len(failed)} studies failed for a reason of ours; the next night tries them again")
    if disk.free < min(DISK_BYTES, DISK_SHARE * disk.total):
        warnings.append(f"the disk of the home is nearly full: {disk.free / 2**30:.1f} GiB are free")
    late = reviewing.overdue(store, settings, now)
    if late:
        warnings.append(reviewing.overdue_words(len(late), settings))
    states = store.review_states().values()
    if conflicts := sum(bool(s.conflict) for s in states):
        warnings.append(f"answers to {conflicts} reports are in conflict: medrec review list --conflicts")
    schedule = settings.schedule
    records, head = store.position()
    workers = Counter(worker for worker in store.claims(now.isoformat(timespec="milliseconds")).values())
    return Standing(
        at=_iso(now),
        overdue=_overdue(settings, nights, running, now),
        warnings=tuple(warnings),
        next_night=_iso(schedule.next(now)) if schedule is not None else None,
        running=running,
        nights=nights,
        waiting=next((n.waiting for n in nights if n.finished_at is not None), 0),
        failed=failed,
        to_mlflow=len(store.pending("mlflow")),
        deliveries=dict(Counter(row.state.value for row in store.deliveries())),
        workers=dict(workers),
        newest_study=newest,
        reviews=dict(sorted(Counter(f"{s.word}{'' if s.signed else ', claimed'}" for s in states).items())),
        overdue_reviews=tuple(one.case for one in late),
        ledger_records=records,
        ledger_head=head,
        disk_free_bytes=disk.free,
        disk_bytes=disk.total,
    )


def _changed(store: Store, now: datetime) -> list[str]:
    """What the watch found lately."""
    told = []
    for _, record in store.of_kinds("drift found"):
        with suppress(KeyError, ValueError):  # a spoilt record is for `audit verify` to name
            if now - datetime.fromisoformat(record.at) <= LATELY:
                told.append(f"changed, noticed {record.at[:10]}: {record.facts['text']}")
    return told[-SHOWN_CHANGES:]


def _overdue(settings: Settings, nights: tuple[NightLine, ...], running: bool, now: datetime) -> tuple[str, ...]:
    """Why a night is overdue: the last one that was due did not begin, or began and did not come to its end."""
    schedule = settings.schedule
    if schedule is None:
        return ()
    due = schedule.last(now)
    since = [n for n in nights if datetime.fromisoformat(n.started_at) >= due]
    if any(n.finished_at is not None for n in since) or running or not schedule.late(due, now):
        return ()
    if not since:
        return (f"the night of {due:%Y-%m-%d %H:%M} UTC did not begin; does medrec serve run?",)
    return (f"the night of {due:%Y-%m-%d %H:%M} UTC began and did not come to its end",)


def _line(row: BatchRow, running: bool) -> NightLine:
    summary: dict[str, Any] = json.loads(row.summary) if row.summary is not None else {"cases": []}
    counted = Counter(c["status"] for c in summary["cases"])
    outcome = delivery.outcome(summary) if row.summary is not None else "running" if running else "did not end"
    return NightLine(
        row.batch,
        row.started_at,
        row.finished_at,
        outcome,
        len(summary["cases"]),
        counted[Status.WAITING],
        counted[Status.FAILED],
    )


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
