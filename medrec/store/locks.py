"""Sides of patients and uses of the locked ones: written once, with a ledger record, never taken back.

A row of `sides` is inserted and afterwards changes only to "apart", which ends its use for training and tests alike.
"""

from collections.abc import Iterable, Mapping
from typing import cast

import sqlalchemy as sa

from medrec.audit import salted
from medrec.events import DIVIDED, PATIENT
from medrec.gate import Use
from medrec.splits import Side
from medrec.store.cases import Cases
from medrec.store.session import Tail
from medrec.store.tables import SIDES

USED, DECLARED = "test set used", "gate declared"


class Locks(Cases):
    """What the store knows of sides."""

    def sides(self) -> dict[str, Side]:
        """The side of every patient who has one."""
        return {str(r.patient): Side(r.side) for r in self._rows(sa.select(SIDES.c.patient, SIDES.c.side))}

    def divide(self, model: str, sides: Mapping[str, Side], by: str, at: str) -> int:
        """Give patients their sides, with one record of who was locked; returns how many are new or stand apart now.

        Who has a side keeps it, whatever `sides` says, unless that is "apart".
        """
        names = self.keyed(sides)

        def write(tail: Tail) -> int:
            rows = tail.connection.execute(sa.select(SIDES.c.patient, SIDES.c.side))
            known = {str(r.patient): Side(r.side) for r in rows}
            new = {p: s for p, s in sides.items() if p not in known or (s is Side.APART and known[p] is not s)}
            if not new:
                return 0
            told = {s.value: sorted(names[p] for p, v in new.items() if v is s) for s in Side}
            tail.add(DIVIDED, at, {"model": model, "by": by, "patients": told})
            for patient, side in sorted(new.items()):
                if patient in known:
                    where = SIDES.c.patient == patient
                    tail.connection.execute(sa.update(SIDES).where(where).values(side=side.value))
                else:
                    row = {"patient": patient, "side": side.value, "at": at, "seq": tail.number}
                    tail.connection.execute(sa.insert(SIDES).values(row))
            return len(new)

        return self._extend(write)

    def uses(self, model: str, besides: str = "") -> tuple[Use, ...]:
        """Every use of locked patients to decide on a model of this name, the oldest first.

        One for the card `besides` is left out: it was noted, and a kill left it without an answer.
        """
        found = [r.facts for _, r in self.about(f"model {model}") if r.kind == USED and r.facts["card"] != besides]
        return tuple(Use(frozenset(cast(list[str], f["patients"])), float(str(f["alpha"]))) for f in found)

    def keyed(self, patients: Iterable[str]) -> dict[str, str]:
        """What the ledger calls patients, by their names here."""
        return {p: salted(self.salt(p), PATIENT) for p in patients}

    def use(self, model: str, card: str, patients: Iterable[str], number: int, alpha: float, by: str, at: str) -> None:
        """Note one use before its answer is known; `number` counts those of the same locked patients from 1."""
        told = sorted(self.keyed(patients).values())
        facts = {"model": model, "card": card, "patients": told, "use": number, "alpha": f"{alpha:.6g}", "by": by}
        self.append(USED, at, facts)
