"""The ledger's head, signed and left where others can keep it: what was before an anchor cannot be rewritten after it.

An anchor is two files: `000000042-0f3a….json` with the canonical JSON of {"at", "head", "records"}, and beside it
`.sig`, the raw Ed25519 signature of exactly those bytes (RFC 8032), which any tool can check:
`openssl pkeyutl -verify -pubin -inkey KEY.pub -rawin -in ….json -sigfile ….sig`. Files are only ever added, so that
the folder may be write-once. The public key must be kept apart from the home and from the anchors.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from medrec.audit import Problem, canonical
from medrec.errors import ConfigError, WorldError


def make_key(path: Path) -> Path:
    """Make a key pair: the private key at `path` (0600), the public one beside it as .pub; returns the latter's path.

    Raises ConfigError when there is a file already: a new key would make older anchors unverifiable.
    """
    key, public = Ed25519PrivateKey.generate(), path.with_name(path.name + ".pub")
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        _add(path, secret)
        _add(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except FileExistsError as error:
        raise ConfigError([f"{error.filename} is there already; older anchors need it, choose another name"]) from None
    except OSError as error:
        raise WorldError(f"the key cannot be written: {os.strerror(error.errno or 0)}") from None
    return public


def write(folder: Path, key: Path, position: tuple[int, str], at: str) -> Path:
    """Leave an anchor for the ledger's end (number of records, head); returns its path, an older one's if it is there.

    Raises ConfigError when the key is no private Ed25519 key of one's own, WorldError when nothing can be written.
    """
    records, head = position
    path = folder / f"{records:09d}-{head[:12]}.json"
    body = canonical({"at": at, "head": head, "records": records})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.with_suffix(".sig").exists():
            body = path.read_bytes() if path.exists() else body  # a killed night left it unsigned
            signature = _private(key).sign(body)
            if not path.exists():
                _add(path, body)
            _add(path.with_suffix(".sig"), signature)
    except FileExistsError:
        pass  # another worker anchored the same head
    except OSError as error:
        raise WorldError(f"the anchor cannot be written: {os.strerror(error.errno or 0)}") from None
    return path


def check(folder: Path, public_key: Path, digest_of: Callable[[int], str | None]) -> Iterator[Problem]:
    """What of the ledger contradicts the anchors in a folder; `digest_of` gives a record's digest by its number.

    Raises ConfigError when folder or key cannot be used, or there is no anchor at all.
    """
    try:
        key = load_pem_public_key(public_key.read_bytes())
    except (OSError, ValueError):
        raise ConfigError([f"--public-key: {public_key} is no public key in PEM"]) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError([f"--public-key: {public_key} is no Ed25519 key"])
    found = sorted(folder.glob("*-*.json"))
    if not found:
        raise ConfigError([f"--anchors: there is no anchor in {folder}"])
    for path in found:
        where = f"anchor {path.stem}"
        try:
            body = path.read_bytes()
            key.verify(path.with_suffix(".sig").read_bytes(), body)
            told = json.loads(body)
            records, head = int(told["records"]), str(told["head"])
        except InvalidSignature:
            yield Problem(where, "it was not signed with this key, or was changed")
            continue
        except (OSError, ValueError, KeyError, TypeError):
            yield Problem(where, "it or its signature is gone or cannot be read")
            continue
        now = digest_of(records)
        if records and now != head:
            what = "was cut off" if now is None else "is another one now"
            yield Problem(where, f"record {records} of the ledger {what}: the ledger was rewritten")


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError([f"anchor_key: {path.name} can be read by others: chmod 600 it"])
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise ConfigError([f"anchor_key: {path.name} is not there or no private key (medrec audit make-key)"]) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError([f"anchor_key: {path.name} is no Ed25519 key (medrec audit make-key)"])
    return key


def _add(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
