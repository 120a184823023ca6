"""A throw-away PostgreSQL for the tests: its own cluster in a temporary folder, reached by a Unix socket only.

`pytest_plugins = ["postgres"]` in a test module gives the fixture `postgresql`: a function that returns the
URL of an empty place. Skips, saying what is missing, where the server or psycopg is not installed.
"""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SUPERUSER = "postgres"


def _program(name: str) -> str | None:
    """Debian keeps the server's programs out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid()).pw_name
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in names), None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[[], str]]:
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    initdb, pg_ctl, user = _program("initdb"), _program("pg_ctl"), _unprivileged_user()
    if not (initdb and pg_ctl and user):
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="medrec-pg-"))  # a socket's path may have 107 characters at most
    other = {"user": user, "extra_groups": []} if os.geteuid() == 0 else {}
    if other:
        shutil.chown(folder, user)

    def run(*command: object) -> None:
        subprocess.run(
            [str(c) for c in command], check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=60, **other
        )

    data = folder / "data"
    run(initdb, "-D", data, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions")
    options = f"-c listen_addresses='' -c fsync=off -c max_connections=80 -k {folder}"
    run(pg_ctl, "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
    numbers = itertools.count()

    def place() -> str:
        # A login with a schema of its own name: PostgreSQL looks there first, and a database costs 900 files.
        name = f"medrec{next(numbers)}"
        with psycopg.connect(host=str(folder), user=SUPERUSER, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN")
            connection.execute(f"CREATE SCHEMA AUTHORIZATION {name}")
        return f"postgresql+psycopg://{name}@/postgres?host={folder}"

    try:
        yield place
    finally:
        run(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)
