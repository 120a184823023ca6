"""How several studies share one night: each stage works on one study at a time, and its seconds are counted.

Owns `Pace`, its stages, and `Window`, the hours in which a night may begin a study. While one study is predicted, the
next is decoded and the last is written: three are in work, and no more, so that memory does not grow with their number.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

STAGES = ("prepare", "predict", "finish", "deliver")
AT_ONCE = 3  # studies in work: one prepared, one predicted, one finished and delivered


class Pace:
    """Turns at the stages; many threads use one."""

    def __init__(self) -> None:
        self._turns = {stage: threading.Lock() for stage in STAGES}
        self._seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def turn(self, stage: str) -> Iterator[None]:
        """Wait until no other study is at this stage, and count the seconds spent in it, waiting left out."""
        with self._turns[stage]:
            started = time.monotonic()
            try:
                yield
            finally:
                self._seconds[stage] += time.monotonic() - started

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage so far; they overlap, so that their sum may exceed the night's."""
        return {stage: round(spent, 3) for stage, spent in self._seconds.items()}


def slowest(seconds: dict[str, float]) -> str:
    """The stage that took longest with its share of all stages' seconds, in words; "" when nothing was done."""
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
    def closing_at(cls, clock: str, now: datetime) -> "Window":
        """The window that closes when the clock next shows `clock` ("06:00"), in the time zone of `now`.

        Raises ValueError for what is no time of day.
        """
        hours = datetime.strptime(clock, "%H:%M")
        until = now.replace(hour=hours.hour, minute=hours.minute, second=0, microsecond=0)
        return cls(until if until > now else until + timedelta(days=1))

    def closed(self, now: datetime) -> bool:
        """Whether it is over."""
        return now >= self.until
