"""README's way from nothing to a scheduled night, and to several workers, command by command, as it stands there.

Only names of places and times are put in. Of the workers one is killed with -9 in the middle.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from test_chaos import check
from tiny import ready_home, tiny_folder, tiny_studies

from medrec.home import Home
from medrec.store import Store

pytest_plugins = ["postgres"]
ROOT = Path(__file__).parent.parent
SLOTS = ("gpu-a-0", "gpu-b-0")
PATIENCE_S = 600.0  # a limit for what hangs; a busy machine needs minutes


def blocks() -> list[list[str]]:
    """The commands of each block of the section."""
    section = (ROOT / "README.md").read_text().partition("## Every night by itself\n")[2].partition("\n## ")[0]
    return [block.strip().splitlines() for block in section.split("```")[1::2]]


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Shell:
    """A shell that runs a README's commands, and what they leave running; all of it ends with it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.log = folder / "shell.log"
        binaries = str(Path(sys.executable).parent)
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MEDREC", "PYTEST"))}
        self._process = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            start_new_session=True,
            env={**outside, "PATH": f"{binaries}:{outside['PATH']}", "OMP_NUM_THREADS": "1", **environment},
        )

    def run(self, *lines: str) -> None:
        """Run lines, and wait until the shell has come to the end of them; each must succeed."""
        assert self._process.stdin is not None
        told = self.log.with_suffix(".done")
        told.unlink(missing_ok=True)
        # The last command in front of `&` is 0 at once.
        self._process.stdin.write("\n".join(lines) + f"\necho $? > {told}\n")
        self._process.stdin.flush()
        until(lambda: told.exists() and told.read_text().strip() != "", lambda: f"{lines[-1]}: {self.told()}")
        assert told.read_text().strip() == "0", f"{lines}: {self.told()}"

    def told(self) -> str:
        """The end of what was said."""
        return self.log.read_text()[-3000:]

    def end(self) -> None:
        """End the shell and everything that it began."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in marked(str(self.log)):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            time.sleep(2)
        self._process.wait()


def marked(mark: str) -> list[int]:
    """Processes whose environment holds a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def until(holds: Callable[[], object], what: Callable[[], str], within_s: float = PATIENCE_S) -> None:
    """Wait for a fact; `what` says which when it does not come."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not within {within_s:.0f} s: {what()}"
        time.sleep(0.1)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, MEDREC_TEST=str(tmp_path / "shell.log"))
    yield shell
    shell.end()


def put_in(lines: list[str], places: dict[str, str]) -> list[str]:
    """README's commands with places of ours; every place must be there to be replaced."""
    text = "\n".join(re.sub(r"\s{3,}#.*$", "", line) for line in lines)
    for name, ours in places.items():
        assert name in text, f"README no longer says {name}"
        text = text.replace(name, ours)
    return text.splitlines()


@pytest.mark.slow
def test_readmes_commands_lead_to_a_scheduled_night_on_one_machine(shell: Shell, tmp_path: Path) -> None:
    tiny_folder(tmp_path / "own")
    (tmp_path / "own" / "medrec.yaml").unlink()
    tiny_studies(tmp_path / "in", 2)
    home = ready_home(tmp_path / "home").root
    before = set((home / "batches").iterdir())
    places = {
        "/etc/medrec": str(tmp_path / "own"),
        "/archive/incoming": str(tmp_path / "in"),
        "0 20 * * *": "* * * * *",
    }
    places |= {"/srv/medrec": str(home), "quiet_days: 2": "quiet_days: 2, late_minutes: 5"}
    places |= {
        "https://chat.hospital/hooks/medrec": "http://127.0.0.1:9/",
        "medrec serve": f"medrec serve --port {free_port()}",
    }
    commands = put_in(blocks()[0], places)
    serving = next(n for n, line in enumerate(commands) if "serve" in line)
    end_of_file = commands.index("END")
    commands.insert(end_of_file, "models: [tiny]")
    shell.run(*commands[: serving + 2])
    until(lambda: set((home / "batches").glob("*.json")) - before, lambda: f"a night: {shell.told()}")
    shell.run(*commands[serving + 2 :])
    with Home(home).lock(patience_s=PATIENCE_S):  # a night still writes after its summary
        check(home, 2)


