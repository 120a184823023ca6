"""Processes that may be killed: where headers are parsed and pixels decoded.

A crafted file can hang a parser, crash a decoder written in C or fill the memory. Here that costs one process, not the
night: `result` raises `Lost` when the work took longer than it may, or its process died. Not the standard library's
pools, because one dead worker breaks all of them, and their processes run the caller's own program again.

Invariants: workers are started when they are first needed and used by this process only; one holds at most
`MEMORY_BYTES`; it ends itself when its work takes too long, and when the process that started it is gone.
"""

import atexit
import os
import pickle
import queue
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, TypeVar

T = TypeVar("T")

# Address space, of which an idle worker uses 1 GiB: enough for the largest file that is read and what it expands to.
MEMORY_BYTES = 12 * 2**30
WORKERS = os.cpu_count() or 1
_SIZE = struct.Struct("<Q")


class Lost(Exception):  # noqa: N818  (what became of the work, not a kind of error that reaches people)
    """The process that worked on a file died; `why` is a phrase for people."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


def start(function: Callable[..., T], *arguments: object, seconds: float) -> "Future[T]":
    """Begin work in another process, which ends itself after `seconds` of it."""
    return _pool().threads.submit(_pool().run, function, arguments, seconds)


def result(future: "Future[T]") -> T:
    """What the work came to, or its exception. Raises Lost when its process did not survive it."""
    return future.result()


class _Worker:
    """One process, which does one thing at a time."""

    def __init__(self) -> None:
        # The same packages as here, whatever this process was started with; nothing of ours reaches its output.
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from medrec.dicom.isolation import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, function: Callable[..., T], arguments: tuple[object, ...], seconds: float) -> T:
        """Raises Lost; the worker is of no use any more then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, (function, arguments, seconds))
            done, value = _receive(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise Lost(self._epitaph()) from None
        if not done:
            raise value
        return value  # type: ignore[no-any-return]

    def end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()

    def _epitaph(self) -> str:
        self._process.kill()
        late = self._process.wait() == -signal.SIGALRM
        return "it took longer than a file may" if late else "the process that read it did not survive it"


class _Pool:
    """As many workers as there are cores; each is made when none is idle."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(WORKERS, "isolation")
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()

    def run(self, function: Callable[..., T], arguments: tuple[object, ...], seconds: float) -> T:
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker()
        try:
            value = worker.run(function, arguments, seconds)
        except Lost:
            worker.end()
            raise
        except BaseException:
            self._idle.put(worker)
            raise
        self._idle.put(worker)
        return value

    def end(self) -> None:
        self.threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get_nowait().end()


_lock = threading.Lock()
_pools: dict[int, _Pool] = {}


def _pool() -> _Pool:
    with _lock:
        pid = os.getpid()
        if pid not in _pools:  # after a fork the parent's workers are not ours
            _pools.clear()
            _pools[pid] = _Pool()
            atexit.register(_pools[pid].end)
        return _pools[pid]


def serve() -> None:
    """What a worker does: one thing after the other, until nobody asks any more."""
    asked, answered = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for the process that asks
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also within C code
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            function, arguments, seconds = _receive(asked)
        except (EOFError, OSError):
            return
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            answer: tuple[bool, Any] = (True, function(*arguments))
        except Exception as error:
            answer = (False, error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            _send(answered, answer)
        except OSError:
            return


def _send(stream: IO[bytes], message: object) -> None:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(_SIZE.pack(len(data)))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    (size,) = _SIZE.unpack(_exactly(stream, _SIZE.size))
    return pickle.loads(_exactly(stream, size))


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data
