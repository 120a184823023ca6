"""Nights that begin at once: a process that has imported everything forks one for each.

`python tests/forks.py` reads "INPUT HOME CONFIG" lines and answers with the process id of a night over them; that night
leads a session of its own, and writes its summary into `HOME/../summary.json` when it comes to its end. "wait PID"
answers with how it ended.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

STARTED_WITHIN_S = 120


class Forks:
    """The process that forks; a context manager."""

    def __enter__(self) -> "Forks":
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        assert self._ask("") == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def night(self, folder: Path, home: Path, own: Path) -> int:
        """The process id of a night that begins now."""
        return int(self._ask(f"{folder}\t{home}\t{own}"))

    def ended(self, pid: int) -> int:
        """Wait for it; its exit code, negative for a signal."""
        return int(self._ask(f"wait\t{pid}"))

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


def left_in_session(leader: int, within_s: float = 10.0) -> list[int]:
    """Processes of a session that are still there after a while."""
    end = time.monotonic() + within_s
    while True:
        left = [pid for pid in _processes() if _session(pid) == leader]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.05)


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _session(pid: int) -> int:
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except (OSError, ValueError):
        return 0
    return 0 if state == "Z" else int(session)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Serve until nobody asks any more."""
    _warm()
    assert threading.active_count() == 1, "a process with threads must not fork"
    for line in sys.stdin:
        words = line.rstrip("\n").split("\t")
        if words == [""]:
            print("ready", flush=True)
        elif words[0] == "wait":
            _, status = os.waitpid(int(words[1]), 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        else:
            pid = os.fork()
            if pid == 0:
                _night(*map(Path, words))
            print(pid, flush=True)


def _warm() -> None:
    """Import and prepare what every night needs, once for all of them."""
    import alembic.command  # noqa: F401
    from mlflow.store.tracking import sqlalchemy_store  # noqa: F401
    from sqlalchemy.orm import configure_mappers

    import flows  # noqa: F401
    from medrec import night  # noqa: F401
    from medrec.models import inference  # noqa: F401
    from medrec.outputs import html

    configure_mappers()
    for nominal in (False, True):
        html.environment(nominal).get_template("report.html.j2")


def _night(folder: Path, home: Path, own: Path) -> None:
    code = 70
    try:
        os.setsid()
        os.close(0)
        os.dup2(2, 1)
        import flows
        from medrec import config
        from medrec.home import Home
        from medrec.night import Night, Request

        os.umask(0o077)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        request = Request(folder, Home(home), config.load(own))
        with Night(request) as night, flows.told_to_stop(night):
            night.index()
            flows.without_prefect(night, lambda *_: None)
            (home.parent / "summary.json").write_text(night.close().to_json())
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