@pytest.mark.slow
def test_sigterm_lets_a_night_in_prefect_end_in_order(tmp_path: Path) -> None:
    own = tiny_folder(tmp_path / "own")
    tiny_studies(tmp_path / "in", 30)
    home = ready_home(tmp_path / "home").root
    command = [str(Path(sys.executable).parent / "medrec"), "nightly", "--input", str(tmp_path / "in"), "--json"]
    command += ["--home", str(home), "--config", str(own)]
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MEDREC"))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=outside) as night:
        until(lambda: list(home.glob("reports/*/report.json")) or night.poll() is not None, lambda: "a first report")
        night.terminate()
        told, complaints = night.communicate(timeout=PATIENCE_S)
    assert night.returncode == 0, complaints
    summary = json.loads(told)
    counted = [c["status"] for c in summary["cases"]]
    assert set(counted) == {"analysed", "waiting"}
    assert counted.count("waiting") >= 10
    assert not any("Prefect could not run" in w for w in summary["warnings"])
    assert marked(str(home / "prefect")) == []
    check(home, counted.count("analysed"))


@pytest.mark.slow
def test_readmes_commands_lead_to_several_workers_and_one_that_is_killed_loses_no_study(
    shell: Shell, tmp_path: Path, postgresql: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from postgres import SUPERUSER  # a plug-in: pytest imports it first

    studies, port = 12, free_port()
    cluster = parse_qs(urlsplit(postgresql()).query)["host"][0]
    store_url = f"postgresql+psycopg://medrec@/medrec?host={cluster}"
    own = tiny_folder(tmp_path / "own", schedule={"cron": "0 20 * * *", "input": str(tmp_path / "in")})
    tiny_studies(tmp_path / "in", studies)
    monkeypatch.setenv("MEDREC_STORE", store_url)
    home = tmp_path / "home"
    places = {"/shared/medrec": str(home), "/etc/medrec": str(own)}
    places |= {f"@database.hospital/{name}": f"@/{name}?host={cluster}" for name in ("medrec", "prefect")}
    places |= {"prefect.hospital:4200": f"127.0.0.1:{port}", "--host 0.0.0.0": f"--host 127.0.0.1 --port {port}"}
    places |= {"{shards: 2}": "{shards: 2, lease_s: 5, patience_s: 240}", "MEDREC_DEVICE=cuda:0": "MEDREC_DEVICE=cpu"}
    commands = put_in(blocks()[1], places)
    server = next(n for n, line in enumerate(commands) if "server start" in line)
    shell.run(f"export DO_NOT_TRACK=true PREFECT_HOME={tmp_path / 'prefect'} PREFECT_SERVER_ANALYTICS_ENABLED=false")
    shell.run(f"export PGHOST={cluster} PGUSER={SUPERUSER}")
    shell.run(*commands[: server + 1])
    url = f"http://127.0.0.1:{port}/api"
    until(lambda: answers(url), lambda: f"Prefect's server: {shell.told()}")
    for command in commands[server + 1 :]:
        shell.run(command)
    until(home.is_dir, lambda: f"the nightly run: {shell.told()}")
    with Store.open(store_url) as store:
        until(lambda: at_work(store), lambda: f"a worker at work: {shell.told()}")
        killed = next(iter(at_work(store)), SLOTS[0])
        for pid in marked(f"MEDREC_SLOT={killed}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: any(b.summary for b in store.batches()), lambda: f"the night's end: {shell.told()}")
        (batch,) = store.batches()
        summary = json.loads(batch.summary or "")
    assert [c["status"] for c in summary["cases"]] == ["analysed"] * studies
    assert summary["stages"]["predict"] > 0
    assert summary["warnings"] == []
    with Home(home).lock(patience_s=PATIENCE_S):  # the night still writes after its summary
        check(home, studies)
    until(
        lambda: slots(url) == dict.fromkeys(SLOTS, 0),
        lambda: f"the slot of the worker that died is free: {shell.told()}",
    )


def answers(url: str) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])), 1):
        return True
    return False


def at_work(store: Store) -> list[str]:
    """The slots whose workers are on a case."""
    held = {worker.rpartition("-")[0].rpartition("-")[2] for worker in store.claims("").values() if "/" in worker}
    return [slot for slot in SLOTS if {str(pid) for pid in marked(f"MEDREC_SLOT={slot}")} & held]


def slots(url: str) -> dict[str, int]:
    from prefect.client.orchestration import PrefectClient

    async def ask() -> dict[str, int]:
        async with PrefectClient(url) as client:
            return {limit.name: limit.active_slots for limit in await client.read_global_concurrency_limits()}

    return asyncio.run(ask())
