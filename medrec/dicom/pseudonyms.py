"""Keyed names for identifiers: what the other rooms know instead of UIDs and patients.

Invariant: a key is private (0600) and never replaced by a new one, because every report hangs on it; rotation adds one
on top of it.
"""

import hashlib
import hmac
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from medrec.errors import WorldError

KEY_BYTES = 32
SHIFT_DAYS = 36_525
PSEUDONYM_DIGITS = 20  # 80 bits: no two of a hospital's UIDs meet by chance


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Keyed names for identifiers: the same for the same key, and telling nothing without it."""

    key: bytes

    def of(self, kind: str, *values: str) -> str:
        """Hexadecimal pseudonym of an identifier; `kind` keeps equal values of different kinds apart."""
        message = "\0".join((kind, *values)).encode("utf-8", "surrogatepass")
        name = hmac.new(self.key[:KEY_BYTES], message, hashlib.sha256).hexdigest()[:PSEUDONYM_DIGITS]
        for start in range(KEY_BYTES, len(self.key), KEY_BYTES):
            name = _renamed(self.key[start : start + KEY_BYTES], name)
        return name

    @property
    def fingerprint(self) -> str:
        """What two hosts compare to see that they have the same key; tells nothing of it."""
        return hmac.new(self.key, b"fingerprint", hashlib.sha256).hexdigest()[:PSEUDONYM_DIGITS]

    def rotated(self) -> "Pseudonyms":
        """With a new key on top: a thief of the old one can no longer compute the names that are used from now on.

        Old keys stay beneath it, so that the name of somebody who is known already follows from the old name alone.
        """
        return Pseudonyms(self.key + secrets.token_bytes(KEY_BYTES))

    def next_name(self, name: str) -> str:
        """What the newest key makes of a name that was given before it."""
        return _renamed(self.key[-KEY_BYTES:], name)

    def shift_days(self, *values: str) -> int:
        """By how many days, up to a hundred years, whatever is told of this patient's days is moved.

        It follows from the first key alone: days that are kept need no new names when the key is rotated.
        """
        message = "\0".join(("day", *values)).encode("utf-8", "surrogatepass")
        return int.from_bytes(hmac.new(self.key[:KEY_BYTES], message, hashlib.sha256).digest()) % SHIFT_DAYS

    def same(self, earlier: str, now: str) -> bool:
        """Whether two names are of one thing, the first given at this key or before some of its rotations."""
        names = [earlier]
        for start in range(KEY_BYTES, len(self.key), KEY_BYTES):
            key = self.key[start : start + KEY_BYTES]
            names = [earlier, *(_renamed(key, name) for name in names)]
        return now in names

    @classmethod
    def load(cls, path: Path) -> "Pseudonyms":
        """Read the key, or make one (0600) where there is none; two that start at once end with one key.

        Raises WorldError when the key can be read by others or is damaged: a new one would orphan every report.
        """
        if not path.exists():
            draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)  # fails where another was first: then theirs is the key
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise WorldError(f"the pseudonym key {path.name} in the home can be read by others: chmod 600 it")
        key = path.read_bytes()
        if not key or len(key) % KEY_BYTES:
            raise WorldError(f"the pseudonym key {path.name} must hold {KEY_BYTES} bytes, has {len(key)}: restore it")
        return cls(key)


def _renamed(key: bytes, name: str) -> str:
    return hmac.new(key, b"renamed\0" + name.encode(), hashlib.sha256).hexdigest()[:PSEUDONYM_DIGITS]
