"""One case to one PACS: whose study is it there, send, confirm. Each step leaves a named state.

What the world does (a PACS that is away, slow, full) is tried again at the next round; what is wrong with the object is
not; what a person must mend (another patient there, a title that is not known) is held and looked at again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from medrec import objects
from medrec.dispatch.derived import ACCEPTED, REJECTED, derived, recorded
from medrec.dispatch.release import plan
from medrec.dispatch.values import Delivered
from medrec.errors import ConfigError, WorldError
from medrec.home import Home
from medrec.network import Outcome, Pacs, Person, RefusedError, UnreachableError, reach
from medrec.objects import Label, NotReturnableError
from medrec.peers import Destination, Peer
from medrec.store import DeliveryRow, State, Store


def deliver(
    store: Store,
    home: Home,
    peers: Mapping[str, Peer],
    destinations: tuple[Destination, ...],
    clock: Callable[[], str],
    *,
    retry: bool = False,
) -> Delivered:
    """Plan, and bring everything that may go to where it may go; `retry` also what was given up.

    `clock` gives ISO-8601 UTC. A PACS that is away is not asked again in this round. Raises WorldError for trouble with
    the store itself.
    """
    plan(store, home, destinations, clock())
    if retry:
        for row in store.deliveries(states=(State.FAILED,)):
            store.move(row, State.QUEUED, clock(), "asked for again")
    waiting = store.deliveries(states=(State.QUEUED, State.HELD, State.SENT))
    rules = {d.peer: d for d in destinations}
    problems: list[str] = []
    done: list[DeliveryRow] = []
    away: dict[str, str] = {}
    for row in waiting:
        if row.destination in away or row.why == "its release is never":
            done.append(row)
            continue
        if row.destination not in peers:
            done.append(store.move(row, State.HELD, clock(), "there is no such peer any more"))
            continue
        rule = rules.get(row.destination, Destination(peer=row.destination))
        try:
            pacs = reach(row.destination, peers[row.destination], commitment_port=rule.commitment_port)
            done.append(_Push(store, home, pacs, rule, clock).one(row))
        except UnreachableError as error:
            away[row.destination] = str(error)
            done.append(store.move(row, row.state, clock(), str(error)))
        except ConfigError as error:
            away[row.destination] = "; ".join(error.problems)
            done.append(store.move(row, State.HELD, clock(), away[row.destination]))
    problems += [f"{why}; what waits for it is delivered later" for why in away.values()]
    review = store.deliveries(states=(State.REVIEW,))
    return Delivered((*done, *review), tuple(problems + _held(done)))


def _held(rows: Sequence[DeliveryRow]) -> list[str]:
    told = dict.fromkeys((row.destination, row.state, row.why) for row in rows)
    bad = (State.HELD, State.FAILED)
    return [f"{destination}: {state}: {why}" for destination, state, why in told if state in bad]


class _Push:
    """One delivery's steps; the row that each returns says where it stands."""

    def __init__(self, store: Store, home: Home, pacs: Pacs, rule: Destination, clock: Callable[[], str]) -> None:
        self._store = store
        self._home = home
        self._pacs = pacs
        self._rule = rule
        self._clock = clock

    def one(self, row: DeliveryRow) -> DeliveryRow:
        """Raises UnreachableError when the PACS is away."""
        try:
            files = self._files(row)
            labels = {path.name: objects.label(path) for path in files}
            self._known(row, files[0].parent)
            return self._bring(row, files, labels)
        except NotReturnableError as error:
            return self._move(row, State.FAILED, str(error))
        except RefusedError as error:
            return self._move(row, State.HELD, str(error))
        except UnreachableError:
            raise
        except WorldError as error:  # our own disk
            return self._move(row, row.state, str(error))

    def _bring(self, row: DeliveryRow, files: Sequence[Path], labels: Mapping[str, Label]) -> DeliveryRow:
        why = self._another_patient(next(iter(labels.values()))) if self._rule.check_patient else ""
        if why:
            return self._move(row, State.HELD, why)
        if row.state is not State.SENT:
            row = self._send(row, files, labels)
        return self._confirm(row, files, labels) if row.state is State.SENT else row

    def _files(self, row: DeliveryRow) -> list[Path]:
        """What this delivery sends: to a place that wants reviewed results, the accepted ones."""
        folder = self._home.outbox / row.case
        if row.kind == "rejection":
            folder = self._home.outbox / f"{row.case}-{REJECTED}"
        elif self._rule.release == "after_review":
            who = self._store.accepted(row.case)
            assert who is not None, "only an accepted case is queued for such a destination"
            before, folder = folder, self._home.outbox / f"{row.case}-{ACCEPTED}"
            if not folder.is_dir():
                objects.place(objects.accept(before, *who), folder)
        files = sorted(folder.glob("*.dcm"))
        if not files:
            raise NotReturnableError("its objects are gone from the outbox")
        return files

    def _known(self, row: DeliveryRow, folder: Path) -> None:
        """Raises NotReturnableError for objects that the ledger does not tell of: fitting UIDs anybody can compute."""
        how = folder.name.removeprefix(row.case).removeprefix("-")
        told = derived(self._store, self._home, row.case, how) if how else recorded(self._store, self._home, row.case)
        if told:
            raise NotReturnableError(told)

    def _another_patient(self, ours: Label) -> str:
        """Why the study there must not get these objects; "" when it may. Names no value."""
        there = self._pacs.person(ours.study_uid)
        if there is None:
            return "the study is not there"
        different = Person(*ours.patient).differs(there)
        return f"the study there is somebody else's: another {', '.join(different)}" if different else ""

    def _send(self, row: DeliveryRow, files: Sequence[Path], labels: Mapping[str, Label]) -> DeliveryRow:
        outcomes = self._pacs.store(files)
        bad = [o for o in outcomes if not o.stored]
        warnings = _words([o for o in outcomes if o.warned])
        if not bad:
            sent = {labels[p.name].instance: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
            return self._store.move(row, State.SENT, self._clock(), "", warnings, sent)
        again = all(o.again for o in bad)
        why = f"{len(bad)} of {len(files)} objects were not taken ({_words(bad)})"
        return self._store.move(row, State.QUEUED if again else State.FAILED, self._clock(), why, warnings)

    def _confirm(self, row: DeliveryRow, files: Sequence[Path], labels: Mapping[str, Label]) -> DeliveryRow:
        """By storage commitment where it is offered, else by asking for each object."""
        committed = self._pacs.committed(files)
        if committed is None:
            committed = frozenset(
                name for name, label in labels.items()
                if label.instance in self._pacs.holds(label.study_uid, label.series_uid)
            )  # fmt: skip
        missing = [path.name for path in files if path.name not in committed]
        if missing:
            why = f"taken, but not there: {', '.join(missing)}; they are sent again"
            return self._move(row, State.QUEUED, why)
        return self._move(row, State.CONFIRMED, "")

    def _move(self, row: DeliveryRow, state: State, why: str) -> DeliveryRow:
        return self._store.move(row, state, self._clock(), why)


def _words(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(f"{o.name}: {o.status}" for o in outcomes)
