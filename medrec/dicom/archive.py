"""A folder of scans: every file accounted for, and series turned into volumes.

Owns `Archive` and `Index`, the only objects that know paths. Files are read once, by threads, and parsed in processes
that may be killed; what fits into `KEEP_BYTES` stays in memory until it is decoded, the rest is read again and checked
against its digest. Invariants: results come in the order of paths, whatever finishes first; memory does not grow with
the number of files by more than their headers.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from medrec.dicom import isolation, parsing, reading, work
from medrec.dicom.decoding import Decoding
from medrec.dicom.entry import Entry
from medrec.dicom.parsing import Incomplete, Parsed
from medrec.dicom.pixels import Native
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.dicom.reading import Part, State
from medrec.errors import ConfigError
from medrec.series import Reason, Refused, ScanFile, Series, Skipped
from medrec.volume import Volume

if TYPE_CHECKING:
    from medrec.dicom.memory import Memory
    from medrec.prediction import InputRule

KEEP_BYTES = 2**29  # of files, between scanning and decoding
HEAD_BYTES = 2**16  # more than nearly all headers have
FILES_AT_ONCE = 32
BYTES_AT_ONCE = 2**26
# A header takes milliseconds; a process that needs this long is held up by what it reads.
PARSE_SECONDS = 20.0
Found = ScanFile | Refused | str
Chunk = Sequence[tuple[int, Path, State | None]]


@dataclass(frozen=True, slots=True)
class Index:
    """Where each file of a folder went; `seen` is their number.

    `unused` are digests of whole files that hold nothing to analyse: objects without an image, and identical copies.
    `packed` are the ordinals of zip files: what is in one of them may stand in more than one of the groups.
    """

    files: tuple[ScanFile, ...]
    refused: tuple[Refused, ...]
    unused: tuple[str, ...]
    seen: int
    packed: frozenset[int] = frozenset()


class Archive:
    """A folder of scans, or one file of them: the only object that knows paths."""

    def __init__(
        self,
        folder: Path,
        pseudonyms: Pseudonyms,
        rules: Mapping[str, "InputRule"],
        *,
        or_file: bool = False,
        memory: Path | None = None,
    ) -> None:
        """`rules` are the inputs that cards ask for, by the name under which `ScanFile.matches` lists them.

        `memory` is a folder in which is kept what was found, so that unchanged files are not read again.
        """
        if not (folder.is_dir() or (or_file and folder.is_file())):
            raise ConfigError([f"--input: {folder} is not a folder"])
        self._folder = folder
        self._pseudonyms = pseudonyms
        self._rules = {name: parsing.compiled(rule) for name, rule in rules.items()}
        self._memory = _memory(memory, folder, pseudonyms, rules) if memory is not None else None
        self._paths: dict[int, Path] = {}
        self._modified: dict[int, float] = {}
        self._natives: dict[tuple[int, int], Native] = {}
        self._kept: dict[tuple[int, int], bytes] = {}
        self._room = KEEP_BYTES
        self._lock = threading.Lock()

    def count(self) -> int:
        """Number of files that `scan` will go through."""
        return sum(1 for _ in reading.walk(self._folder))

    def scan(self) -> Iterator[tuple[Found, ...]]:
        """What each file of the folder holds, in the order of its path; a `str` is the digest of an unused file.

        A file holds one thing, a zip file any number. Raises WorldError when a folder cannot be listed.
        """
        seen: set[str] = set()
        for entry in _in_order(self._read, self._chunks()):
            if any(isinstance(f, ScanFile) and f.sha256 in seen for f in entry.found):
                yield (next(f.sha256 for f in entry.found if isinstance(f, ScanFile)),)
                continue
            seen.update(f if isinstance(f, str) else f.sha256 for f in entry.found)
            yield entry.found
        if self._memory is not None:
            self._memory.save()

    def index(self) -> Index:
        """All that `scan` yields, sorted into its groups."""
        found = tuple(self.scan())
        every = tuple(chain.from_iterable(found))
        return Index(
            tuple(f for f in every if isinstance(f, ScanFile)),
            tuple(f for f in every if isinstance(f, Refused)),
            tuple(f for f in every if isinstance(f, str)),
            len(found),
            frozenset(f.ordinal for f in every if isinstance(f, ScanFile) and f.member),
        )

    def modified(self, ordinal: int) -> float:
        """When a file was last written, in seconds since 1970."""
        return self._modified[ordinal]

    def load(self, series: Series) -> tuple[Volume, tuple[Refused, ...]] | Skipped:
        """Decode a series; broken copies of slices that have a whole one are refused and listed beside the volume.

        Voxels are rescaled by DICOM's rule (PS3.3 C.11.1.1.2: stored value x slope + intercept), slice by slice.
        Raises WorldError when a file has changed since it was indexed.
        """
        return Decoding(series, self._natives, self._bytes).volume()

    def _bytes(self, file: ScanFile) -> bytes:
        """All bytes of a file, or of its member of a zip file; those that were kept are handed over."""
        with self._lock:
            kept = self._kept.pop((file.ordinal, file.member), None)
            self._room += len(kept) if kept is not None else 0
        if kept is not None:
            return kept
        return reading.part_again(self._paths[file.ordinal], file.sha256, file.ordinal, file.member).data

    def _chunks(self) -> Iterator[list[tuple[int, Path, State | None]]]:
        chunk: list[tuple[int, Path, State | None]] = []
        size = 0
        for ordinal, path in enumerate(reading.walk(self._folder)):
            state = State.of(path)
            self._paths[ordinal] = path
            self._modified[ordinal] = state.modified_ns / 1e9 if state is not None else 0.0
            chunk.append((ordinal, path, state))
            size += state.size if state is not None else 0
            if len(chunk) >= FILES_AT_ONCE or size >= BYTES_AT_ONCE:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _read(self, chunk: Chunk) -> list[Entry]:
        entries: dict[int, Entry] = {}
        new: dict[int, list[Part | Refused]] = {}
        for ordinal, path, state in chunk:
            known = self._memory.recall(path, state) if self._memory is not None else None
            if known is None:
                new[ordinal] = reading.parts_of(path, ordinal)
            else:
                entries[ordinal] = known.numbered(ordinal)
        parsed = iter(self._parsed([p for parts in new.values() for p in parts if isinstance(p, Part)]))
        for ordinal, path, state in chunk:
            if ordinal in new:
                pairs = [(p, None) if isinstance(p, Refused) else next(parsed) for p in new[ordinal]]
                entries[ordinal] = entry = Entry(tuple(f for f, _ in pairs), tuple(n for _, n in pairs))
                if self._memory is not None and not any(_unread(f) for f in entry.found):
                    self._memory.remember(path, state, entry, time.time_ns())
        self._note(entries.values())
        return [entries[ordinal] for ordinal, _, _ in chunk]

    def _note(self, entries: Iterable[Entry]) -> None:
        with self._lock:
            for entry in entries:
                for file, native in zip(entry.found, entry.natives, strict=True):
                    if isinstance(file, ScanFile) and native is not None:
                        self._natives[file.ordinal, file.member] = native

    def _parsed(self, parts: Sequence[Part]) -> Iterator[tuple[Found, Native | None]]:
        """What each part is, with the place of its pixels where they are plain."""
        firsts = self._parse([_beginning(p, HEAD_BYTES) for p in parts])
        short = [n for n, first in enumerate(firsts) if first is Incomplete.MORE]
        for n, whole in zip(short, self._parse([_beginning(parts[n], None) for n in short]), strict=True):
            firsts[n] = whole
        for part, found in zip(parts, firsts, strict=True):
            yield self._finished(part, found)

    def _finished(self, part: Part, found: Parsed | Refused | str | Incomplete) -> tuple[Found, Native | None]:
        if not isinstance(found, Parsed):
            return (str(found) if isinstance(found, Incomplete) else found), None
        place = found.place
        end = len(part.data) if place.length is None else place.offset + place.length
        content = parsing.content_of(memoryview(part.data)[place.offset : end], found.scale)
        with self._lock:
            if len(part.data) <= self._room:
                self._room -= len(part.data)
                self._kept[part.ordinal, part.member] = part.data
        return replace(found.file, content=content, member=part.member), found.native

    def _parse(self, files: Sequence[work.Beginning]) -> list[Parsed | Refused | str | Incomplete]:
        batches = [files[n : n + FILES_AT_ONCE] for n in range(0, len(files), FILES_AT_ONCE)]
        started = [
            (batch, isolation.start(work.parse, batch, self._pseudonyms, self._rules, seconds=PARSE_SECONDS))
            for batch in batches
        ]
        return [found for batch, future in started for found in self._results(batch, future)]

    def _results(
        self, batch: Sequence[work.Beginning], future: "Future[list[Parsed | Refused | str | Incomplete]]"
    ) -> list[Parsed | Refused | str | Incomplete]:
        try:
            return isolation.result(future)
        except isolation.Lost as lost:
            if len(batch) == 1:
                return [Refused(batch[0].digest, batch[0].ordinal, Reason.BROKEN, lost.why)]
        return [found for file in batch for found in self._parse([file])]  # one of them: which?


def _memory(memory: Path, folder: Path, pseudonyms: Pseudonyms, rules: Mapping[str, "InputRule"]) -> "Memory":
    from medrec.dicom.memory import Memory  # pydantic, which nothing else here needs

    return Memory(memory, folder, pseudonyms, rules)


def _beginning(part: Part, most: int | None) -> work.Beginning:
    return work.Beginning(part.data[:most], len(part.data), part.digest, part.ordinal)


def _unread(found: Found) -> bool:
    return isinstance(found, Refused) and found.reason is Reason.UNREADABLE


def _in_order(read: Callable[[Chunk], list[Entry]], chunks: Iterable[Chunk]) -> Iterator[Entry]:
    """`read` over all chunks by a few threads, with a few chunks under way at a time."""
    with ThreadPoolExecutor(2 * isolation.WORKERS, "read") as threads:
        under_way: deque[Future[list[Entry]]] = deque()
        for chunk in chunks:
            under_way.append(threads.submit(read, chunk))
            if len(under_way) > 2 * isolation.WORKERS:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()
