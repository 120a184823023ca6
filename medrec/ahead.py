"""Studies of single images prepared beside the work on those before them: decoding and the search for text take longer
than the networks.

Owns `Ahead`. Invariants: no more than `STUDIES` lie ready at a time; a study that failed to be prepared fails where it
is asked for, and may be asked for again.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from medrec.pipeline import AnyPrepared, Planned

STUDIES = 4


class Ahead:
    """Prepares what `waiting` yields, in this order, by `prepare`; `take` hands it out."""

    def __init__(self, waiting: Iterable[Planned], prepare: Callable[[Planned], AnyPrepared]) -> None:
        self._waiting = iter(waiting)
        self._prepare = prepare
        self._threads = ThreadPoolExecutor(2, "ahead")
        self._under_way: dict[str, Future[AnyPrepared]] = {}

    def take(self, planned: Planned) -> AnyPrepared:
        """A study, prepared; one that nobody announced, or that was handed out before, is prepared here and now."""
        while len(self._under_way) < STUDIES and (following := next(self._waiting, None)) is not None:
            self._under_way[following.case] = self._threads.submit(self._prepare, following)
        future = self._under_way.pop(planned.case, None)
        return self._prepare(planned) if future is None else future.result()

    def close(self) -> None:
        """Let go of what was not asked for."""
        self._threads.shutdown(cancel_futures=True)
