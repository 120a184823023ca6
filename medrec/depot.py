"""A second place for what was written: reports, masks, cards and weights, by their digest.

Owns `Depot` and `Kept`. One interface over fsspec: `file:///srv/depot`, `s3://bucket/medrec`, and what else fsspec
knows; credentials come from where that library takes them. An object's name is the SHA-256 of its bytes, so that hosts
write the same thing under the same name, and whoever reads can tell whether it is what it was. A marker says up to
which record of the ledger everything is there: a night that found the depot away leaves the rest to the next one.

What goes back to an archive carries names, and stays in the home. What was erased or pruned is taken away here as well.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from medrec.disk import replace_file
from medrec.errors import ConfigError, WorldError
from medrec.events import CASE_KINDS, ERASED, PRUNED
from medrec.home import Home
from medrec.store import Store

KEPT = ("reports/", "kept/")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a synchronisation did."""

    brought: int
    taken_away: int


class Depot:
    """Objects by digest below one URL."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError for a URL that nothing here can open."""
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError([f"depot: this URL cannot be opened: {error}"]) from None

    def put(self, data: bytes) -> str:
        """Keep some bytes, once; returns their digest."""
        digest = hashlib.sha256(data).hexdigest()
        with _Away():
            if not self._files.exists(self._place(digest)):
                self._write(self._place(digest), data)
        return digest

    def get(self, digest: str) -> bytes | None:
        """The bytes of a digest; None where they are not there, or are others by now."""
        with _Away():
            try:
                data: bytes = self._files.cat_file(self._place(digest))
            except FileNotFoundError:
                return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def remove(self, digest: str) -> bool:
        """Take something away; False where it is not there."""
        with _Away():
            if not self._files.exists(self._place(digest)):
                return False
            self._files.rm_file(self._place(digest))
        return True

    def marker(self, worker: str) -> int:
        """Up to which record of a home's ledger everything is here."""
        with _Away():
            try:
                return int(json.loads(self._files.cat_file(f"{self._root}/homes/{worker}"))["records"])
            except (FileNotFoundError, ValueError, KeyError, TypeError):
                return 0

    def mark(self, worker: str, records: int) -> None:
        """Note that."""
        with _Away():
            self._write(f"{self._root}/homes/{worker}", json.dumps({"records": records}).encode())

    def _place(self, digest: str) -> str:
        return f"{self._root}/sha256/{digest[:2]}/{digest}"

    def _write(self, place: str, data: bytes) -> None:
        self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
        with self._files.transaction, self._files.open(place, "wb") as file:  # under its name whole, or not at all
            file.write(data)


def synchronise(home: Home, store: Store, depot: Depot) -> Kept:
    """Bring what the ledger tells of since the last time, and take away what is no longer kept.

    Raises WorldError when the depot cannot be reached; what was brought stays, and the next time goes on.
    """
    brought = taken = 0
    needed = _needed(store)
    done, end = depot.marker(home.worker), store.position()[0]
    for record in store.ledger(done):
        if record.kind in CASE_KINDS:
            brought += sum(_bring(home, depot, path, digest) for path, digest in _files(record.facts))
        elif record.kind in (ERASED, PRUNED):
            for case in record.facts["cases"]:  # type: ignore[attr-defined]
                taken += _take_away(store, depot, str(case), needed)
    depot.mark(home.worker, end)
    return Kept(brought, taken)


def restore(home: Home, store: Store, depot: Depot) -> tuple[int, tuple[str, ...]]:
    """Bring back what the home should hold and does not; returns how many, and the paths that are not there either."""
    back, lost = 0, []
    gone = _gone(store)
    for row in store.cases():
        for path, digest in _told(store, row.case) if row.case not in gone else ():
            if (home.root / path).is_file():
                continue
            data = depot.get(digest)
            if data is None:
                lost.append(path)
                continue
            (home.root / path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(home.root / path, data)
            back += 1
    return back, tuple(lost)


def _bring(home: Home, depot: Depot, path: str, digest: str) -> bool:
    try:
        data = (home.root / path).read_bytes()
    except OSError:
        return False  # erased, pruned or made again since; `audit verify` says when it should be there
    if hashlib.sha256(data).hexdigest() != digest:
        return False
    depot.put(data)
    return True


def _take_away(store: Store, depot: Depot, case: str, needed: frozenset[str]) -> int:
    """A case's own files; cards and weights are other cases' too, and so may a mask be: of nothing, or made again."""
    own = [d for path, d in _told(store, case) if path.startswith("reports/") and d not in needed]
    return sum(depot.remove(digest) for digest in own)


def _gone(store: Store) -> frozenset[str]:
    """The cases whose files were erased or pruned."""
    return frozenset(str(c) for _, r in store.of_kinds(ERASED, PRUNED) for c in r.facts["cases"])  # type: ignore[attr-defined]


def _needed(store: Store) -> frozenset[str]:
    """Digests of the files of all other cases."""
    gone = _gone(store)
    if not gone:
        return frozenset()
    return frozenset(d for row in store.cases() if row.case not in gone for _, d in _told(store, row.case))


def _told(store: Store, case: str) -> Iterator[tuple[str, str]]:
    """The files of a case by its last record."""
    records = [record for _, record in store.about(f"case {case}") if record.kind in CASE_KINDS]
    yield from _files(records[-1].facts) if records else ()


def _files(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for path, digest in sorted(facts["files"].items()):
        if path.startswith(KEPT) and not Path(path).is_absolute():
            yield path, str(digest)


class _Away:
    """Turns what a file system raises into a WorldError without its text, which may hold addresses and keys."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise WorldError(f"the depot cannot be reached or written ({type(error).__name__})") from None
