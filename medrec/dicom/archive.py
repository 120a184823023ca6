"""A folder of scans: every file accounted for, and series turned into volumes.

Owns `Archive` and `Index`, the only objects that know paths. Files are read once, by threads, and parsed in processes
that may be killed; what fits into `KEEP_BYTES` stays in memory until it is decoded, the rest is read again and checked
against its digest. Invariants: results come in the order of paths, whatever finishes first; memory does not grow with
the number of files by more than their headers.
"""

import io
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from medrec.dicom import isolation, parsing, reading, work
from medrec.dicom.decoding import Decoding
from medrec.dicom.entry import Entry
from medrec.dicom.parsing import Incomplete, Parsed
from medrec.dicom.pixels import Native
from medrec.dicom.pseudonyms import Pseudonyms
from medrec.dicom.reading import Part, State
from medrec.dicom.source import Source, source_of
from medrec.errors import ConfigError, WorldError
from medrec.series import Reason, Refused, ScanFile, Series, Skipped
from medrec.volume import Volume

if TYPE_CHECKING:
    from medrec.dicom.memory import Memory
    from medrec.dicom.stills import Still
    from medrec.prediction import InputRule

KEEP_BYTES = 2**29  # of files, between scanning and decoding
HEAD_BYTES = 2**16  # more than nearly all headers have
FILES_AT_ONCE = 32
BYTES_AT_ONCE = 2**26
# A header takes milliseconds; a process that needs this long is held up by what it reads.
PARSE_SECONDS = 20.0
# One image of at most a few megabytes takes milliseconds.
STILL_SECONDS = 60.0
STILLS_AT_ONCE = 2 * isolation.WORKERS
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
        self._packed: dict[int, reading.Packed] = {}
        self._opened: dict[tuple[int, int], work.Decoded] = {}
        self._large = threading.Lock()  # large files and zip files are read one at a time
        self._lock = threading.Lock()
        self._unpacking = threading.Lock()

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

    def folders(self, file: ScanFile) -> frozenset[str]:
        """Pseudonyms of the folders below the input that a file lies in, and of the zip file that it is packed in."""
        path = self._paths[file.ordinal].relative_to(self._folder)
        packed = (path.stem,) if file.member else ()
        return frozenset(self._pseudonyms.of("called", name) for name in (*path.parts[:-1], *packed))

    def called(self, file: ScanFile) -> frozenset[str]:
        """Pseudonyms of a file's name, with and without its ending; none in a zip file, where names do not count."""
        name = self._paths[file.ordinal].name
        both = () if file.member else (name, Path(name).stem)
        return frozenset(self._pseudonyms.of("called", one) for one in both)

    def modified(self, ordinal: int) -> float:
        """When a file was last written, in seconds since 1970."""
        return self._modified[ordinal]

    def load(self, series: Series) -> tuple[Volume, tuple[Refused, ...]] | Skipped:
        """Decode a series; broken copies of slices that have a whole one are refused and listed beside the volume.

        Voxels are rescaled by DICOM's rule (PS3.3 C.11.1.1.2: stored value x slope + intercept), slice by slice.
        Raises WorldError when a file has changed since it was indexed.
        """
        return Decoding(series, self._natives, self._bytes, self._opened).volume()

    def stills(self, files: Sequence[ScanFile]) -> Iterator["Still | Refused"]:
        """Each file's single image, or why it has none, in the order of `files`; decoded several at a time.

        Raises WorldError when a file has changed since it was indexed.
        """
        under_way: deque[tuple[ScanFile, Future[Still | str]]] = deque()
        for file in files:
            under_way.append((file, self._start_still(file)))
            if len(under_way) >= STILLS_AT_ONCE:
                yield self._still(*under_way.popleft())
        while under_way:
            yield self._still(*under_way.popleft())

    def _start_still(self, file: ScanFile) -> "Future[Still | str]":
        return isolation.start(work.still, self._bytes(file), self._pseudonyms, seconds=STILL_SECONDS)

    def _still(self, file: ScanFile, future: "Future[Still | str]") -> "Still | Refused":
        try:
            found = isolation.result(future)
        except isolation.Lost:  # was it the file, or the machine?
            try:
                found = isolation.result(self._start_still(file))
            except isolation.Lost as lost:
                found = lost.why
        if not isinstance(found, str):
            return found
        return Refused(file.sha256, file.ordinal, Reason.BAD_PIXELS, found or "its image cannot be decoded")

    def source(self, series: Series) -> Source:
        """What objects made from a series must carry back to its study: read again from its files.

        Raises WorldError when a file has changed since it was indexed.
        """
        return source_of(series, self._bytes(series.first), self._open, self._pseudonyms)

    def _open(self, file: ScanFile) -> BinaryIO:
        """A file to read the beginning of; its digest is not looked at."""
        if file.member:
            return io.BytesIO(self._bytes(file))
        try:
            return self._paths[file.ordinal].open("rb")
        except OSError as error:
            raise WorldError(f"file {file.ordinal} of the input is gone: {os.strerror(error.errno or 0)}") from None

    def _bytes(self, file: ScanFile) -> bytes:
        """All bytes of a file, or of its member of a zip file; those that were kept are handed over."""
        with self._lock:
            kept = self._kept.pop((file.ordinal, file.member), None)
            self._room += len(kept) if kept is not None else 0
        if kept is not None:
            return kept
        path = self._paths[file.ordinal]
        if not file.member:
            return reading.bytes_again(path, file.sha256, file.ordinal)
        with self._large:  # one at a time: it may be large
            if file.ordinal not in self._packed:
                self._packed.clear()
                self._packed[file.ordinal] = reading.Packed(reading.bytes_again(path, file.sha256, file.ordinal))
            return self._packed[file.ordinal].read(file.member)

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
        new: list[tuple[int, Path, State | None]] = []
        for ordinal, path, state in chunk:
            known = self._memory.recall(path, state) if self._memory is not None else None
            if known is None:
                new.append((ordinal, path, state))
            else:
                entries[ordinal] = known.numbered(ordinal)
        for (ordinal, path, state), entry in zip(new, self._entries(new), strict=True):
            entries[ordinal] = entry
            if self._memory is not None and not any(_unread(f) for f in entry.found):
                self._memory.remember(path, state, entry, time.time_ns())
        self._note(entries.values())
        return [entries[ordinal] for ordinal, _, _ in chunk]

    def _entries(self, new: Chunk) -> list[Entry]:
        """What is in files that must be read; no more than `BYTES_AT_ONCE` of small ones are held, or one large one."""
        found: dict[int, list[tuple[Found, Native | None]]] = {ordinal: [] for ordinal, _, _ in new}
        waiting: list[Part] = []

        def parse() -> None:
            for part, pair in zip(waiting, self._parsed(waiting), strict=True):
                found[part.ordinal].append(pair)
            waiting.clear()

        for ordinal, path, state in new:
            large = state is not None and state.size > BYTES_AT_ONCE
            with self._large if large or reading.is_zip(path) else nullcontext():
                for part in reading.parts_of(path, ordinal):
                    if isinstance(part, Refused):
                        found[ordinal].append((part, None))
                        continue
                    waiting.append(part)
                    held = sum(len(p.data) for p in waiting)
                    if held >= BYTES_AT_ONCE or len(waiting) >= FILES_AT_ONCE:
                        parse()
        parse()
        return [Entry(tuple(f for f, _ in pairs), tuple(n for _, n in pairs)) for pairs in found.values()]

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
        except isolation.Lost:
            pass  # one of them: which? And was it the file, or the machine?
        return [self._alone(file) for file in batch]

    def _alone(self, file: work.Beginning) -> Parsed | Refused | str | Incomplete:
        future = isolation.start(work.parse, [file], self._pseudonyms, self._rules, seconds=PARSE_SECONDS)
        try:
            (found,) = isolation.result(future)
        except isolation.Lost as lost:
            return Refused(file.digest, file.ordinal, Reason.BEYOND_LIMITS, lost.why)
        return found


def _memory(memory: Path, folder: Path, pseudonyms: Pseudonyms, rules: Mapping[str, "InputRule"]) -> "Memory":
    from medrec.dicom.memory import Memory  # pydantic, which nothing else here needs

    return Memory(memory, folder, pseudonyms, rules)


def _beginning(part: Part, most: int | None) -> work.Beginning:
    return work.Beginning(part.data[:most], len(part.data), part.digest, part.ordinal)


def _unread(found: Found) -> bool:
    """What says more of this night than of the file: it is looked at again on the next."""
    return isinstance(found, Refused) and found.reason in (Reason.UNREADABLE, Reason.BEYOND_LIMITS)


def _in_order(read: Callable[[Chunk], list[Entry]], chunks: Iterable[Chunk]) -> Iterator[Entry]:
    """`read` over all chunks by a few threads, with a few chunks under way at a time."""
    with ThreadPoolExecutor(2 * isolation.WORKERS, "read") as threads:
        under_way: deque[Future[list[Entry]]] = deque()
        try:
            for chunk in chunks:
                under_way.append(threads.submit(read, chunk))
                if len(under_way) > 2 * isolation.WORKERS:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        except KeyboardInterrupt:
            isolation.abandon()  # nobody wants to wait for the file that takes long
            raise
