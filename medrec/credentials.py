"""Who had which key and which roles at each record of the ledger, and whether what was signed was theirs to sign.

Owns `Register`, which is folded from records alone: what the configuration says later changes nothing of what was
signed before. Invariants: a key that once was one person's is never another's; once an operator is on record, people
change only by an operator's signature; a signature counts once.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from medrec.audit import AuditRecord, Problem, canonical
from medrec.people import Person, Role
from medrec.signing import fits

CHANGED, REVIEW, PROMOTED, AUDITED, ACCEPTED = (
    "people changed", "review", "model promoted", "ledger audited", "case accepted",
)  # fmt: skip
# What must be signed, and by whom: a promotion once somebody promotes, a change of people once somebody operates.
ROLE_FOR: Mapping[str, Role] = {
    REVIEW: "reviewer", PROMOTED: "promoter", AUDITED: "auditor", CHANGED: "operator",
}  # fmt: skip
ALWAYS = frozenset({REVIEW, AUDITED})
KINDS = (CHANGED, REVIEW, PROMOTED, AUDITED, ACCEPTED)


@dataclass(frozen=True, slots=True)
class Register:
    """The people on record by name, and whose each key was that ever stood there."""

    people: Mapping[str, Person] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[AuditRecord]) -> "Register":
        """As the records leave it; one that is spoilt is left out, and for `check` to name."""
        register = cls()
        for record in records:
            with suppress(ValueError):
                if record.kind == CHANGED and not register.unfit(CHANGED, record.at, record.facts):
                    register = register.after(record.facts)
        return register

    @property
    def digest(self) -> str:
        """What a change names as the state that it changes."""
        return hashlib.sha256(canonical(_listed(self.people.values()))).hexdigest()

    def has(self, role: Role) -> bool:
        """Whether anybody has a role."""
        return any(role in person.roles for person in self.people.values())

    def must_sign(self, kind: str) -> bool:
        """Whether a record of this kind needs a signature now."""
        return kind in ALWAYS or self.has(ROLE_FOR[kind])

    def change(self, people: Iterable[Person]) -> dict[str, object]:
        """The facts of a record that puts these people in the place of those on record; `by` is still to come."""
        listed = _listed(people)
        digest = hashlib.sha256(canonical(listed)).hexdigest()
        return {"before": self.digest, "people": listed, "register": digest}

    def after(self, facts: Mapping[str, object]) -> "Register":
        """With the people of a record of their change."""
        people = _people(facts)
        return Register({p.name: p for p in people}, {**self.owners, **{p.key: p.name for p in people}})

    def unfit(self, kind: str, at: str, facts: Mapping[str, object]) -> str:
        """Why a record may not stand here, "" when it may: who signed it, with which key, in which role."""
        if kind == CHANGED and (why := self._unfit_change(facts)):
            return why
        if not self.must_sign(kind) and "signature" not in facts:
            return ""
        name, role = str(facts.get("by")), ROLE_FOR[kind]
        if "signature" not in facts:
            return f"no {role} signed it"
        person = self.people.get(name)
        if person is None:
            return f"nobody called {name} is on record"
        if facts.get("key") != person.key:
            return f"it was signed with another key than that of {name}"
        if role not in person.roles:
            return f"{name} is no {role}"
        return "" if fits(kind, at, facts) else "its signature does not fit what it says"

    def _unfit_change(self, facts: Mapping[str, object]) -> str:
        if facts.get("before") != self.digest:
            return "it does not change the people who were on record"
        try:
            people = _people(facts)
        except (KeyError, TypeError, ValueError):
            return "it lists no people"
        for person in people:
            if self.owners.get(person.key, person.name) != person.name:
                return f"the key of {person.name} was {self.owners[person.key]}'s before; a key stays one person's"
        return ""


def check(records: Iterable[tuple[int, AuditRecord]]) -> Iterator[Problem]:
    """Every record that its signer may not have signed, or did not; all records in order, with their numbers.

    A record that is spoilt is left out: the chain names it.
    """
    register, seen = Register(), set[object]()
    accepts = set[tuple[object, object, str]]()
    for number, record in records:
        try:
            where, facts = f"record {number}", record.facts
        except ValueError:
            continue
        if record.kind not in KINDS:
            continue
        if record.kind == ACCEPTED:
            if (facts.get("case"), facts.get("by"), record.at) not in accepts:
                yield Problem(where, f"no signed review of case {str(facts.get('case'))[:12]}… accepts it")
            continue
        why = register.unfit(record.kind, record.at, facts)
        if not why and (signature := facts.get("signature")) is not None:
            why = "its signature was used before" if signature in seen else ""
            seen.add(signature)
        if why:
            yield Problem(where, f"a {record.kind!r} that does not count: {why}")
        elif record.kind == CHANGED:
            register = register.after(facts)
        elif record.kind == REVIEW and facts.get("decision") == "accept":
            accepts.add((facts.get("case"), facts.get("by"), record.at))


def _listed(people: Iterable[Person]) -> list[dict[str, object]]:
    ordered = sorted(people, key=lambda p: p.name)
    return [{"name": p.name, "key": p.key, "roles": sorted(p.roles)} for p in ordered]


def _people(facts: Mapping[str, object]) -> tuple[Person, ...]:
    """Raises ValueError (pydantic's too) and TypeError for what are no people."""
    listed = facts["people"]
    if not isinstance(listed, list):
        raise TypeError("no list")
    return tuple(Person.model_validate(one) for one in listed)
