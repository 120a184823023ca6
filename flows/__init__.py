"""The only place that knows Prefect: thin flows over `medrec.night` and `medrec.retraining`.

Importing this package does not import Prefect; `run_nightly` and `run_retrain` first tell it, through its environment,
to keep everything in the home, to call nobody and to keep quiet on the console. A night that finds nothing new to do
never starts it.
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from flows.server import Server
from medrec import notices, shadow
from medrec.accounts import Summary
from medrec.config import Configuration
from medrec.errors import MedrecError
from medrec.home import Home
from medrec.night import Night, Request

if TYPE_CHECKING:  # torch and MONAI take seconds, which a night with nothing to do has not to give
    from medrec import retraining

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("files" or "studies"), how many are done, and how many there are."""

_SERVERS: dict[str, Server] = {}


def run_nightly(request: Request, progress: Progress) -> Summary:
    """Run one night as a Prefect flow: on the server that PREFECT_API_URL names, else on one of its own.

    Raises ConfigError, AlreadyRunningError and WorldError.
    """
    request.home.create()
    settings = request.configuration.settings
    try:
        with Night(request) as night, told_to_stop(night):
            summary = _night(night, request, progress)
            if wrong := shadow.after_night(*_studied(night), night.is_over):
                summary = replace(summary, warnings=(*summary.warnings, *wrong))
            now = datetime.now(UTC)
            told = notices.of_night(summary) + notices.of_silence(settings.schedule, night.newest_study(), now)
    except MedrecError as error:
        notices.send(settings.notify, None, notices.of_error(error))
        raise
    if untold := notices.send(settings.notify, summary.batch, told):
        summary = replace(summary, warnings=(*summary.warnings, untold))
    return summary


def _studied(night: Night) -> tuple[Home, Configuration, Path, str]:
    request = night.request
    return request.home, request.configuration, request.input, night.batch


def run_retrain(request: "retraining.Request", progress: Progress, tell: Callable[[str], None]) -> "retraining.Outcome":
    """Run one retraining as a Prefect flow; `tell` hears each line of its outcome when it is known."""
    request.home.create()
    from flows.retrain import run

    return run(request, lambda: embedded(request.home), progress, tell)


def _night(night: Night, request: Request, progress: Progress) -> Summary:
    night.scan(lambda done, total: progress("files", done, total))
    if night.has_work and request.configuration.settings.workers.shards:
        _share(night, progress)
    if night.has_work and night.is_over():
        without_prefect(night, progress)  # nothing is begun; what is left is counted
    elif night.has_work:
        server = embedded(request.home)  # it starts while the networks are loaded
        night.get_ready()
        night.prove()
        _lead(night, server, progress)
    return night.close()


def _share(night: Night, progress: Progress) -> None:
    """Have workers of a Prefect server work on the night; what they leave is for this one."""
    from medrec.shards import coordinate

    if not os.environ.get("PREFECT_API_URL"):
        night.warn("workers.shards needs PREFECT_API_URL, a Prefect server with workers; the night is done alone")
        return
    try:
        from flows.sharded import start

        coordinate(night, start, lambda done, total: progress("studies", done, total))
    except Exception as error:  # no such deployment, or the server is away
        night.warn(f"Prefect could not share the night ({type(error).__name__}); what is left is done alone")


def _lead(night: Night, server: Server | None, progress: Progress) -> None:
    try:
        from flows.nightly import run  # seconds, in which the server goes on starting

        if server is not None:
            server.wait()
        run(night, server.url if server is not None else None, progress)
    except Exception as error:  # Prefect's server did not start or went away: the night goes on without it
        night.warn(f"Prefect could not run the night ({type(error).__name__}); it went on without")
        without_prefect(night, progress)


def without_prefect(night: Night, progress: Progress) -> None:
    """Whatever of the night is not done yet."""
    from concurrent.futures import ThreadPoolExecutor

    from medrec.pace import AT_ONCE

    with ThreadPoolExecutor(AT_ONCE, "study") as threads:
        night.lead(lambda p: threads.submit(night.analyse, p), lambda done, total: progress("studies", done, total))


def embedded(home: Home) -> Server | None:
    """The server of this process over a home, begun if need be; None where PREFECT_API_URL names another."""
    for name, value in environment(home).items():
        os.environ.setdefault(name, value)
    if os.environ.get("PREFECT_API_URL"):
        return None
    key = str(home.root)
    if key not in _SERVERS:
        _SERVERS[key] = Server(environment(home), home.prefect / "server.log")
        atexit.register(_SERVERS[key].stop)  # not before: Prefect sends what it has to tell while Python ends
    return _SERVERS[key]


@contextmanager
def told_to_stop(night: Night) -> Iterator[None]:
    """SIGTERM lets the night finish the studies in hand and end in order; the others wait for the next."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        night.stop("medrec was told to stop")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def environment(home: Home) -> dict[str, str]:
    """What Prefect is told, here and in its server."""
    return {
        "PREFECT_HOME": str(home.prefect),
        "DO_NOT_TRACK": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        # Prefect logs errors with tracebacks, its server also while it shuts down; ours are told in words.
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
        "PREFECT_CLI_PROMPT": "false",
    }
