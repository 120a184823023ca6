"""Reaching the store's database: SQLite or PostgreSQL, its schema, and its troubles in plain words.

Owns what differs between the two and how a schema comes up to date; knows no table. Trouble with the database is a
`WorldError` without values or SQL; a wrong URL, a missing driver or a schema of a newer medrec is a `ConfigError`.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine

from medrec.errors import ConfigError, WorldError

VERSION_TABLE = "medrec_schema"  # not alembic's own name, which MLflow and Prefect use in databases they may share
# Serialises first opens on PostgreSQL; any number that nobody else uses.
MIGRATION_LOCK = 0x6D656472

Connect = Callable[[], AbstractContextManager[Connection]]


def address_of(url: str) -> URL:
    """The URL of a SQLite file or a PostgreSQL database. Raises ConfigError for anything else."""
    try:
        address = sa.make_url(url)
    except exc.ArgumentError:
        raise ConfigError(["the store's URL cannot be read; wanted sqlite:///PATH or postgresql+psycopg://…"]) from None
    if address.drivername in {"postgresql", "postgres"}:
        address = address.set(drivername="postgresql+psycopg")
    if address.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        wanted = "wanted sqlite:///PATH or postgresql+psycopg://…"
        raise ConfigError([f"the store cannot live in {address.drivername}; {wanted}"])
    return address


def create_private(address: URL, place: str) -> None:
    """Make an empty file that only its owner reads; SQLite gives its companions the same mode."""
    path = address.database
    if address.get_backend_name() != "sqlite" or not path or path.startswith((":", "file:")):
        return
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass
    except OSError as e:
        raise WorldError(f"the store ({place}) cannot be created: {e.strerror}") from None


def engine_of(address: URL, wait_s: float) -> Engine:
    """An engine that waits `wait_s` seconds for others' locks. Raises ConfigError without psycopg."""
    sqlite = address.get_backend_name() == "sqlite"
    options: dict[str, object] = {"connect_args": {"timeout": wait_s}}
    if not sqlite:
        given = address.query.get("options", "")
        server = f"{given if isinstance(given, str) else ' '.join(given)} -c lock_timeout={int(wait_s * 1000)}"
        # READ COMMITTED, whatever the server's default: Store._extend relies on seeing what others committed.
        options = {
            "connect_args": {"connect_timeout": 10, "options": server},
            "isolation_level": "READ COMMITTED",
            "pool_pre_ping": True,
        }
    try:
        engine = sa.create_engine(address, hide_parameters=True, pool_timeout=wait_s, **options)
    except ModuleNotFoundError:
        raise ConfigError(["a store in PostgreSQL needs psycopg: pip install 'medrec[postgres]'"]) from None
    if sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # Python's sqlite3 would begin transactions itself, and late; see _begin_sqlite
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock before it reads: a reader that turns writer cannot wait, it fails at once.
    writes = connection.get_execution_options().get("medrec_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


# What a person is told: SQLite's primary result codes (sqlite.org/rescode.html) and PostgreSQL's SQLSTATE
# classes.
_WORDS: Mapping[int | str, str] = {
    5: "is locked by another process for more than {wait_s:g} s; try again when that one has ended",
    6: "is locked by another process for more than {wait_s:g} s; try again when that one has ended",
    8: "is read-only; give medrec the right to write it",
    10: "cannot be read or written: the disk reports an error",
    11: "is damaged; restore it from a backup",
    13: "is full; free some disk space",
    14: "cannot be opened; look whether its folder exists and medrec may write there",
    26: "is not a medrec store but some other file",
    "08": "cannot be reached; look whether the database server runs",
    "28": "refuses the login",
    "3D": "does not exist; create the database first",
    "40": "was in another's way; try again",
    "53": "is out of disk, memory or connections",
    "55": "is locked by another process for more than {wait_s:g} s; try again when that one has ended",
    "57": "is shutting down or stopped the query; try again",
    "25": "is read-only; give medrec the right to write it",
    "42": "refuses access or lacks a table; look at the rights of medrec's user",
}


@contextmanager
def plain_words(place: str, wait_s: float) -> Iterator[None]:
    """Turn the database's troubles into `WorldError`; collisions (IntegrityError) are for the caller."""
    try:
        yield
    except exc.IntegrityError:
        raise
    except (exc.DBAPIError, exc.TimeoutError) as e:
        raise WorldError(f"the store ({place}) {_trouble(e).format(wait_s=wait_s)}") from None


def _trouble(error: exc.SQLAlchemyError) -> str:
    if isinstance(error, exc.TimeoutError):
        return "has too many connections in use; try again"
    original = getattr(error, "orig", None)
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        return _WORDS.get(code & 0xFF, f"reports {getattr(original, 'sqlite_errorname', code)}")
    if isinstance(original, sqlite3.Error):
        return "holds something that cannot be read; run medrec audit verify"
    state = getattr(original, "sqlstate", None)
    # Without a state the server was never heard.
    return _WORDS["08"] if state is None else _WORDS.get(state[:2], f"reports SQLSTATE {state}")


def migrate(reading: Connect, writing: Connect, place: str) -> None:
    """Create the schema or bring it up to this medrec's, safely at once from many processes.

    Raises ConfigError when a newer medrec wrote it.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    scripts = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))  # a configparser's value
    script = ScriptDirectory.from_config(config)

    def version(connection: Connection) -> str | None:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()

    with reading() as connection:
        found = version(connection)
    if found == script.get_current_head():
        return
    with writing() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        found = version(connection)  # again: another process may have been faster
        if found is not None and found not in {s.revision for s in script.walk_revisions()}:
            newest = script.get_current_head()
            problem = f"the store ({place}) has schema {found}, this medrec knows up to {newest}"
            advice = "it was written by a newer medrec; update medrec, or use another home"
            raise ConfigError([f"{problem}: {advice}"])
        config.attributes.update(connection=connection, version_table=VERSION_TABLE)
        command.upgrade(config, "head")
