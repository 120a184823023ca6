"""When nights begin by themselves, when they are late, and who is told: settings, and arithmetic with clocks.

Reads no clock. Invariant: times are compared in UTC; a change of summer time moves no night by more than itself.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, Field

from medrec.pace import Window
from medrec.prediction import Frozen


def _cron(text: str) -> str:
    try:
        CronSim(text, datetime(2026, 1, 1))
    except CronSimError as error:
        raise ValueError(f"not five fields of cron (minute, hour, day, month, weekday): {error}") from error
    return text


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"no time zone {text!r}; wanted one like Europe/Berlin") from error
    return text


def _clock(text: str) -> str:
    Window.closing_at(text, datetime(2026, 1, 1, tzinfo=UTC))
    return text


class Schedule(Frozen):
    """When `medrec serve` begins a night, on what (default the intake), and when it begins no more studies.

    A night that has not begun, or not come to its end, `late_minutes` after its time is overdue. After `quiet_days`
    without a study that was not there before, somebody should look.
    """

    cron: Annotated[str, AfterValidator(_cron)]
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    input: Path | None = None
    until: Annotated[str, AfterValidator(_clock)] | None = None
    late_minutes: Annotated[int, Field(ge=1, le=1440)] = 60
    quiet_days: Annotated[int, Field(ge=1, le=365)] | None = None

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    def last(self, now: datetime) -> datetime:
        """The latest time at which a night was due, UTC."""
        return next(CronSim(self.cron, now.astimezone(self.zone), reverse=True)).astimezone(UTC)

    def next(self, now: datetime) -> datetime:
        """The next time at which a night is due, UTC."""
        return next(CronSim(self.cron, now.astimezone(self.zone))).astimezone(UTC)

    def late(self, due: datetime, now: datetime) -> bool:
        """Whether what was due then has had its time."""
        return now > due + timedelta(minutes=self.late_minutes)

    def window(self, now: datetime) -> Window | None:
        """In which a night that begins now may begin studies; None is without end."""
        return None if self.until is None else Window.closing_at(self.until, now, self.zone)

    def until_next(self, now: datetime) -> Window:
        """The window of work that makes room for the next night."""
        return Window(self.next(now))


class Retraining(Frozen):
    """When `medrec serve` looks whether `models` have `new_labels` new labels or more, and retrains those that do."""

    cron: Annotated[str, AfterValidator(_cron)]
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    models: tuple[str, ...] = Field(min_length=1)
    new_labels: Annotated[int, Field(ge=1)] = 20


class Monitoring(Frozen):
    """When `medrec serve` looks whether anything changed (null: by hand only), and how sure an alarm must be.

    `reference` studies of a site and scanner are learnt first. With `studies_a_year`, or more, all numbers together
    raise at most `false_alarms_a_year`. `sites` says what a site is called, by its pseudonym on the page.
    """

    cron: Annotated[str, AfterValidator(_cron)] | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    reference: Annotated[int, Field(ge=20, le=1000)] = 40
    false_alarms_a_year: Annotated[float, Field(gt=0, le=52)] = 1.0
    studies_a_year: Annotated[int, Field(ge=100)] = 10_000
    sites: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{20}$")], Annotated[str, Field(pattern=r"^[\w .-]{1,40}$")]] = (
        Field(default_factory=dict)
    )


class Shadow(Frozen):
    """A version that passed its gate (`model`: the beginning of its digest) runs beside the champion for `nights`."""

    model: Annotated[str, Field(pattern=r"^[0-9a-f]{6,64}$")]
    nights: Annotated[int, Field(ge=1, le=365)]


class Review(Frozen):
    """How reports are reviewed: a report that nobody decided on in `due_days` is overdue; null: none ever is.

    Of each month's cases a `blind_share` is set aside for labels that are given without sight of the report. With
    `cron` `medrec serve` reads answers back between nights too.
    """

    blind_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    due_days: Annotated[int, Field(ge=1)] | None = 7
    cron: Annotated[str, AfterValidator(_cron)] | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"


class Workers(Frozen):
    """How many workers share a night, where a Prefect server has some; 0 is none but this one.

    A worker that died leaves its case to others after `lease_s`; when nobody has worked for `patience_s`, the one that
    coordinates takes what is left.
    """

    shards: Annotated[int, Field(ge=0, le=256)] = 0
    lease_s: Annotated[float, Field(ge=1, le=3600)] = 120
    patience_s: Annotated[float, Field(ge=1, le=86400)] = 300

    @property
    def lease(self) -> timedelta:
        """`lease_s` as a span of time."""
        return timedelta(seconds=self.lease_s)


class Backfill(Frozen):
    """At most how many studies one `medrec backfill` makes again."""

    limit: Annotated[int, Field(ge=1)] = 50


class Notify(Frozen):
    """Who is told when a night fails, leaves work, or sees no new study: a URL that takes JSON by POST.

    `token` names the environment variable that holds a bearer token.
    """

    webhook: Annotated[str, Field(pattern=r"^https?://[^\s]+$")] | None = None
    token: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10
