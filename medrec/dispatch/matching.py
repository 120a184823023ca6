"""Lesions that are known from before: said by a person, and carried into what is planned or accepted after that."""

import json
from collections.abc import Mapping

from medrec import objects
from medrec.errors import DataError
from medrec.home import Home
from medrec.store import Lesion, Store

PLANNED, AGREED = "delivery state", "case accepted"  # kinds of records


def match(store: Store, home: Home, lesion: Lesion, same_as: Lesion, by: str, why: str, at: str) -> None:
    """Note on the record that two lesions are one; what is accepted or planned after it carries the earlier one's UID.

    Raises DataError when one of them is not there, they are of two patients, or it contradicts an earlier match.
    """
    for one in (lesion, same_as):
        if not 1 <= one.number <= (count := _lesions(home, one.case)):
            raise DataError(f"there is no {one}: its report tells of {count}")
    store.match(lesion, same_as, by, why, at)


def tracked(store: Store, case: str, until: str) -> Mapping[int, tuple[str, str]]:
    """(Tracking UID, Tracking ID) that each matched lesion of a case has inherited, by its number.

    By what stood in the ledger before the case's first record of the kind `until`: what was accepted or planned to
    leave stays what it is, whatever is said later.
    """
    end = next((number for number, record in store.about(f"case {case}") if record.kind == until), None)
    found = {}
    for number, same_as in store.matches(case, end).items():
        origin = store.origin(same_as, end)
        row = store.case(origin.case)
        if row is not None:
            found[number] = objects.tracking(origin.case, row.finished_at, origin.number)
    return found


def _lesions(home: Home, case: str) -> int:
    try:
        return len(json.loads((home.reports / case / "report.json").read_text())["findings"])
    except (OSError, ValueError, KeyError):
        raise DataError(f"there is no report of case {case[:12]} here") from None
