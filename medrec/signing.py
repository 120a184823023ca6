"""Signatures of people: key files, the bytes that are signed, and whether a signature fits what a record says.

Ed25519 (RFC 8032) by `cryptography`. Owns `SIGNED`: which facts of a record a signature covers. Invariants: equal facts
are equal bytes; a signature of one kind of record is none of another; what is signed can be told from the record alone,
years later, with the key that stands in it.
"""

import base64
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from medrec.audit import canonical
from medrec.errors import ConfigError, WorldError
from medrec.people import SPKI_HEAD, decoded

# The facts that a signature covers, beside kind and time. Comment and mask are keyed with the patient's salt.
SIGNED: Mapping[str, tuple[str, ...]] = {
    "review": ("case", "report", "page", "decision", "comment", "mask", "by"),
    "people changed": ("before", "people", "by"),
    "model promoted": ("card", "model", "why", "by"),
    "ledger audited": ("head", "records", "by"),
}
REVIEW_KEY = "medrec review make-key"


@dataclass(frozen=True, slots=True)
class Signer:
    """A person at the keyboard, with the private key that shows who it is."""

    name: str
    private: Ed25519PrivateKey

    @classmethod
    def load(cls, name: str, path: Path, option: str = "--key") -> "Signer":
        """Raises ConfigError when the file is no private key of one's own."""
        return cls(name, load_private(path, option, REVIEW_KEY))

    @property
    def key(self) -> str:
        """The public key, as it stands in medrec.yaml."""
        return public_text(self.private)

    def sign(self, kind: str, at: str, facts: Mapping[str, object]) -> dict[str, object]:
        """The facts with who signed them; `by` is this person."""
        told = {**facts, "by": self.name}
        signature = base64.b64encode(self.private.sign(statement(kind, at, told))).decode()
        return {**told, "key": self.key, "signature": signature}


def statement(kind: str, at: str, facts: Mapping[str, object]) -> bytes:
    """The bytes that are signed: canonical JSON of the kind, the time (ISO-8601 UTC) and the facts that it covers."""
    covered = {name: facts.get(name) for name in SIGNED[kind]}
    return canonical({"medrec": kind, "at": at, "facts": covered})


def fits(kind: str, at: str, facts: Mapping[str, object]) -> bool:
    """Whether the signature in a record's facts is one of what they say, by the key that stands in them.

    Each has one spelling: a signature that counts once is found again by its text.
    """
    try:
        key, signature = decoded(str(facts["key"])).removeprefix(SPKI_HEAD), decoded(str(facts["signature"]))
        Ed25519PublicKey.from_public_bytes(key).verify(signature, statement(kind, at, facts))
    except (InvalidSignature, KeyError, TypeError, ValueError):
        return False
    return True


def public_text(private: Ed25519PrivateKey) -> str:
    """The public half of a key in one line."""
    data = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(data).decode()


def make_key(path: Path) -> Path:
    """Make a key pair: the private key at `path` (0600), the public one beside it as .pub; returns the latter's path.

    Raises ConfigError when there is a file already: what the older key signed could not be told any more.
    """
    key, public = Ed25519PrivateKey.generate(), path.with_name(path.name + ".pub")
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        if path.exists():
            raise FileExistsError(0, "", str(path))
        add(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        add(path, secret)
    except FileExistsError as error:
        raise ConfigError([f"{error.filename} is there already; older signatures need it, choose another"]) from None
    except OSError as error:
        raise WorldError(f"the key cannot be written: {os.strerror(error.errno or 0)}") from None
    return public


def load_private(path: Path, option: str, how: str) -> Ed25519PrivateKey:
    """A private key of one's own; `option` names it in mistakes, `how` makes one. Raises ConfigError."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError([f"{option}: {path.name} can be read by others: chmod 600 it"])
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise ConfigError([f"{option}: {path.name} is not there or no private key ({how})"]) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError([f"{option}: {path.name} is no Ed25519 key ({how})"])
    return key


def add(path: Path, data: bytes) -> None:
    """Write a new file (0600), whole. Raises FileExistsError and OSError."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
