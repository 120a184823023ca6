"""One case to one PACS: whose study is it there, send, confirm. Each step leaves a named state.

What the world does (a PACS that is away, slow, full) is tried again at the next round; what is wrong with the object is
not; what a person must mend (another patient there, a title that is not known) is held and looked at again.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from medrec import objects
from medrec.dispatch.derived import ACCEPTED, MATCHED, REJECTED, derived, made, recorded
from medrec.dispatch.matching import PLANNED, tracked
from medrec.dispatch.release import NEVER, plan
from medrec.dispatch.values import Delivered
from medrec.errors import ConfigError, WorldError
from medrec.home import Home
from medrec.network import Outcome, Pacs, Person, RefusedError, UnansweredError, UnreachableError, reach
from medrec.objects import Label, NotReturnableError
from medrec.peers import Destination, Peer
from medrec.store import DeliveryRow, State, Store

GONE = "its objects are gone from the outbox"


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
    if retry:
        for row in store.deliveries(states=(State.FAILED,)):
            store.move(row, State.QUEUED, clock(), "asked for again")
    plan(store, home, destinations, clock())
    rules = {d.peer: d for d in destinations}
    done: list[DeliveryRow] = []
    away: dict[str, str] = {}
    silent: dict[str, str] = {}
    for row in store.deliveries(states=(State.QUEUED, State.HELD, State.SENT)):
        name = row.destination
        if name in away or row.why == NEVER or _taken_back(store, row):
            done.append(row)
            continue
        if name not in peers:
            done.append(store.move(row, State.HELD, clock(), "there is no such peer any more"))
            continue
        rule = rules.get(name, Destination(peer=name))
        try:
            pacs = reach(name, peers[name], commitment_port=rule.commitment_port)
        except ConfigError as error:
            away[name] = "; ".join(error.problems)
            done.append(store.move(row, State.HELD, clock(), away[name]))
            continue
        push = _Push(store, home, pacs, rule, clock, row, confirms=name not in silent)
        try:
            done.append(push.run())
        except UnreachableError as error:
            (silent if isinstance(error, UnansweredError) else away)[name] = str(error)
            done.append(store.move(push.row, push.row.state, clock(), str(error)))
    problems = [f"{why}; what waits for it is delivered later" for why in away.values()]
    problems += [f"{why}; it is asked again later" for why in silent.values()]
    review = store.deliveries(states=(State.REVIEW,))
    return Delivered((*done, *review), tuple(problems + _held(done)))


def _taken_back(store: Store, row: DeliveryRow) -> bool:
    """What a PACS hides because it was rejected must not be missed there and sent again."""
    return row.kind == "results" and store.recalled(row.case) is not None


def _held(rows: Sequence[DeliveryRow]) -> list[str]:
    told = dict.fromkeys((row.destination, row.state, row.why) for row in rows)
    bad = (State.HELD, State.FAILED)
    return [f"{destination}: {state}: {why}" for destination, state, why in told if state in bad]


class _Push:
    """One delivery's steps; `row` says where it stands, also after one that broke off."""

    def __init__(
        self, store: Store, home: Home, pacs: Pacs, rule: Destination, clock: Callable[[], str], row: DeliveryRow,
        *, confirms: bool,
    ) -> None:  # fmt: skip
        self.row = row
        self._store = store
        self._home = home
        self._pacs = pacs
        self._rule = rule
        self._clock = clock
        self._confirms = confirms

    def run(self) -> DeliveryRow:
        """Raises UnreachableError when the PACS is away."""
        try:
            files = self._files()
            labels = {path.name: objects.label(path) for path in files}
            if self.row.state is not State.SENT:
                self._known(files[0].parent)
            self._bring(files, labels)
        except NotReturnableError as error:
            self._move(State.FAILED, str(error))
        except RefusedError as error:  # what was sent is there or not, whatever its questions are worth
            self._move(State.SENT if self.row.state is State.SENT else State.HELD, str(error))
        except UnreachableError:
            raise
        except WorldError as error:  # our own disk or port
            self._move(self.row.state, str(error))
        return self.row

    def _bring(self, files: Sequence[Path], labels: Mapping[str, Label]) -> None:
        why = self._another_patient(next(iter(labels.values()))) if self._rule.check_patient else ""
        if why:
            self._move(State.HELD, why)
            return
        if self.row.state is not State.SENT:
            self._send(files, labels)
        if self.row.state is State.SENT and self._confirms:
            self._confirm(files, labels)

    def _files(self) -> list[Path]:
        """What this delivery sends, or has sent when it waits to be confirmed."""
        if self.row.state is State.SENT:
            return self._as_sent()
        folder = self._folder()
        files = sorted(folder.glob("*.dcm"))
        if not files:
            reason = folder / objects.REASON
            raise NotReturnableError(reason.read_text().strip() if reason.is_file() else GONE)
        if self.row.kind == "results":
            taken = {objects.FILES[kind] for kind in self._rule.objects}
            files = [path for path in files if path.name in taken]
        if not files:
            raise NotReturnableError("it has none of the objects that the destination takes")
        return files

    def _known(self, folder: Path) -> None:
        """Raises NotReturnableError for objects that the ledger does not tell of: fitting UIDs anybody can compute."""
        case = self.row.case
        how = folder.name.removeprefix(case).removeprefix("-")
        told = derived(self._store, self._home, case, how) if how else recorded(self._store, self._home, case)
        if told:
            raise NotReturnableError(told)

    def _folder(self) -> Path:
        """The rejection, or the results: to a place that wants reviewed ones, those that were accepted."""
        case = self.row.case
        before = self._home.outbox / case
        if self.row.kind == "rejection":
            return self._home.outbox / f"{case}-{REJECTED}"
        who = self._store.released(case) if self._rule.release == "after_review" else None
        if who is None and self._rule.release != "unreviewed":
            raise RefusedError(NEVER)
        if who is None and not tracked(self._store, case, PLANNED):
            return before
        how = MATCHED if who is None else ACCEPTED
        folder = self._home.outbox / f"{case}-{how}"
        if not folder.is_dir():
            self._known(before)
            objects.place(made(self._store, self._home, case, how) or (), folder)
        return folder

    def _as_sent(self) -> list[Path]:
        """The very objects that the ledger says were sent, whatever the rule and the outbox have become."""
        sent = self._store.sent(self.row.case, self.row.destination, self.row.kind)
        found = {}
        for folder in self._home.returned(self.row.case):
            for path in sorted(folder.glob("*.dcm")):
                with suppress(NotReturnableError):
                    found[objects.label(path).instance] = path
        if not sent or not sent <= found.keys():
            raise NotReturnableError(GONE)
        return sorted(found[instance] for instance in sent)

    def _another_patient(self, ours: Label) -> str:
        """Why the study there must not get these objects; "" when it may. Names no value."""
        there = self._pacs.person(ours.study_uid)
        if there is None:
            return "the study is not there"
        different = Person(*ours.patient).differs(there)
        return f"the study there is somebody else's: another {', '.join(different)}" if different else ""

    def _send(self, files: Sequence[Path], labels: Mapping[str, Label]) -> None:
        self.row = self._store.trying(self.row)
        outcomes = self._pacs.store(files)
        bad = [o for o in outcomes if not o.stored]
        warnings = _words([o for o in outcomes if o.warned])
        if not bad:
            sent = {labels[p.name].instance: _digest(p) for p in files}
            self.row = self._store.move(self.row, State.SENT, self._clock(), "", warnings, sent)
            return
        state = State.QUEUED if all(o.again for o in bad) else State.FAILED
        why = f"{len(bad)} of {len(files)} objects were not taken ({_words(bad)})"
        self.row = self._store.move(self.row, state, self._clock(), why, warnings)

    def _confirm(self, files: Sequence[Path], labels: Mapping[str, Label]) -> None:
        """By storage commitment where it is offered, else by asking for each object."""
        committed = self._pacs.committed(files)
        if committed is None:
            committed = frozenset(
                name for name, label in labels.items()
                if label.instance in self._pacs.holds(label.study_uid, label.series_uid)
            )  # fmt: skip
        missing = [path.name for path in files if path.name not in committed]
        if missing:
            self._move(State.QUEUED, f"taken, but not there: {', '.join(missing)}; they are sent again")
        else:
            self._move(State.CONFIRMED, "")

    def _move(self, state: State, why: str) -> None:
        self.row = self._store.move(self.row, state, self._clock(), why)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _words(outcomes: Sequence[Outcome]) -> str:
    return ", ".join(f"{o.name}: {o.status}" for o in outcomes)
