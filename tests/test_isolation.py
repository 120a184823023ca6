"""Work in processes that may be killed: what a hang, a crash or a flood costs, and that it costs no more."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medrec.dicom import isolation
from medrec.errors import WorldError


def run(function, *arguments, seconds=20.0):  # type: ignore[no-untyped-def]
    return isolation.result(isolation.start(function, *arguments, seconds=seconds))


def crash() -> None:
    ctypes.string_at(0)  # reads from nowhere: what a decoder in C does with a crafted file


def hang_in_c(*_: object) -> None:
    ctypes.CDLL(None).pause()  # comes back for no signal that Python would handle


def flood() -> int:
    return len(bytearray(2 * isolation.MEMORY_BYTES))


def chatter() -> int:
    print("DOE^JANE")
    os.write(2, b"DOE^JANE")
    return 1


def test_work_comes_back_with_its_value_or_its_exception() -> None:
    assert run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        run(divmod, 7, 0)


def test_a_hang_ends_when_its_time_is_up() -> None:
    started = time.monotonic()
    with pytest.raises(isolation.Lost, match="longer"):
        run(hang_in_c, seconds=0.5)
    assert time.monotonic() - started < 20
    assert run(divmod, 7, 2) == (3, 1)


def test_a_crash_costs_one_process() -> None:
    with pytest.raises(isolation.Lost, match="did not survive"):
        run(crash)
    assert run(divmod, 7, 2) == (3, 1)


def test_too_much_memory_is_an_error_and_no_flood() -> None:
    with pytest.raises(MemoryError):
        run(flood)
    assert run(divmod, 7, 2) == (3, 1)


def test_many_at_once_each_get_their_own_answer() -> None:
    futures = [isolation.start(pow, n, 2, seconds=20.0) for n in range(50)]
    assert [isolation.result(f) for f in futures] == [n * n for n in range(50)]


def test_what_a_library_prints_reaches_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(chatter) == 1
    assert capfd.readouterr() == ("", "")


SCRIPT = """
import sys, time
from medrec.dicom import isolation
pid = isolation.result(isolation.start(__import__("os").getpid, seconds=20.0))
print(pid, flush=True)
time.sleep(60)
"""


def test_a_program_needs_no_guard_and_its_workers_end_when_it_is_killed() -> None:
    """The script has no `if __name__ == "__main__"`: workers must not run it again."""
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    os.kill(worker, 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(200):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")


SMALL = """
from medrec.dicom import isolation
print(isolation.result(isolation.start(divmod, 7, 2, seconds=20.0)))
"""


def python(script: str, folder: Path, *, memory_bytes: int | None = None) -> str:
    """What a script prints that is started in a folder, under a limit on its memory."""

    def confine() -> None:
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, preexec_fn=confine, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_is_imported_from_the_folder_in_which_we_are_started(tmp_path: Path) -> None:
    for name in ("pickle", "numpy", "pydicom"):
        (tmp_path / f"{name}.py").write_text("open('owned', 'w')")
    assert python(SMALL, tmp_path) == "(3, 1)"
    assert not (tmp_path / "owned").exists()


def test_a_lower_limit_from_outside_is_kept(tmp_path: Path) -> None:
    assert python(SMALL, tmp_path, memory_bytes=isolation.MEMORY_BYTES // 2) == "(3, 1)"


def test_a_worker_that_cannot_start_is_no_fault_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    isolation.abandon()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(WorldError, match="cannot be started"):
        run(divmod, 7, 2)


def test_what_is_given_up_ends_at_once() -> None:
    future = isolation.start(hang_in_c, seconds=60.0)
    time.sleep(0.5)
    started = time.monotonic()
    isolation.abandon()
    with pytest.raises(isolation.Lost):
        isolation.result(future)
    assert time.monotonic() - started < 10
    assert run(divmod, 7, 2) == (3, 1)
