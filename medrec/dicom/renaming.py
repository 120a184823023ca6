"""Which pseudonym was which before the key was rotated: kept encrypted, readable with the key alone.

Owns `renamed` in the home: the newest name to the first one of every study and patient that a rotation renamed.
Encrypted and authenticated with Fernet (AES-128-CBC and HMAC-SHA256) under a key that HKDF (RFC 5869) derives from the
pseudonyms' key.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medrec.errors import WorldError

NAME = "renamed"


@dataclass(frozen=True, slots=True)
class Renamed:
    """First names by newest names."""

    first: Mapping[str, str]

    def original(self, name: str) -> str:
        """The first pseudonym of what is called `name` now."""
        return self.first.get(name, name)

    def after(self, steps: Mapping[str, str]) -> "Renamed":
        """With a rotation on top; `steps` are new names by old names."""
        return Renamed({new: self.original(old) for old, new in steps.items()})

    @classmethod
    def load(cls, root: Path, key: Path) -> "Renamed":
        """The mapping of a home; empty when its key was never rotated. Raises WorldError when it cannot be read."""
        path = root / NAME
        if not path.exists():
            return cls({})
        try:
            return cls(json.loads(_cipher(key.read_bytes()).decrypt(path.read_bytes())))
        except (InvalidToken, OSError):
            raise WorldError(f"the mapping {NAME} in the home does not fit the key: restore both") from None

    def encrypted(self, key: bytes) -> bytes:
        """The bytes of the file under this key of pseudonyms."""
        return _cipher(key).encrypt(json.dumps(dict(self.first), sort_keys=True).encode())


def _cipher(key: bytes) -> Fernet:
    derived = HKDF(SHA256(), 32, salt=None, info=b"medrec renamed").derive(key)
    return Fernet(base64.urlsafe_b64encode(derived))
