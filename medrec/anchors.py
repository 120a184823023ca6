"""The ledger's head, signed and left where others can keep it: what was before an anchor cannot be rewritten after it.

An anchor is two files: `000000042-0f3a….json` with the canonical JSON of {"at", "head", "records"}, and beside it
`.sig`, the raw Ed25519 signature of exactly those bytes (RFC 8032), which any tool can check:
`openssl pkeyutl -verify -pubin -inkey KEY.pub -rawin -in ….json -sigfile ….sig`. Files are only ever added, so that
the folder may be write-once. The public key must be kept apart from the home and from the anchors.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from medrec.audit import Problem, canonical
from medrec.errors import ConfigError, WorldError
from medrec.signing import add, load_private, make_key

__all__ = ["check", "make_key", "write"]

MAKE_KEY = "medrec audit make-key"


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
            signature = load_private(key, "anchor_key", MAKE_KEY).sign(body)
            if not path.exists():
                add(path, body)
            add(path.with_suffix(".sig"), signature)
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
