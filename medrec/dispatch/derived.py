"""What lies in the outbox held against the ledger before it leaves: nothing goes that no record tells of.

Objects of a case are in its record, by digest. Accepted objects, matched ones and rejections follow from them and from
records of who accepted, which lesions are known, or why it was taken back: they are made again and compared.
"""

import hashlib
from pathlib import Path

from medrec import objects
from medrec.dispatch.matching import AGREED, PLANNED, tracked
from medrec.events import CASE_KINDS
from medrec.home import Home
from medrec.objects import NotReturnableError, Written
from medrec.store import Store

ACCEPTED, MATCHED, REJECTED = "accepted", "matched", "rejected"


def recorded(store: Store, home: Home, case: str) -> str:
    """Why the objects of a case are not those of its record; "" when they are."""
    records = [r for _, r in store.about(f"case {case}") if r.kind in CASE_KINDS]
    files = records[-1].facts["files"] if records else {}
    assert isinstance(files, dict)
    folder = home.outbox / case
    wanted = {Path(name).name: digest for name, digest in files.items() if Path(name).parent == Path("outbox", case)}
    return _different(folder, wanted)


def derived(store: Store, home: Home, case: str, how: str) -> str:
    """Why accepted objects or rejections (`how`) are not what a record and the case's objects make; "" when they are.

    What was sent is in the record of its delivery, by digest, whatever a later release would make. A kind of folder
    that there is not is a reason too.
    """
    folder = home.outbox / f"{case}-{how}"
    if set(_digests(folder).values()) <= _sent(store, case):
        return ""
    try:
        again = made(store, home, case, how)
    except (NotReturnableError, OSError):
        return "the objects that they were made from are gone or cannot be read"
    if again is None:
        return "no record tells of it"
    return _different(folder, {one.name: one.sha256 for one in again})


def made(store: Store, home: Home, case: str, how: str) -> tuple[Written, ...] | None:
    """What the records make of a case's objects; None when no record asks for it.

    Raises NotReturnableError or OSError when they are gone.
    """
    if how == ACCEPTED and (who := store.accepted(case)) is not None:
        return objects.accept(home.outbox / case, *who, tracked(store, case, AGREED))
    if how == MATCHED and (known := tracked(store, case, PLANNED)):
        return objects.match(home.outbox / case, known)
    if how == REJECTED and (why := store.recalled(case)) is not None:
        return (reject(home, case, *why),)
    return None


def reject(home: Home, case: str, reason: str, at: str) -> Written:
    """The rejection of everything that a case may have sent."""
    return objects.reject(files_of(home, case), reason, case, at)


def files_of(home: Home, case: str) -> list[Path]:
    """Every object of a case that may have left, in any of its words."""
    folders = [folder for folder in home.returned(case) if folder.name != f"{case}-{REJECTED}"]
    return [path for folder in folders for path in sorted(folder.glob("*.dcm"))]


def _different(folder: Path, wanted: dict[str, str]) -> str:
    found = _digests(folder)
    names = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    return f"{', '.join(names)}: not what the ledger tells of" if names else ""


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


def _sent(store: Store, case: str) -> set[str]:
    """Digests of all objects of a case that left."""
    found: set[str] = set()
    for _, record in store.about(f"case {case}"):
        sent = record.facts.get("objects") if record.kind == "delivery" else None
        found |= {str(digest) for digest in sent.values()} if isinstance(sent, dict) else set()
    return found
