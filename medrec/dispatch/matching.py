"""Lesions that are known from before: said by a person, and carried into what leaves from then on."""

import json
from collections.abc import Mapping

from medrec import objects
from medrec.errors import DataError
from medrec.home import Home
from medrec.store import Lesion, Store


def match(store: Store, home: Home, lesion: Lesion, same_as: Lesion, by: str, why: str, at: str) -> None:
    """Note on the record that two lesions are one; results that leave later carry the earlier one's tracking UID.

    Raises DataError when one of them is not there, they are of two patients, or it contradicts an earlier match.
    """
    for one in (lesion, same_as):
        if not 1 <= one.number <= (count := _lesions(home, one.case)):
            raise DataError(f"there is no {one}: its report tells of {count}")
    store.match(lesion, same_as, by, why, at)


def tracked(store: Store, case: str) -> Mapping[int, tuple[str, str]]:
    """(Tracking UID, Tracking ID) that each matched lesion of a case has inherited, by its number."""
    found = {}
    for number, same_as in store.matches(case).items():
        origin = store.origin(same_as)
        row = store.case(origin.case)
        if row is not None:
            found[number] = objects.tracking(origin.case, row.finished_at, origin.number)
    return found


def _lesions(home: Home, case: str) -> int:
    try:
        return len(json.loads((home.reports / case / "report.json").read_text())["findings"])
    except (OSError, ValueError, KeyError):
        raise DataError(f"there is no report of case {case[:12]} here") from None
