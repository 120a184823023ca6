"""What an operator is told of a night without asking: it failed, it left work, no new study came, nobody
reviews.

Owns `Notice`. Pure but for `send`. Invariant: counts, times and words of ours; no pseudonym, no path, no reason that
could quote a header.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from medrec.accounts import Summary
from medrec.errors import AlreadyRunningError, MedrecError, SentinelError, WorldError
from medrec.network import webhook
from medrec.report import Status
from medrec.schedule import Notify, Schedule


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell: `event` is for programs, `text` for people."""

    event: str
    text: str


def of_night(summary: Summary) -> tuple[Notice, ...]:
    """What there is to tell of a night that came to its end."""
    told = []
    for status, event, what in (
        (Status.FAILED, "studies failed", "failed for a reason of ours; the next night tries them again"),
        (Status.WAITING, "studies left", "were left for the next night"),
    ):
        count = sum(c.status == status for c in summary.cases)
        if count:
            told.append(Notice(event, f"{count} of {len(summary.cases)} studies {what}"))
    if summary.overdue:
        told.append(Notice("reviews overdue", f"{len(summary.overdue)} reports wait for a review for too long"))
    return tuple(told)


def of_error(error: MedrecError) -> tuple[Notice, ...]:
    """What there is to tell of a night that did not come to its end; a night that meets another is no trouble."""
    if isinstance(error, AlreadyRunningError):
        return ()
    if isinstance(error, SentinelError):
        return (Notice("sentinel wrong", str(error)),)
    kind = "something is down" if isinstance(error, WorldError) else "a mistake in configuration or command"
    return (Notice("night failed", f"the night ended before its time: {kind}; medrec nightly says what"),)


def of_silence(schedule: Schedule | None, newest: str | None, now: datetime) -> tuple[Notice, ...]:
    """Whether no new study came for longer than is usual; `newest` is when the last one was first seen."""
    if schedule is None or schedule.quiet_days is None or newest is None:
        return ()
    seen = datetime.fromisoformat(newest)
    if now - seen <= timedelta(days=schedule.quiet_days):
        return ()
    return (Notice("no studies", f"no new study arrived since {seen:%Y-%m-%d %H:%M} UTC"),)


def of_drift(changed: Mapping[str, int]) -> tuple[Notice, ...]:
    """What there is to tell of numbers that changed; how many of each model."""
    if not changed:
        return ()
    which = ", ".join(f"{count} of {model}" for model, count in sorted(changed.items()))
    return (
        Notice("drift found", f"numbers changed that are watched: {which}; the monitoring run in MLflow says which"),
    )


def of_check(name: str, count: int) -> Notice:
    """That a check found something; what it is stays in the house."""
    return Notice("check failed", f"the check {name!r} has {count} to look at; medrec monitor says what")


def send(notify: Notify, batch: str | None, notices: Iterable[Notice]) -> str:
    """Tell each; returns in words what could not be told, "" when all was. A webhook that is away ends no night."""
    for notice in notices:
        facts = {"source": "medrec", "event": notice.event, "text": f"medrec: {notice.text}", "batch": batch}
        try:
            webhook.post(notify, facts)
        except WorldError as error:
            return str(error)
    return ""
