"""The folder that holds everything of one installation, and the lock that lets one night at a time work in it.

Layout: medrec.db (the truth), mlflow.db and mlartifacts/ (the searchable copy), prefect/, reports/<case>/,
outbox/<case>/ (what goes back to the archive, under the patient's name), batches/, kept/ (weights, cards and
environments by digest), labels/ (masks that people made, by digest), models/ (trained cards with their weights and
pages, by digest), training/ (what is not finished yet), index/ (what was found in files that have not changed since),
inputs (the folders that images came from), key (of the pseudonyms, 0600), renamed (their first names, encrypted),
worker (which home this is). All below 0700.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from medrec.errors import AlreadyRunningError, ConfigError, WorldError

# What is being written, by the beginning or the end of its name.
DRAFTS = (".draft-*", ".*.draft", ".key.*", ".mlflow-*", ".*.shared", ".*.seconds")
# What a folder of the outbox may hold beside what a case returned first, by the end of its name.
RETURNED_AS = ("accepted", "matched", "rejected")


def sha256_of(path: Path) -> str:
    """Digest of a file; of a folder one for the names and contents of all its files, whatever their order.

    Raises OSError.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{sha256_of(inside)} {inside.name}\n" for inside in sorted(path.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Home:
    """Paths below one home; creating it is the only thing that touches the disk here."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.reports = self.root / "reports"
        self.outbox = self.root / "outbox"
        self.batches = self.root / "batches"
        self.kept = self.root / "kept"
        self.labels = self.root / "labels"
        self.models = self.root / "models"
        self.training = self.root / "training"
        self.index = self.root / "index"
        self.key = self.root / "key"
        self.renamed = self.root / "renamed"
        self.prefect = self.root / "prefect"
        self.mlflow_database = self.root / "mlflow.db"
        self.mlflow_artifacts = self.root / "mlartifacts"

    @property
    def store_url(self) -> str:
        """URL of the embedded store, unless MEDREC_STORE names another database."""
        return os.environ.get("MEDREC_STORE") or f"sqlite:///{self.root / 'medrec.db'}"

    @classmethod
    def default(cls) -> Path:
        """MEDREC_HOME, or else the user's data folder."""
        return Path(os.environ.get("MEDREC_HOME") or platformdirs.user_data_dir("medrec", appauthor=False))

    @property
    def worker(self) -> str:
        """What tells this home's nights from those of other homes on one store or MLflow: random, kept in the home."""
        path = self.root / "worker"
        if not path.is_file():
            path.write_text(secrets.token_hex(8))
            path.chmod(0o600)
        return path.read_text().strip()

    def version(self, name: str, digest: str) -> Path:
        """Where a version of a model that was trained or imported here lies: card, weights, evaluation, page."""
        return self.models / name / digest

    def remember_input(self, folder: Path) -> None:
        """Note a folder that images come from, so that a training finds them again."""
        known = self.inputs()
        if (place := folder.expanduser().absolute()) not in known:
            path = self.root / "inputs"
            path.write_text("".join(f"{p}\n" for p in (*known, place)))
            path.chmod(0o600)

    def inputs(self) -> tuple[Path, ...]:
        """The folders that images came from, as far as they are there."""
        path = self.root / "inputs"
        lines = path.read_text().splitlines() if path.is_file() else []
        return tuple(p for line in lines if (p := Path(line)).is_dir())

    def returned(self, case: str) -> tuple[Path, ...]:
        """The folders that hold what a case gives back to the archive: as written, rewritten, and its rejection."""
        return tuple(self.outbox / name for name in (case, *(f"{case}-{how}" for how in RETURNED_AS)))

    @property
    def shares_store(self) -> bool:
        """Whether the store is a server's, which other homes may use too."""
        return not self.store_url.startswith("sqlite:")

    def holds_store(self) -> bool:
        """Whether there is a store to read: asked before opening, which would make an empty one."""
        return self.shares_store or Path(self.store_url.removeprefix("sqlite:///")).is_file()

    def create(self) -> None:
        """Make the folders, 0700. Raises WorldError when that cannot be done, ConfigError when it should not."""
        self.check()
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o700)
            folders = (self.reports, self.outbox, self.batches, self.kept, self.labels, self.index, self.prefect)
            for folder in (*folders, self.models, self.training, self.mlflow_artifacts):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise WorldError(f"the home {self.root} cannot be made: {os.strerror(error.errno or 0)}") from error

    def check(self) -> None:
        """Raises ConfigError for a place that cannot be, or should not become, a home."""
        if set("?#") & set(str(self.root)):  # they end the path in the databases' URLs
            raise ConfigError([f"--home: {self.root} holds ? or #; choose another name"])
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise ConfigError([f"--home: {self.root} is a file, not a folder"])
        ours = self.key.exists() or (self.root / "medrec.db").exists()
        if not ours and self.root.stat().st_mode & 0o077 and any(self.root.iterdir()):
            problem = f"--home: {self.root} holds other things and can be read by others"
            raise ConfigError([f"{problem}; choose a new or empty folder"])

    def check_input(self, folder: Path) -> None:
        """Raises ConfigError unless `folder` is a folder that neither lies in the home nor holds it."""
        resolved, root = folder.resolve(), self.root.resolve()
        if not resolved.is_dir():
            raise ConfigError([f"--input: {folder} is not a folder"])
        if resolved.is_relative_to(root):
            raise ConfigError([f"--input: {folder} lies inside the home {self.root}; reports are no scans"])
        if root.is_relative_to(resolved):
            raise ConfigError([f"--home: {self.root} lies inside the input {folder}; choose a home beside it"])

    def sweep(self) -> None:
        """Take away what killed nights left half-written; only for who holds the lock and is alone here."""
        for folder in (self.root, self.reports, self.outbox, self.batches, self.kept, self.index):
            for path in (p for pattern in DRAFTS for p in folder.glob(pattern)):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def is_busy(self) -> bool:
        """Whether a night holds the home now."""
        if not (self.root / "night.lock").exists():
            return False
        lock = FileLock(self.root / "night.lock", mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    @contextmanager
    def lock(self, work: str = "night", patience_s: float = 1.0) -> Iterator[None]:
        """Hold the home for one night, or other work; the operating system frees it when the process dies.

        Raises AlreadyRunningError when another holds it for longer than `patience_s`; looking takes moments.
        """
        lock = FileLock(self.root / f"{work}.lock", mode=0o600)
        try:
            lock.acquire(timeout=patience_s)
        except Timeout:
            raise AlreadyRunningError(f"already running: another {work} works on {self.root}") from None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the home for what takes patients away or renames them: no night, training or labelling beside it."""
        with self.lock("labelling"), self.lock("training"), self.lock():
            yield
