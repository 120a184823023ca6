"""`medrec serve`: Prefect's server as a child, and a runner that starts what is due.

Everything is in the home: a restart finds schedules and runs again. Prefect's own limits on concurrency are not used,
because a run that was killed holds its place in them; the home's lock lets one night at a time work, and a late run
finds that another has begun since.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from flows import environment
from flows.server import Server
from medrec.config import Configuration
from medrec.errors import AlreadyRunningError, ConfigError
from medrec.home import Home

Say = Callable[[str], None]


def serve(home: Home, configuration: Configuration, folder: Path | None, port: int, say: Say) -> None:
    """Start nights by the schedule until SIGTERM or Ctrl+C. Raises ConfigError without a schedule."""
    schedule = configuration.settings.schedule
    if schedule is None:
        raise ConfigError(["medrec.yaml: schedule is not there: when nights begin"])
    home.create()
    lock = FileLock(home.root / "serve.lock", mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AlreadyRunningError(f"already running: another medrec serve schedules {home.root}") from None
    told = {**environment(home), "MEDREC_HOME": str(home.root)}
    told |= {"MEDREC_CONFIG": str(folder.absolute())} if folder is not None else {}
    os.environ.update(told)
    server = Server(told, home.prefect / "server.log", port, scheduling=True)
    try:
        server.wait()
        os.environ["PREFECT_API_URL"] = server.url
        due = schedule.next(datetime.now(UTC))
        say(f"nights begin at {schedule.cron!r} ({schedule.timezone}); next {due:%Y-%m-%d %H:%M} UTC")
        say(f"Prefect's pages are on http://127.0.0.1:{server.port} (SIGTERM or Ctrl+C ends all)")
        _run(configuration)
    finally:
        server.stop()
        lock.release()


def _run(configuration: Configuration) -> None:
    """Register every deployment and start what is due."""
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.runner import Runner
    from prefect.types.entrypoint import EntrypointType

    from flows.deployed import DEPLOYMENTS

    class Ending(Runner):
        """Lets runs that are under way end in order: a night finishes the studies in hand."""

        def handle_sigterm(self, *_: object, **__: object) -> None:
            if self._loop is not None:
                asyncio.run_coroutine_threadsafe(self.astop(), self._loop)

    async def run() -> None:
        runner = Ending(name="medrec", pause_on_shutdown=False, limit=len(DEPLOYMENTS), query_seconds=5)
        for name, deployment in DEPLOYMENTS.items():
            wanted = deployment.schedule(configuration.settings)
            cron = wanted.cron if wanted is not None else None
            schedules = [CronSchedule(cron=cron, timezone=wanted.timezone)] if wanted is not None and cron else []
            made = await deployment.flow.ato_deployment(
                name, schedules=schedules, entrypoint_type=EntrypointType.MODULE_PATH
            )
            await runner.aadd_deployment(made)
        await runner.start()

    before = signal.getsignal(signal.SIGTERM)
    try:
        asyncio.run(run())
    except (KeyboardInterrupt, SystemExit):
        pass  # the runner told its runs, and ended
    finally:
        signal.signal(signal.SIGTERM, before)
