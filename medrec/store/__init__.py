"""The one database that is the truth: batches, studies, cases, the ledger and the outbox.

Owns `Store`, its rows, and the rule that a case, its ledger record and its outbox row are written in one
transaction or not at all. SQLite in the home, or PostgreSQL by URL when several workers share it. Knows
pseudonyms and digests, never a name or a path outside the home; reads no clock (times come in as ISO-8601 UTC
text); keeps no floats.

Invariants: the ledger only grows, each record on the one before it (the database itself refuses anything
else); an analysed or refused case never changes but for being superseded; a superseded case stays; a failed
try takes no report out of force. Trouble with the database is a `WorldError` in plain words, without values.

One `Store` serves many threads. It does not survive a fork: open it in the process that uses it.
"""

import threading

from medrec import database
from medrec.store.answers import Decision, LabelRequest, ReviewRow, ReviewState
from medrec.store.batches import Batches
from medrec.store.claims import Claims
from medrec.store.consistency import Consistency
from medrec.store.deliveries import Deliveries, DeliveryRow, State
from medrec.store.labelled import Known, Label, Origin
from medrec.store.locks import Locks
from medrec.store.matches import Lesion, Matches
from medrec.store.outbox import Outbox
from medrec.store.privacy import Privacy
from medrec.store.rows import BatchRow, CaseRow, OutboxRow
from medrec.store.watched import SeenCase, ShadowRow

__all__ = [
    "BatchRow",
    "CaseRow",
    "Decision",
    "DeliveryRow",
    "Known",
    "Label",
    "LabelRequest",
    "Lesion",
    "Origin",
    "OutboxRow",
    "ReviewRow",
    "ReviewState",
    "SeenCase",
    "ShadowRow",
    "State",
    "Store",
]

# Longer than any transaction of ours; shorter than an operator's patience.
WAIT_S = 30.0

# One opening at a time in this process: alembic's context is global, and closing a second handle on a new
# SQLite file would drop the locks of the first (POSIX).
_OPENING = threading.Lock()


class Store(Batches, Claims, Deliveries, Locks, Matches, Privacy, Outbox, Consistency):
    """The database, open. Made by `Store.open`; usable as a context manager."""

    @classmethod
    def open(cls, url: str, wait_s: float = WAIT_S) -> "Store":
        """Open the store at `url`; create it or bring it up to this schema before, safely at once from many.

        `sqlite:///PATH` or `postgresql+psycopg://…`; others' locks are waited for at most `wait_s` seconds.

        Raises:
            ConfigError: the URL is not one of these, or the database was written by a newer medrec.
            WorldError: the database cannot be reached, read or written.
        """
        address = database.address_of(url)
        place = address.database or "memory" if address.get_backend_name() == "sqlite" else "PostgreSQL"
        with _OPENING:
            database.create_private(address, place)
            store = cls(database.engine_of(address, wait_s), place, wait_s)
            try:
                database.migrate(store._reading, store._writing, place)
            except BaseException:
                store.close()
                raise
        return store

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
