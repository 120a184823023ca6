"""What is kept of cases in numbers, and what challengers said beside champions."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from medrec import audit, events
from medrec.audit import Problem, salted
from medrec.observed import Observed
from medrec.store.cases import Cases, digest_of_observed
from medrec.store.rows import CaseRow
from medrec.store.session import Tail
from medrec.store.tables import CASES, OBSERVED, SALTS, SHADOWS

SHADOW_DIGITS = 24  # 96 bits: no two share a name by chance


@dataclass(frozen=True, slots=True)
class SeenCase:
    """A case with what is kept of it; `number` is that of its record."""

    number: int
    row: CaseRow
    observed: Observed


@dataclass(frozen=True, slots=True)
class ShadowRow:
    """What the version `card` said of a study in a night, beside the version `beside`; `facts` are numbers."""

    study: str
    patient: str
    card: str
    beside: str
    batch: str
    at: str
    facts: Mapping[str, Any]

    @property
    def id(self) -> str:
        """One for each study and version."""
        return hashlib.sha256(f"{self.study} {self.card}".encode()).hexdigest()[:SHADOW_DIGITS]


class Watched(Cases):
    """What the store knows for those who look whether something changed."""

    def observed(self) -> tuple[SeenCase, ...]:
        """Every case that something is kept of, in the order in which they were finished."""
        cases = {row.case: row for row in self.cases()}
        query = sa.select(CASES.c.seq, OBSERVED).join(OBSERVED, OBSERVED.c.case == CASES.c.case)
        rows = [row._mapping for row in self._rows(query.order_by(CASES.c.seq))]
        return tuple(SeenCase(r["seq"], cases[r["case"]], _observed(r)) for r in rows if r["case"] in cases)

    def add_shadow(self, row: ShadowRow, original: Callable[[str], str] = str) -> bool:
        """Note what a challenger said of a study, with a record; False when it was noted before.

        Raises DataError when the study is unknown here.
        """
        salt = self.salt(row.patient)

        def write(tail: Tail) -> bool:
            if tail.connection.execute(sa.select(SHADOWS.c.id).where(SHADOWS.c.id == row.id)).first() is not None:
                return False
            tail.add(events.SHADOWED, row.at, sealed_shadow(row, salt, original))
            values = {name: getattr(row, name) for name in ShadowRow.__slots__}
            values |= {"id": row.id, "facts": _text(row.facts), "seq": tail.number}
            tail.connection.execute(sa.insert(SHADOWS).values(values))
            return True

        return self._extend(write)

    def shadows(self, card: str | None = None) -> tuple[ShadowRow, ...]:
        """What challengers said, or one of them, oldest first."""
        where = sa.true() if card is None else SHADOWS.c.card == card
        return tuple(_shadow(row) for row in self._rows(sa.select(SHADOWS).where(where).order_by(SHADOWS.c.seq)))

    def unlike(
        self,
        observed: Mapping[str, object],
        shadowed: Mapping[int, Mapping[str, object]],
        original: Callable[[str], str],
    ) -> Iterator[Problem]:
        """Rows that are not what their records say: `observed` digests by case, `shadowed` facts by number."""
        yield from self._observed_unlike(observed, original)
        rows = {}
        query = sa.select(SHADOWS, SALTS.c.salt).outerjoin(SALTS, SALTS.c.patient == SHADOWS.c.patient)
        for row in self._rows(query):
            rows[int(row._mapping["seq"])] = sealed_shadow(_shadow(row), str(row._mapping["salt"]), original)
        for number in sorted(rows.keys() | shadowed.keys()):
            if number not in rows:
                yield Problem(f"record {number}", "what a challenger said is not in the store any more")
            elif rows[number] != shadowed.get(number):
                yield Problem(f"record {number}", "what a challenger said was changed in the store")

    def _observed_unlike(self, told: Mapping[str, object], original: Callable[[str], str]) -> Iterator[Problem]:
        query = sa.select(OBSERVED, SALTS.c.salt).join(CASES, CASES.c.case == OBSERVED.c.case)
        found = {}
        for row in self._rows(query.outerjoin(SALTS, SALTS.c.patient == CASES.c.patient)):
            salt = str(row._mapping["salt"])
            found[str(row._mapping["case"])] = digest_of_observed(_observed(row._mapping), salt, original)
        for case in sorted(found.keys() | told.keys()):
            if case not in found:
                yield Problem(f"case {case[:12]}…", "the numbers that are kept of it are not in the store any more")
            elif found[case] != told.get(case):
                yield Problem(f"case {case[:12]}…", "the numbers that are kept of it were changed in the store")


def sealed_shadow(row: ShadowRow, salt: str, original: Callable[[str], str]) -> dict[str, object]:
    """What the record says of a challenger's answer, so that a changed row is noticed."""
    study = original(row.study)
    said = hashlib.sha256(audit.canonical([study, row.batch, row.at, _text(row.facts)])).hexdigest()
    keyed = {"study": salted(salt, study), "said": salted(salt, said)}
    return {"card": row.card, "beside": row.beside, "batch": row.batch, **keyed}


def _text(facts: Mapping[str, Any]) -> str:
    return json.dumps(dict(facts), sort_keys=True, allow_nan=False)


def _observed(row: Mapping[Any, Any]) -> Observed:
    return Observed(str(row["site"]), str(row["device"]), str(row["scanner"]), json.loads(row["numbers"]))


def _shadow(row: "sa.Row[tuple[object, ...]]") -> ShadowRow:
    values = {name: row._mapping[name] for name in ShadowRow.__slots__}
    return ShadowRow(**values | {"facts": json.loads(str(values["facts"]))})
