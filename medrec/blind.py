"""The blind sample: a share of each month's cases, flagged or not, set aside for labels without sight of the report.

Drawn once, when a month is over, by a hash with the home's key: nobody who lacks the key can tell beforehand which
cases it will be, and nobody can choose them. Invariant: a month is drawn once, whatever is configured later.
"""

import math
from datetime import datetime

from medrec.dicom import Pseudonyms
from medrec.report import Status
from medrec.store import CaseRow, Store
from medrec.store.reviews import BLIND, SAMPLED, request_of

BY = "medrec"
PPM = 1_000_000


def draw(store: Store, pseudonyms: Pseudonyms, share: float, now: datetime, at: str) -> int:
    """Draw every month that is over and was not drawn; returns how many labels are asked for.

    A home that never drew begins with the month before this one.
    """
    if share <= 0:
        return 0
    drawn = 0
    every = [row for row in store.cases() if _counts(row)]
    newest = max((row.finished_at[:7] for row in every), default="")
    for month in _due(store, now):
        if month > newest:  # nothing is known of it: a clock that ran ahead must not end the sample
            break
        cases = [row for row in every if row.finished_at[:7] == month]
        chosen = sample(cases, pseudonyms, month, share)
        facts = {"month": month, "of": len(cases), "drawn": len(chosen), "share_ppm": round(share * PPM)}
        requests = (request_of(row, BLIND, f"blind sample {month}", BY, at) for row in chosen)
        drawn += store.draw_sample(facts, requests, at)
    return drawn


def sample(cases: list[CaseRow], pseudonyms: Pseudonyms, month: str, share: float) -> list[CaseRow]:
    """The cases of a month that come first by the keyed hash: the share of them, rounded up."""
    count = math.ceil(share * len(cases) - 1e-9)
    return sorted(cases, key=lambda row: pseudonyms.of(SAMPLED, month, row.case))[:count]


def _counts(row: CaseRow) -> bool:
    """Every report counts that no later one replaced, also one that a reviewer has rejected since."""
    return row.status is Status.ANALYSED and row.superseded_by is None


def _due(store: Store, now: datetime) -> list[str]:
    """The months that are over and were not drawn, oldest first."""
    done = [str(record.facts["month"]) for _, record in store.of_kinds(SAMPLED)]
    last = _before(f"{now:%Y-%m}")
    if not done:
        return [last]
    due = []
    while last > max(done):
        due.append(last)
        last = _before(last)
    return due[::-1]


def _before(month: str) -> str:
    year, number = map(int, month.split("-"))
    return f"{year - 1}-12" if number == 1 else f"{year}-{number - 1:02d}"
