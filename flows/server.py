"""Prefect's own server as a child process on 127.0.0.1, which ends with us, however we end.

Not Prefect's embedded server: that one outlives a parent that was killed, inherits its output and answers its signals.
This one reads from a pipe that only we hold: when the pipe closes, by our will or by our death, it ends. Signals that
reach our whole group do not end it before us: a night that was told to stop still finishes the study in hand.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from medrec.errors import WorldError

READY_WITHIN_S = 180.0  # a busy machine needs more than 20 s
ENDS_WITHIN_S = 10.0
PORT_TAKEN = 3  # what uvicorn exits with when it cannot begin


class Server:
    """Prefect's server over one PREFECT_HOME; begun at once, to be waited for when it is needed."""

    def __init__(self, environment: Mapping[str, str], log: Path, port: int = 0, *, scheduling: bool = False) -> None:
        """`scheduling` also runs what creates scheduled runs, and the web interface."""
        self._environment = dict(environment)
        self._log = log
        self._wanted = port
        self._scheduling = scheduling
        self._start()

    def _start(self) -> None:
        self.port = self._wanted or _free_port()
        command = "from flows.server import serve; serve()"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", command, str(self.port), "scheduling" if self._scheduling else ""],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    @property
    def url(self) -> str:
        """What PREFECT_API_URL is to be."""
        return f"http://127.0.0.1:{self.port}/api"

    def wait(self, seconds: float = READY_WITHIN_S) -> None:
        """Wait until it answers. Raises WorldError when it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            code = self._process.poll()
            if code == PORT_TAKEN and not self._wanted:
                self._start()
            elif code is not None:
                raise WorldError(f"Prefect's server ended while it started (exit {code}); see {self._log}")
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.1)
        raise WorldError(f"Prefect's server did not start within {seconds:.0f} s; see {self._log}")

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def serve() -> None:
    """What the child does: serve until the pipe to its parent closes."""
    port, scheduling = int(sys.argv[1]), sys.argv[2] == "scheduling"
    ended = threading.Event()
    threading.Thread(target=_watch, args=(ended,), daemon=True).start()  # first: imports take seconds
    os.environ["PREFECT_UI_ENABLED"] = "1" if scheduling else "0"
    if not scheduling:
        os.environ["PREFECT__SERVER_EPHEMERAL"] = "1"
    os.environ["PREFECT__SERVER_FINAL"] = "1"
    import uvicorn

    class Deaf(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:  # signals are for the process that started us
            yield

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        _ignore(name)
    configuration = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=port,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=2,
    )
    server = Deaf(configuration)

    def end() -> None:
        ended.wait()
        server.should_exit = True

    threading.Thread(target=end, daemon=True).start()
    server.run()
    sys.exit(0 if server.started else PORT_TAKEN)


def _watch(ended: threading.Event) -> None:
    """Wait for the pipe to close; a server that does not end by itself then is ended."""
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    ended.set()
    time.sleep(ENDS_WITHIN_S / 2)
    os._exit(0)


def _ignore(name: str) -> None:
    import signal

    if (number := getattr(signal, name, None)) is not None:
        signal.signal(number, signal.SIG_IGN)
