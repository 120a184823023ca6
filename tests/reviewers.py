"""People with keys, for tests: the same key for the same name, and answers that they sign."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from medrec.people import Person, Role
from medrec.signing import Signer
from medrec.store import Decision, ReviewRow, Store


def signer(name: str, key: str = "") -> Signer:
    """Somebody with a key of their own; `key` names another one."""
    return Signer(name, Ed25519PrivateKey.from_private_bytes(hashlib.sha256((key or name).encode()).digest()))


def person(name: str, *roles: Role, key: str = "") -> Person:
    return Person(name=name, key=signer(name, key).key, roles=roles or ("reviewer",))


def key_file(folder: Path, one: Signer) -> Path:
    """The private key as its owner keeps it."""
    path = folder / f"{one.name}.key"
    path.write_bytes(one.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


def known(store: Store, people: Iterable[Person], at: str) -> None:
    """Put people on record beside those who are."""
    every = store.register().people | {p.name: p for p in people}
    store.change_people(every.values(), "test", at)


def reported(case: str) -> dict[str, dict[str, str]]:
    """The facts of a case that wrote a report."""
    digests = {name: hashlib.sha256(f"{case} {name}".encode()).hexdigest() for name in ("report.json", "report.html")}
    return {"files": {f"reports/{case}/{name}": digest for name, digest in digests.items()}}


def answer(store: Store, case: str, decision: str, by: str, at: str, comment: str = "") -> ReviewRow:
    """An answer of the right shape to the report of a case as it is on record, not signed yet."""
    records = [r for _, r in store.about(f"case {case}") if r.kind == "case analysed"]
    files = dict(records[-1].facts["files"]) if records else {}  # type: ignore[call-overload]
    report, page = (str(files.get(f"reports/{case}/{n}")) for n in ("report.json", "report.html"))
    return ReviewRow("", case, report, page, Decision(decision), comment, None, by, at)


def sign(store: Store, case: str, decision: str, name: str, at: str, comment: str = "") -> ReviewRow:
    """Sign an answer as a reviewer who is on record."""
    known(store, [person(name)], at)
    return store.sign_review(answer(store, case, decision, name, at, comment), signer(name))


def accept(store: Store, case: str, name: str, at: str) -> ReviewRow:
    return sign(store, case, "accept", name, at)
