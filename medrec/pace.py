"""How several studies share one night: each stage works on one study at a time, and its seconds are counted.

Owns `Pace`, its stages, and `Window`, the hours in which a night may begin a study. While one study is predicted, the
next is decoded and the last is written: three are in work, and no more, so that memory does not grow with their number.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Any, Protocol, TypeVar

STAGES = ("prepare", "predict", "finish", "deliver")
AT_ONCE = 3  # studies in work: one prepared, one predicted, one finished and delivered

T = TypeVar("T")


class Begun(Protocol):
    """Work that somebody else does: a future of the standard library, or Prefect's."""

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Have `fn` called when it is done."""

    def result(self) -> Any:
        """What came of it, or its exception."""


class Pace:
    """Turns at the stages; many threads use one."""

    def __init__(self) -> None:
        self._turns = {stage: threading.Lock() for stage in STAGES}
        self._seconds = dict.fromkeys(STAGES, 0.0)

    def visit(self) -> "Visit":
        """A study's way through the stages."""
        return Visit(self)

    @contextmanager
    def _turn(self, stage: str, visit: "Visit") -> Iterator[None]:
        with self._turns[stage]:
            started = time.monotonic()
            try:
                yield
            finally:
                spent = time.monotonic() - started
                self._seconds[stage] += spent
                visit.seconds += spent

    def add(self, seconds: Mapping[str, float]) -> None:
        """What other workers spent in the stages."""
        for stage in STAGES:
            self._seconds[stage] += float(seconds.get(stage, 0.0))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage so far; they overlap, so that their sum may exceed the night's."""
        return {stage: round(spent, 3) for stage, spent in self._seconds.items()}


@dataclass(slots=True)
class Visit:
    """One study's way through the stages; `seconds` is what it took, waiting for its turns left out."""

    pace: Pace
    seconds: float = 0.0

    def turn(self, stage: str) -> AbstractContextManager[None]:
        """Wait until no other study is at this stage; the seconds spent in it are counted."""
        return self.pace._turn(stage, self)


def several(items: Iterator[T], begin: Callable[[T], Begun]) -> Iterator[tuple[T, Begun]]:
    """Begin work on items, `AT_ONCE` of them at a time, and yield each when it is done.

    An item is asked for only when there is room for it.
    """
    done: queue.SimpleQueue[tuple[T, Begun]] = queue.SimpleQueue()
    under_way, more = 0, True
    while True:
        while more and under_way < AT_ONCE:
            try:
                item = next(items)
            except StopIteration:
                more = False
                break
            begun = begin(item)
            begun.add_done_callback(partial(_put, done, (item, begun)))
            under_way += 1
        if not under_way:
            return
        yield done.get()
        under_way -= 1


def _put(done: "queue.SimpleQueue[tuple[T, Begun]]", pair: tuple[T, Begun], _: object) -> None:
    done.put(pair)


def slowest(seconds: dict[str, float]) -> str:
    """The stage that took longest with the share of each, in words; "" when nothing was done."""
    total = sum(seconds.values())
    if not total:
        return ""
    stage = max(seconds, key=lambda name: seconds[name])
    shares = ", ".join(f"{name} {100 * spent / total:.0f}%" for name, spent in seconds.items())
    return f"slowest stage: {stage} ({shares} of {total:.0f} s)"


@dataclass(frozen=True, slots=True)
class Window:
    """The end of a night's window; no study is begun after it."""

    until: datetime

    @classmethod
    def closing_at(cls, clock: str, now: datetime, zone: tzinfo | None = None) -> "Window":
        """The window that closes when clocks in `zone` next show `clock` ("06:00"); None is the machine's own zone.

        Raises ValueError for what is no time of day.
        """
        hours = datetime.strptime(clock, "%H:%M")
        wall = now.astimezone(zone).replace(tzinfo=None)  # as clocks on the wall show it, across changes of summer time
        end = wall.replace(hour=hours.hour, minute=hours.minute, second=0, microsecond=0)
        end = end if end > wall else end + timedelta(days=1)
        return cls(end.replace(tzinfo=zone).astimezone(UTC))

    def closed(self, now: datetime) -> bool:
        """Whether it is over."""
        return now >= self.until
