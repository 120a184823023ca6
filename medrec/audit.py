"""The ledger's arithmetic: canonical bytes, the chain of digests, and what does not match it.

Owns `AuditRecord`, `Problem`, `GENESIS` and the shape of a record: the ASCII JSON of {"at", "facts", "kind",
"previous"}. Reads no disk, no clock and no database; who has those hands them in. Refuses floats, because
their text differs between writers: a number with a fraction goes in as a whole number of a named unit
(`seconds_ms`).

Invariants: the digest is the SHA-256 of exactly the stored bytes; equal facts give equal bytes; each record
names the digest of the one before it, the first one GENESIS; `verify` looks at everything and never stops at
the first problem.

What the chain alone cannot show: that its last records were cut off, or that all of it was written anew. Both
need a head that somebody else keeps.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from medrec.events import CASE_KINDS, ERASED, FAILED, PRUNED, SUPERSEDED, misplaced, subjects

GENESIS = "0" * 64
# Enough of a case key to find it by, few enough to read.
SHORT_KEY = 12


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One link: the exact bytes that were hashed, their SHA-256, and the digest of the record before."""

    body: bytes
    digest: str
    previous: str

    @property
    def holds(self) -> bool:
        """Whether its bytes are still those that were hashed."""
        return hashlib.sha256(self.body).hexdigest() == self.digest

    @property
    def kind(self) -> str:
        """What happened, such as "case analysed"."""
        return _parse(self.body).kind

    @property
    def at(self) -> str:
        """When, in ISO-8601 UTC."""
        return _parse(self.body).at

    @property
    def facts(self) -> dict[str, object]:
        """What is known of it; a fresh copy each time."""
        return _parse(self.body).facts


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not match: the record, case or file, and in plain words what is wrong with it."""

    where: str
    what: str

    def __str__(self) -> str:
        return plain(f"{self.where}: {self.what}")


@dataclass(frozen=True, slots=True)
class _Body:
    previous: str
    kind: str
    at: str
    facts: dict[str, object]


def plain(text: str) -> str:
    """One line that a terminal shows as it is: a forger names files, and what an operator types is in records."""
    return "".join(c if c.isprintable() else "?" for c in text)


def canonical(facts: object) -> bytes:
    """ASCII JSON with sorted keys and no spaces: one sequence of bytes for equal facts, whatever their order.

    Raises:
        TypeError: something is not text, a whole number, true, false, null, a list or a dict; names the
            field.
    """
    _check(facts, "facts")
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _check(value: object, field: str) -> None:
    if isinstance(value, float):
        raise TypeError(f"{field} is a float ({value!r}): the ledger takes whole numbers of a named unit")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{field} has the key {key!r}: a key in the ledger is text, got {type(key).__name__}")
            _check(key, f"a key of {field}")
            _check(inner, f"{field}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _check(inner, f"{field}[{i}]")
    elif isinstance(value, str):
        # Halves of a surrogate pair would come back from JSON as another text.
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise TypeError(f"{field} is not Unicode text: it holds half a character")
    elif value is not None and not isinstance(value, int):
        raise TypeError(f"{field} is a {type(value).__name__}: the ledger takes text, whole numbers, lists and dicts")


def seal(previous: str, kind: str, at: str, facts: Mapping[str, object]) -> AuditRecord:
    """The record that follows the one with the digest `previous`; `at` is ISO-8601 UTC.

    Raises:
        TypeError: the facts hold something that the ledger does not take.
        ValueError: `at` is no time, or not in UTC.
    """
    if datetime.fromisoformat(at).utcoffset() != timedelta(0):
        raise ValueError(f"a record's time must be ISO-8601 in UTC, got {at!r}")
    for name, value in facts.items():
        _check(value, f"facts.{name}")
    body = canonical({"previous": previous, "kind": kind, "at": at, "facts": dict(facts)})
    return AuditRecord(body, hashlib.sha256(body).hexdigest(), previous)


def anchor_text(position: tuple[int, str]) -> str:
    """A ledger's end (`Store.position`) in one line, for a document that others keep, such as a DICOM SR."""
    return f"medrec ledger, record {position[0]}: SHA-256 {position[1]}"


