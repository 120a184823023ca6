"""A worker's hold on the cases that it works on: renewed while it lives, free soon after it died.

Owns `Leases`. Invariants: a case is worked on by one worker at a time; a dead worker's cases are free after `LEASE` at
the latest; a worker that was held up for longer than that finds out before it writes.
"""

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType

from medrec.errors import WorldError
from medrec.store import Store

LEASE = timedelta(minutes=2)
RENEWALS = 4  # in one lease: three may fail before it is lost


class Leases:
    """The claims of one worker; a context manager that renews them in a thread of its own."""

    def __init__(self, store: Store, worker: str, lease: timedelta = LEASE) -> None:
        self._store = store
        self._worker = worker
        self._lease = lease
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(WorldError):  # they end by themselves
            self._store.free_claims(self._worker)

    def take(self, case: str) -> bool:
        """Whether the case is ours now."""
        now = datetime.now(UTC)
        return self._store.claim(case, self._worker, _iso(now), _iso(now + self._lease))

    def holds(self, case: str) -> bool:
        """Whether the case is still ours."""
        return self._store.holds_claim(case, self._worker, _iso(datetime.now(UTC)))

    def free(self, case: str) -> None:
        """Let go of a case; one that cannot be let go of becomes free by itself."""
        with suppress(WorldError):
            self._store.free_claims(self._worker, case)

    def _renew(self) -> None:
        while not self._ended.wait(self._lease.total_seconds() / RENEWALS):
            try:
                self._store.renew_claims(self._worker, _iso(datetime.now(UTC) + self._lease))
            except WorldError:
                continue  # the next renewal may come through; until then nobody else takes what is held


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
