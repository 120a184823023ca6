"""Which results may go where: the release rules of the destinations, applied to the cases in force."""

from pathlib import Path

from medrec.home import Home
from medrec.objects import REASON
from medrec.peers import Destination
from medrec.store import DeliveryRow, State, Store

NEVER = "its release is never"


def plan(store: Store, home: Home, destinations: tuple[Destination, ...], now: str) -> None:
    """Begin a delivery for every case in force that holds objects, and move those whose rule or case has changed."""
    rules = {d.peer: d for d in destinations}
    for row in store.deliveries(states=(State.REVIEW, State.QUEUED, State.HELD)):
        if row.kind == "results":
            _judge_again(store, row, rules.get(row.destination), now)
    for destination in destinations:
        if destination.release != "never":
            _begin(store, home, destination, now)


def _begin(store: Store, home: Home, destination: Destination, now: str) -> None:
    for case in store.undelivered(destination.peer):
        folder = home.outbox / case.case
        if not folder.is_dir() or case.finished_at < destination.since:
            continue
        why = _reason(folder)
        state = State.FAILED if why else _allowed(store, case.case, destination)
        store.enqueue(case.case, destination.peer, "results", state, now, why)


def _judge_again(store: Store, row: DeliveryRow, destination: Destination | None, now: str) -> None:
    case = store.case(row.case)
    if case is None or case.superseded_by is not None:
        store.move(row, State.WITHDRAWN, now, "a later case has taken its place")
    elif destination is None or destination.release == "never":
        if row.why != NEVER:
            store.move(row, State.HELD, now, NEVER)
    else:
        allowed = _allowed(store, row.case, destination)
        released = row.state is State.HELD and row.why == NEVER
        if (row.state is State.REVIEW or released or allowed is State.REVIEW) and allowed is not row.state:
            store.move(row, allowed, now)


def _allowed(store: Store, case: str, destination: Destination) -> State:
    if destination.release == "unreviewed" or store.released(case) is not None:
        return State.QUEUED
    return State.REVIEW


def _reason(folder: Path) -> str:
    """Why a case has no objects; "" where it has."""
    path = folder / REASON
    return path.read_text().strip() if path.is_file() else ""
