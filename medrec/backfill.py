"""Finished studies made again with the version of their model that is configured now.

Owns `Behind`: reports in force that an earlier version of a configured card made. A night that is given these makes
them again; the new reports supersede the old ones, which stay. It has a quota, and makes room for the next night.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from medrec.config import CardFiles, Configuration
from medrec.errors import ConfigError
from medrec.night import Request
from medrec.store import CaseRow, Store


@dataclass(frozen=True, slots=True)
class Behind:
    """A report in force, and the version of its model that is configured now."""

    row: CaseRow
    now: str


def behind(store: Store, cards: Iterable[CardFiles], since: str, model: str | None) -> tuple[Behind, ...]:
    """Those finished from `since` (ISO-8601) on, in that order."""
    found = [
        Behind(row, files.card.version)
        for files in cards
        if model is None or files.card.name == model
        for row in store.made_by(files.card.name, since)
        if row.superseded_by is None and row.version != files.card.version
    ]
    return tuple(sorted(found, key=lambda b: (b.row.finished_at, b.row.case)))


def asked(
    store: Store, configuration: Configuration, since: str, model: str | None, limit: int | None
) -> tuple[Behind, ...]:
    """What one backfill takes: the first of those that are behind, as many as `limit` or the settings allow.

    Raises ConfigError for a model that is not configured, and for a day that is none.
    """
    problems = []
    try:
        datetime.strptime(since, "%Y-%m-%d")
    except ValueError:
        problems.append(f"--since: {since} is no day; wanted one like 2026-01-31")
    if model is not None and model not in {c.card.name for c in configuration.cards}:
        problems.append(f"--model: there is no card named {model}")
    if problems:
        raise ConfigError(problems)
    found = behind(store, configuration.cards, since, model)
    return found[: limit or configuration.settings.backfill.limit]


def again(request: Request, found: Sequence[Behind], now: datetime) -> Request:
    """A night over nothing but these."""
    schedule = request.configuration.settings.schedule
    return replace(
        request,
        reanalyse=True,
        pull=False,
        only=frozenset((b.row.study, b.row.model or "") for b in found),
        window=schedule.until_next(now) if schedule is not None else request.window,
    )
