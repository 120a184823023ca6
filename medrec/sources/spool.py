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
                new = not folder.is_dir()
                folder.mkdir(mode=0o700, exist_ok=True)
                _write(part, folder / name, content)
                if new:
                    disk.flush(self.incoming)
            except OSError as error:
                if last or not isinstance(error, FileNotFoundError):  # the folder may have been handed over just now
                    raise WorldError(f"what came cannot be kept: {os.strerror(error.errno or 0)}") from None
            else:
                return True
        return True

    def settle(self, now_s: float, quiet_s: float) -> int:
        """Hand studies in which nothing has arrived for `quiet_s` to the night; returns how many.

        Raises WorldError when the disk does not allow it.
        """
        settled, trouble = 0, None
        for folder in sorted(path for path in self.incoming.iterdir() if path.is_dir()):
            try:
                if now_s - folder.stat().st_mtime >= quiet_s and not any(folder.glob(".*.part")):
                    settled += self._hand_over(folder)
            except (OSError, WorldError) as error:  # the studies after this one do not wait for it
                trouble = error
        if trouble is not None and not settled:
            raise trouble if isinstance(trouble, WorldError) else _cannot(trouble)
        return settled

    def complete(self, study_uid: str) -> None:
        """Hand over one study at once: who fetched it knows that nothing more comes.

        Raises WorldError when the disk does not allow it.
        """
        folder = self.incoming / self._names.of("study", study_uid)
        try:
            if folder.is_dir():
                self._hand_over(folder)
        except FileNotFoundError:  # the listener beside us handed it over just now
            return
        except OSError as error:
            raise _cannot(error) from None

    def _hand_over(self, folder: Path) -> int:
        """A new study moves as a whole; late slices of one that is there already are added to it."""
        final = self.studies / folder.name
        if not final.exists() and any(folder.iterdir()):
            folder.rename(final)
            disk.flush(self.studies)
            disk.flush(self.incoming)
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
    """Bytes, then name, on the disk: a power failure after this leaves the file whole under its name."""
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fdatasync(file.fileno())
        part.rename(final)
    except BaseException:  # want of memory, too, must not leave a part that keeps its study from becoming quiet
        part.unlink(missing_ok=True)
        raise
    disk.flush(final.parent)


def _cannot(error: OSError) -> WorldError:
    return WorldError(f"a study cannot be handed over: {os.strerror(error.errno or 0)}")
