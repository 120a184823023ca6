"""Who may decide what: a person's name, public key and roles, as an operator writes them into medrec.yaml.

Owns the settings and their mistakes; signatures are for `signing`, what was in force when for `credentials`.
Invariants: a name is one person, a key is one person's, and who audits decides nothing.
"""

import base64
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from medrec.fields import Frozen

Role = Literal["reviewer", "operator", "promoter", "auditor"]
# RFC 8410: what stands before the 32 bytes of an Ed25519 key in SubjectPublicKeyInfo; PEM holds the same in base64.
SPKI_HEAD = bytes.fromhex("302a300506032b6570032100")
KEY_BYTES = 32
MAX_NAME = 64  # of a person's name in DICOM (PS3.5 6.2, PN), which also forbids the backslash


def name_problem(name: str) -> str:
    """Why this is no name of a person, "" when it is."""
    if not name.strip() or name != name.strip() or len(name) > MAX_NAME or not name.isprintable() or "\\" in name:
        return f"wanted a name of at most {MAX_NAME} printable characters, without a backslash or blanks around it"
    return ""


def _name(name: str) -> str:
    if why := name_problem(name):
        raise ValueError(why)
    return name


def decoded(text: str) -> bytes:
    """The bytes of a base64 text. Raises ValueError for all but its one spelling: spare bits 0 (RFC 4648, 3.5)."""
    data = base64.b64decode(text, validate=True)
    if base64.b64encode(data).decode() != text:
        raise ValueError("base64 that is spelt in another way than it is written")
    return data


def _key(text: str) -> str:
    try:
        data = decoded(text)
    except ValueError:
        data = b""
    if not data.startswith(SPKI_HEAD) or len(data) != len(SPKI_HEAD) + KEY_BYTES:
        raise ValueError("no public Ed25519 key: wanted the line MCowBQYDK2VwAyEA… that medrec review make-key prints")
    return text


class Person(Frozen):
    """One person: `key` is the public one, as the line between the marks of its PEM file."""

    name: Annotated[str, AfterValidator(_name)]
    key: Annotated[str, AfterValidator(_key)]
    roles: tuple[Role, ...] = Field(min_length=1)


def unfit_people(people: Iterable[Person]) -> list[str]:
    """What contradicts itself in a list of people: all of it."""
    every = tuple(people)
    names, keys = Counter(p.name for p in every), Counter(p.key for p in every)
    problems = [f"people: {name} is there {count} times" for name, count in sorted(names.items()) if count > 1]
    problems += [f"people: {p.name} has somebody else's key" for p in every if keys[p.key] > 1]
    problems += [
        f"people: {p.name} audits and is {', '.join(r for r in p.roles if r != 'auditor')}; who audits decides nothing"
        for p in every
        if "auditor" in p.roles and set(p.roles) != {"auditor"}
    ]
    return problems
