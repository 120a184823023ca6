"""A home put away and taken back: backup, restore, and the upgrade of a home that an earlier release wrote.

A backup is one tar file (0600) of everything in the home, databases copied while others may write, taken with the
home's lock held. It holds the key: who has it and the archive can connect reports with patients. A restored home
verifies before it is said to be there. PostgreSQL is backed up with its own tools; a backup
says so instead of leaving it out.
"""

import io
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from medrec import verification
from medrec.errors import ConfigError, DataError, WorldError
from medrec.home import Home
from medrec.privacy import operator
from medrec.store import Store

DATABASES = ("medrec.db", "mlflow.db")
# Locks, trainings that are not finished and other processes' journals; Prefect's state is advisory and starts anew.
LEFT_OUT = (
    "night.lock",
    "training.lock",
    "training",
    "prefect",
    *(f"{name}{end}" for name in DATABASES for end in ("-wal", "-shm", "-journal")),
)
MARK = "medrec-backup"


def backup(home: Home, target: Path) -> str:
    """Write a backup; returns the ledger's head in it.

    Raises ConfigError when the file is there already or the store is PostgreSQL, WorldError when it cannot be written.
    """
    if not home.store_url.startswith("sqlite:///"):
        raise ConfigError(["the store is in PostgreSQL: back it up with pg_dump, and this home without MEDREC_STORE"])
    if target.exists():
        raise ConfigError([f"{target} is there already; a backup replaces nothing"])
    draft = target.with_name(f".{target.name}.draft")
    try:
        with home.lock(), os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            with Store.open(home.store_url) as store:
                head = store.head()
            with tarfile.open(fileobj=file, mode="w") as tar:
                _add_text(tar, MARK, head)
                _add_all(tar, home)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except OSError as error:
        raise WorldError(f"the backup cannot be written: {os.strerror(error.errno or 0)}") from None
    finally:
        draft.unlink(missing_ok=True)
    return head


def restore(source: Path, home: Home) -> str:
    """Make a home of a backup; returns the head of its ledger. The home is there only when all of it verified.

    Raises ConfigError when the place is not empty or the file is no backup, DataError when it does not verify.
    """
    if home.root.exists() and any(home.root.iterdir()):
        raise ConfigError([f"--home: {home.root} is not empty; restore into a new place"])
    draft = Home(home.root.with_name(f".{home.root.name}.draft"))
    shutil.rmtree(draft.root, ignore_errors=True)
    try:
        draft.root.mkdir(parents=True, mode=0o700)
        head = _unpack(source, draft.root)
        draft.create()
        problems = _problems(draft)
        if problems:
            raise DataError(f"the backup is not as it was written: {problems[0]}")
        if home.root.exists():
            home.root.rmdir()
        draft.root.rename(home.root)
    except OSError as error:
        raise WorldError(f"the home cannot be restored: {os.strerror(error.errno or 0)}") from None
    finally:
        shutil.rmtree(draft.root, ignore_errors=True)
    _move_artifacts(home)
    with Store.open(home.store_url) as store:
        found = store.head()
        store.append("home restored", _now(), {"by": operator(), "from_head": found})
    if head != found:
        raise DataError("the backup's ledger does not end where the backup says; keep both, and ask who changed it")
    return found


def upgrade(home: Home) -> Iterator[str]:
    """Bring a home up to this release: a backup beside it, the store's schema, a check; yields what was done.

    Raises DataError when the home does not verify afterwards.
    """
    moment = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    copy = home.root.with_name(f"{home.root.name}-before-{moment}.tar")
    _plain_copy(home, copy)  # opening the store upgrades it: the copy is taken first
    yield f"kept as it was: {copy}"
    with home.alone(), Store.open(home.store_url) as store:
        store.seal_nights(_now())
    yield "the store has this release's schema"
    problems = _problems(home)
    if problems:
        raise DataError(f"the home does not verify: {problems[0]}")
    yield "every record and every file is as it was written"


def _plain_copy(home: Home, target: Path) -> None:
    with (
        home.lock(),
        os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w") as tar,
    ):
        _add_all(tar, home)


def _add_all(tar: tarfile.TarFile, home: Home) -> None:
    for database in DATABASES:
        _add_database(tar, home.root / database)
    for path in _others(home):
        tar.add(path, str(path.relative_to(home.root)), recursive=False)


def _others(home: Home) -> Iterator[Path]:
    for path in sorted(home.root.rglob("*")):
        top = path.relative_to(home.root).parts[0]
        if top not in LEFT_OUT and top not in DATABASES and (path.is_file() or path.is_dir()):
            yield path


def _add_database(tar: tarfile.TarFile, path: Path) -> None:
    """A consistent copy of a SQLite database, whoever writes to it."""
    if not path.exists():
        return
    with TemporaryDirectory(dir=path.parent, prefix=".backup-") as folder:
        copy = Path(folder, path.name)
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        copy.chmod(0o600)
        tar.add(copy, path.name)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(text), 0o600
    tar.addfile(info, io.BytesIO(text.encode()))


def _unpack(source: Path, folder: Path) -> str:
    try:
        with tarfile.open(source) as tar:
            if tar.next() is None or tar.getnames()[0] != MARK:
                raise ConfigError([f"{source} is no backup of medrec"])
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, FileNotFoundError):
        raise ConfigError([f"{source} is no backup of medrec, or is damaged"]) from None
    mark = folder / MARK
    head = mark.read_text()
    mark.unlink()
    return head


def _problems(home: Home) -> list[str]:
    with Store.open(home.store_url) as store:
        return [str(p) for p in verification.verify(home, store)]


def _move_artifacts(home: Home) -> None:
    """MLflow's database names artifacts by their place; they are in this home now."""
    if not home.mlflow_database.exists():
        return
    with closing(sqlite3.connect(home.mlflow_database)) as connection, connection:
        for table, column in (
            *(("experiments", "artifact_location"), ("runs", "artifact_uri")),
            *(("model_versions", "source"), ("model_versions", "storage_location")),
        ):
            rows = connection.execute(f"SELECT DISTINCT {column} FROM {table}").fetchall()
            for (place,) in rows:
                if place and "/mlartifacts" in place:
                    moved = str(home.mlflow_artifacts) + place.rpartition("/mlartifacts")[2]
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (moved, place))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
