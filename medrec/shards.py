"""A night shared by several workers: one coordinates and tells MLflow, the others take cases, and no case is lost.

Owns `Shared` (what the workers are told, a file of the home), `Shard` (a worker's part) and `coordinate`. Every worker
has the home's folder and the store (PostgreSQL) before it. It finds in the home's index what the coordinator read, so
that it plans the same cases without reading them again, and takes those that nobody has: its own share first, then the
others'. Invariants: a case is claimed before it is worked on; only the coordinator writes the batch's end and MLflow;
cases whose worker died are taken by another one, at last by the coordinator itself.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from medrec.accounts import CaseLine
from medrec.config import Configuration
from medrec.disk import replace_file
from medrec.errors import DataError
from medrec.home import Home
from medrec.leases import Leases
from medrec.night import HELD, Night, Request
from medrec.pace import Window
from medrec.planning import Planned
from medrec.store import Store

LOOK_EVERY_S = 2.0

Start = Callable[[str, int, int], None]
"""Called with a batch, the number of a shard (from 0), and how many there are: begins it somewhere."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What workers must know of a night beside the configuration; gone when they shall begin no more studies."""

    input: str
    configuration: str
    reanalyse: bool
    until: str | None
    only: tuple[tuple[str, str], ...] | None

    @classmethod
    def of(cls, request: Request) -> "Shared":
        """Of a night that a coordinator holds."""
        return cls(
            input=str(request.input.absolute()),
            configuration=request.configuration.sha256,
            reanalyse=request.reanalyse,
            until=request.window.until.isoformat() if request.window is not None else None,
            only=tuple(sorted(request.only)) if request.only is not None else None,
        )

    def request(self, home: Home, configuration: Configuration) -> Request:
        """The same night for a worker, with the configuration that it was given."""
        return Request(
            Path(self.input),
            home,
            configuration,
            self.reanalyse,
            window=Window(datetime.fromisoformat(self.until)) if self.until is not None else None,
            only=frozenset(self.only) if self.only is not None else None,
        )


def place(home: Home, batch: str) -> Path:
    """Where a night's `Shared` lies; it names the input, and so is private and goes with the night."""
    return home.batches / f".{batch}.shared"


def read(home: Home, batch: str) -> Shared:
    """What a coordinator wrote. Raises DataError when its night is over."""
    try:
        facts = json.loads(place(home, batch).read_text())
    except (OSError, ValueError):
        raise DataError(f"night {batch} is over, or this home is not its home") from None
    only = facts.pop("only")
    return Shared(**facts, only=None if only is None else tuple((str(s), str(m)) for s, m in only))


class Shard(Night):
    """A worker's part of a night that somebody else coordinates: no lock, no MLflow, no end of its own."""

    def __init__(self, home: Home, configuration: Configuration, batch: str, number: int, of: int) -> None:
        """Raises DataError when the night is over."""
        self._shared = read(home, batch)
        super().__init__(self._shared.request(home, configuration))
        self.batch = batch
        self.number, self._of = number, of

    def _hold(self, held: ExitStack) -> None:
        """The coordinator holds the home."""

    def _open(self) -> None:
        self._store = Store.open(self._request.home.store_url)
        self._take_what_is_in_force()
        request = self._request
        if request.configuration.sha256 != self._shared.configuration:
            raise DataError("this worker's configuration or cards are not those of the night; give it the same folder")
        name = f"{request.home.worker}/{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._leases = Leases(self._store, name, request.configuration.settings.workers.lease)
        self._read_from()

    def told(self) -> str:
        """What it did, in a few words."""
        return self.summary().outcome

    def _analyse(self, planned: Planned) -> CaseLine:
        """Leave the seconds by stage for the coordinator while the case is held: it waits until none is."""
        line = super()._analyse(planned)
        with self._noting:
            replace_file(_seconds_of(self), json.dumps(self.pace.seconds).encode())
        return line

    def pending(self) -> Iterator[Planned]:
        """Its own share first, then what the others have not come to; none once the night is over."""
        patients: dict[str, list[Planned]] = {}
        for planned in self.planned:  # each patient's studies in their order: a later one is compared with an earlier
            patients.setdefault(planned.patient, []).append(planned)
        own = [p for n, p in enumerate(patients.values()) if n % self._of == self.number]
        others = [p for n, p in enumerate(patients.values()) if n % self._of != self.number]
        # From the far end: the others come from the near one.
        self.planned = tuple(p for studies in (*own, *reversed(others)) for p in studies)
        while True:
            for planned in super().pending():
                if not place(self._request.home, self.batch).exists():
                    self.stop("the night is over")
                    return
                yield planned
            if self.is_over() or not self._let_go():
                return

    def _let_go(self) -> bool:
        """Whether cases that others held are to be tried again: finished by them, or left by one that died."""
        held = [case for case, line in list(self._lines.items()) if line.reason == HELD]
        for case in held:
            del self._lines[case]
        if held:
            time.sleep(LOOK_EVERY_S)
        return bool(held)


def coordinate(night: Night, start: Start, progress: Callable[[int, int], None]) -> None:
    """Share a scanned night among workers, and bring to MLflow what they finish.

    Returns when every case is finished and let go of, when the night was stopped or its window closed, or when nobody
    has worked for the configured patience: `Night.lead` is for what is left then.
    """
    settings = night.request.configuration.settings.workers
    shared = place(night.request.home, night.batch)
    replace_file(shared, json.dumps(asdict(Shared.of(night.request))).encode())
    try:
        for number in range(settings.shards):
            start(night.batch, number, settings.shards)
        _watch(night, settings.patience_s, progress)
    finally:
        shared.unlink(missing_ok=True)
        for path in night.request.home.batches.glob(f".{night.batch}.*.seconds"):
            with suppress(OSError, ValueError):
                night.pace.add(json.loads(path.read_text()))
            path.unlink(missing_ok=True)


def _seconds_of(shard: Shard) -> Path:
    return shard.request.home.batches / f".{shard.batch}.{shard.number}.seconds"


def _watch(night: Night, patience_s: float, progress: Callable[[int, int], None]) -> None:
    left, last = len(night.planned) + 1, time.monotonic()
    while True:
        at_work = night.others_at_work()  # before looking: what they finish in between is seen
        now = night.collect()
        progress(len(night.planned) - now, len(night.planned))
        if now < left or at_work:
            left, last = now, time.monotonic()
        ending = night.is_over()
        if (not now or ending) and not at_work:
            return
        if time.monotonic() - last > patience_s:
            night.warn(f"no worker was at it for {patience_s:g} s; the {now} studies that are left are done alone")
            return
        time.sleep(LOOK_EVERY_S)