def salted(salt: str, value: str) -> str:
    """A digest that only the holder of the salt can compute: HMAC-SHA256; `value` itself for the empty salt."""
    return hmac.new(salt.encode(), value.encode(), hashlib.sha256).hexdigest() if salt else value


def written_files(facts: Mapping[str, object]) -> dict[str, str]:
    """SHA-256 of each file that a case wrote, by its path below the home (with "/"); empty when it wrote
    none.

    Raises:
        ValueError: facts["files"] is not such a table, or names a file outside the home.
    """
    files = facts.get("files", {})
    if not isinstance(files, dict):
        raise ValueError("its files are no table of paths and digests")
    for path, digest in files.items():
        if not isinstance(path, str) or not isinstance(digest, str):
            raise ValueError("its files are no table of paths and digests")
        if not path or path.startswith("/") or "\\" in path or ".." in PurePosixPath(path).parts:
            raise ValueError("it names a file outside the home")
    return dict(files)


@dataclass(slots=True)
class _Story:
    """What the ledger tells of all cases, gathered record by record.

    `latest` is the last record about each case, by its key: number and content; `superseded` by what; `erased` since
    which record; `pruned` the paths that a rule of retention took away.
    """

    latest: dict[str, tuple[int, "_Body"]] = field(default_factory=dict)
    superseded: dict[str, object] = field(default_factory=dict)
    erased: dict[str, tuple[int, "_Body"]] = field(default_factory=dict)
    pruned: set[str] = field(default_factory=set)
    kinds: dict[str, set[str]] = field(default_factory=dict)

    def add(self, number: int, body: "_Body") -> Iterator[Problem]:
        """Take up one record; yields what is wrong with it."""
        about = subjects(body.kind, body.facts)
        if why := misplaced(body.kind, self.kinds, about):
            yield Problem(f"record {number}", f"it stands where it may not: {why}")
        for subject in about:
            self.kinds.setdefault(subject, set()).add(body.kind)
        if body.kind in CASE_KINDS or body.kind == SUPERSEDED:
            yield from self._case(number, body)
        elif body.kind == ERASED:
            for key in _texts(body.facts.get("cases")) & self.latest.keys():
                self.erased[key] = self.latest.pop(key)
                self.superseded.pop(key, None)
        elif body.kind == PRUNED:
            self.pruned |= _texts(body.facts.get("files"))

    def _case(self, number: int, body: "_Body") -> Iterator[Problem]:
        key = body.facts.get("case")
        if not isinstance(key, str):
            yield Problem(f"record {number}", "it does not say which case it is about")
        elif body.kind == SUPERSEDED:
            self.superseded[key] = body.facts.get("by")
        else:
            self.latest[key] = number, body
            self.pruned -= _texts(list(body.facts.get("files") or ()))  # type: ignore[call-overload]
            # A failed try does not bring a case back into force; see Store.finish.
            if body.kind != FAILED:
                self.superseded.pop(key, None)


def verify(
    records: Iterable[AuditRecord],
    file_digest: Callable[[str], str | None] | None = None,
    cases: Mapping[str, Mapping[str, object]] | None = None,
    since: int = 0,
) -> Iterator[Problem]:
    """Everything that does not match in the whole ledger, the files that it names, and the store's cases.

    `file_digest` gives the SHA-256 of a file by its path below the home, None when it is gone; `cases` what
    the store says of each case by its key: each of its fields must be the one in the latest record of that
    case. Only the latest record is held against files and store, because a failed case that is tried again
    writes its folder anew. The chain is always followed from its beginning (it is short work); of cases only those
    whose latest record comes after number `since` are held against files and store.
    """
    story = _Story()
    expected = GENESIS
    for number, record in enumerate(records, 1):
        where = f"record {number}"
        yield from _link_problems(where, record, number, expected)
        expected = record.digest
        try:
            body = _parse(record.body)
        except ValueError as e:
            yield Problem(where, str(e))
            continue
        if body.previous != record.previous:
            yield Problem(where, "the store names another predecessor for it than its own bytes do")
        yield from story.add(number, body)
    recent = {key: found for key, found in story.latest.items() if found[0] > since}
    if file_digest is not None:
        for key, (number, body) in recent.items():
            yield from _file_problems(key, number, body.facts, file_digest, story.pruned)
        for key, (_, body) in story.erased.items():
            yield from _left_behind(key, body.facts, file_digest)
    if cases is not None:
        yield from _case_problems(recent, story, cases)


