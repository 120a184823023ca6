"""The folder in which studies arrive: `incoming/` while they do, `studies/` for a night to read, `jobs/`.

Everything is 0700; folders are named by keyed pseudonyms, files by their digest, so that the same object that comes
twice is one file. Invariants: a file is whole or not there; only whole studies are in `studies/`, but for slices that
come late, which are added one by one.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from medrec import disk
from medrec.dicom import Pseudonyms
from medrec.errors import ConfigError, WorldError


class Spool:
    """Paths below one intake folder."""

    def __init__(self, root: Path, names: Pseudonyms) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.studies = root / "studies"
        self.jobs = root / "jobs"
        self._names = names

    def create(self) -> None:
        """Make the folders, and clear away what was half written. Raises ConfigError when that cannot be done."""
        try:
            for folder in (self.root, self.incoming, self.studies, self.jobs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self.incoming.glob("*/.*.part"):
                left.unlink(missing_ok=True)
        except OSError as error:
            problem = f"intake.folder: {self.root} cannot be written: {os.strerror(error.errno or 0)}"
            raise ConfigError([problem]) from None

    def keep(self, study_uid: str, content: bytes) -> bool:
        """Put a whole file among what is arriving, on the disk when this returns; says whether it was new.

        Raises WorldError when the disk does not take it: then nothing of it is left.
        """
        study = self._names.of("study", study_uid)
        name = f"{hashlib.sha256(content).hexdigest()[:40]}.dcm"
        folder = self.incoming / study
        if (folder / name).exists() or (self.studies / study / name).exists():
            folder.mkdir(mode=0o700, exist_ok=True)  # it counts as a sign of life
            os.utime(folder)
            return False
        part = folder / f".{secrets.token_hex(8)}.part"
        for last in (False, False, True):
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
                _write(part, folder / name, content)
            except OSError as error:
                part.unlink(missing_ok=True)
                if last or not isinstance(error, FileNotFoundError):  # the folder may have been handed over just now
                    raise WorldError(f"what came cannot be kept: {os.strerror(error.errno or 0)}") from None
            else:
                return True
        return True

    def settle(self, now_s: float, quiet_s: float) -> int:
        """Hand studies in which nothing has arrived for `quiet_s` to the night; returns how many.

        Raises WorldError when the disk does not allow it.
        """
        settled = 0
        try:
            for folder in sorted(self.incoming.iterdir()):
                if now_s - folder.stat().st_mtime >= quiet_s and not any(folder.glob(".*.part")):
                    settled += self._hand_over(folder)
        except OSError as error:
            raise WorldError(f"a study cannot be handed over: {os.strerror(error.errno or 0)}") from None
        return settled

    def arrived(self, study_uid: str) -> int:
        """How many files of a study are here, whether it was handed over or not."""
        study = self._names.of("study", study_uid)
        return len({path.name for part in (self.incoming, self.studies) for path in (part / study).glob("*.dcm")})

    def complete(self, study_uid: str) -> int:
        """Hand over one study at once: who fetched it knows that nothing more comes. Returns its number of files."""
        study = self._names.of("study", study_uid)
        if (self.incoming / study).is_dir():
            self._hand_over(self.incoming / study)
        return sum(1 for _ in (self.studies / study).glob("*.dcm"))

    def _hand_over(self, folder: Path) -> int:
        """A new study moves as a whole; late slices of one that is there already are added to it."""
        final = self.studies / folder.name
        if not final.exists() and any(folder.iterdir()):
            folder.rename(final)
            disk.flush(self.studies)
            return 1
        late = sorted(folder.iterdir())
        for path in late:
            path.rename(final / path.name)
        if late:
            disk.flush(final)
        with suppress(OSError):  # something came in between: next time
            folder.rmdir()
        return 1 if late else 0


def _write(part: Path, final: Path, content: bytes) -> None:
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fdatasync(file.fileno())
    part.rename(final)
    disk.flush(final.parent)
