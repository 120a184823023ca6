"""What was found in each file of a folder, kept from night to night: a file that has not changed is not read again.

A file is known by its path, as a keyed digest, and by size, times and inode; whatever else decides what is found in it
(patterns of cards, key, version) is in the name of the memory, so that a change of it forgets all. Holds what
`ScanFile` holds: no name, no path. Losing it costs time only; one that cannot be read is forgotten.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from medrec import __version__
from medrec.dicom.entry import Entry
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.dicom.reading import State
from medrec.prediction import InputRule

# A file that changed this shortly before it was looked at may change again within the clock's tick, unnoticed.
SETTLED_NS = 2_000_000_000
KEEPS = "visits"  # what is kept of a file beyond what 0.1.0 kept: a memory without it is forgotten


@dataclass(frozen=True, slots=True)
class _Line:
    path: str
    state: State
    entry: Entry


_LINES: TypeAdapter[_Line] = TypeAdapter(_Line)


class Memory:
    """The memory of one input folder; `forget_others` and `save` at the end of a complete scan."""

    def __init__(self, folder: Path, source: Path, pseudonyms: Pseudonyms, rules: Mapping[str, InputRule]) -> None:
        """`folder` is where memories lie, `source` the folder of scans."""
        known = [__version__, KEEPS, *(f"{name} {rule.model_dump_json()}" for name, rule in sorted(rules.items()))]
        made_by = hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
        self._place = pseudonyms.of("folder", str(source.resolve()))
        self._file = folder / f"{self._place}.{made_by}.jsonl"
        self._pseudonyms = pseudonyms
        self._known: dict[str, _Line] = {}
        self._new: list[_Line] = []
        with suppress(OSError, ValidationError, ValueError), self._file.open("rb") as lines:
            self._known = {line.path: line for line in map(_LINES.validate_json, lines)}

    def recall(self, path: Path, state: State | None) -> Entry | None:
        """What was found in a file that has not changed since."""
        line = self._known.get(self._name(path))
        if line is None or state is None or line.state != state:
            return None
        self._new.append(line)
        return line.entry

    def remember(self, path: Path, state: State | None, entry: Entry, now_ns: int) -> None:
        """Keep what was found in a file whose state, before it was read, was `state`."""
        if state is None or max(state.modified_ns, state.changed_ns) > now_ns - SETTLED_NS:
            return
        self._new.append(_Line(self._name(path), state, entry))

    def save(self) -> None:
        """Keep what this scan found, and nothing of files that are gone; other memories of the folder go."""
        draft = self._file.with_name(f".{secrets.token_hex(8)}.draft")
        with suppress(OSError):  # without it the next night reads everything, and is right as well
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.writelines(_LINES.dump_json(line) + b"\n" for line in self._new)
            draft.replace(self._file)
            for other in self._file.parent.glob(f"{self._place}.*.jsonl"):
                if other != self._file:
                    other.unlink()

    def _name(self, path: Path) -> str:
        return self._pseudonyms.of("path", os.fspath(path))