def _link_problems(where: str, record: AuditRecord, number: int, expected: str) -> Iterator[Problem]:
    if not record.holds:
        yield Problem(where, "its bytes do not match its digest: one of them was changed after it was written")
    if record.previous == expected:
        return
    if number == 1:
        yield Problem(where, "it does not open the ledger: records before it were removed, or it was changed")
    else:
        what = f"it does not follow record {number - 1}: a record was changed, removed, added or moved here"
        yield Problem(where, what)


def _parse(body: bytes) -> _Body:
    try:
        read = json.loads(body)
        same = canonical(read) == body
    except (ValueError, TypeError, RecursionError):
        same = False
    if not same:
        raise ValueError("its bytes are not the canonical JSON that medrec writes")
    parts = read if isinstance(read, dict) else {}
    previous, kind, at, facts = (parts.get(name) for name in ("previous", "kind", "at", "facts"))
    if (
        len(parts) == 4
        and isinstance(previous, str)
        and isinstance(kind, str)
        and isinstance(at, str)
        and isinstance(facts, dict)
    ):
        return _Body(previous, kind, at, facts)
    raise ValueError("it does not have the four parts of a record (previous, kind, at, facts)")


def _file_problems(
    key: str,
    number: int,
    facts: Mapping[str, object],
    file_digest: Callable[[str], str | None],
    pruned: set[str],
) -> Iterator[Problem]:
    try:
        files = written_files(facts)
    except ValueError as e:
        yield Problem(f"record {number}", str(e))
        return
    for path, digest in sorted(files.items()):
        found = file_digest(path)
        where = f"{_within(path, key)} of {_case(key)}"
        if found is None and path not in pruned:
            yield Problem(where, "it is gone or cannot be read")
        elif found is not None and found != digest:
            yield Problem(where, "its bytes changed since it was written")


def _left_behind(key: str, facts: Mapping[str, object], file_digest: Callable[[str], str | None]) -> Iterator[Problem]:
    """What should be gone with an erased patient; cards and weights are nobody's."""
    try:
        files = written_files(facts)
    except ValueError:
        return
    for path in sorted(p for p in files if p.startswith("reports/")):
        if file_digest(path) is not None:
            yield Problem(f"{_within(path, key)} of {_case(key)}", "it is still there, though its patient was erased")


def _case_problems(
    recent: Mapping[str, tuple[int, _Body]], story: _Story, cases: Mapping[str, Mapping[str, object]]
) -> Iterator[Problem]:
    for key, (number, body) in recent.items():
        if key not in cases:
            yield Problem(_case(key), f"record {number} tells of it, but the store does not have it")
            continue
        sealed = {**body.facts, "superseded_by": story.superseded.get(key)}
        for name, value in cases[key].items():
            if sealed.get(name) != value:
                words = f"{name} is {_words(value)} in the store, {_words(sealed.get(name))} in the ledger"
                yield Problem(_case(key), f"{words} (record {number})")
    for key in cases:
        if key in story.erased:
            yield Problem(_case(key), "the store has it still, though its patient was erased")
        elif key not in story.latest:
            yield Problem(_case(key), "the store has it, but no record tells of it")


def _texts(value: object) -> set[str]:
    return {v for v in value if isinstance(v, str)} if isinstance(value, list) else set()


def _case(key: str) -> str:
    return f"case {key}" if len(key) <= SHORT_KEY else f"case {key[:SHORT_KEY]}…"


def _within(path: str, key: str) -> str:
    """The part of the path after the case's folder, or all of it."""
    return path.partition(f"{key}/")[2] or path


def _words(value: object) -> str:
    return "nothing" if value is None else repr(value)
