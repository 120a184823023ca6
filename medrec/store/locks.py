"""Sides of patients and uses of the locked ones: written once, with a ledger record, never taken back.

A row of `sides` is inserted and afterwards changes only to "apart", which ends its use for training and tests alike.
"""

from collections.abc import Mapping

import sqlalchemy as sa

from medrec.audit import salted
from medrec.events import DIVIDED, PATIENT
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
        salts = {p: self.salt(p) for p in sides}

        def write(tail: Tail) -> int:
            rows = tail.connection.execute(sa.select(SIDES.c.patient, SIDES.c.side))
            known = {str(r.patient): Side(r.side) for r in rows}
            new = {p: s for p, s in sides.items() if p not in known or (s is Side.APART and known[p] is not s)}
            if not new:
                return 0
            told = {s.value: sorted(salted(salts[p], PATIENT) for p, v in new.items() if v is s) for s in Side}
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

    def uses(self, model: str, besides: str = "") -> tuple[int, float]:
        """How often the locked patients were used to decide on a model of this name, and the alpha that this spent.

        A use for the card `besides` does not count: it was noted, and a kill left it without an answer.
        """
        uses = [r.facts for _, r in self.about(f"model {model}") if r.kind == USED and r.facts["card"] != besides]
        return len(uses), sum(float(str(u["alpha"])) for u in uses)

    def use(self, model: str, card: str, patients: tuple[str, ...], alpha: float, by: str, at: str) -> int:
        """Note one use before its answer is known; returns how many there were before it.

        Raises DataError when `card` was not trained on record.
        """
        before, _ = self.uses(model)
        told = sorted(salted(self.salt(p), PATIENT) for p in patients)
        facts = {"model": model, "card": card, "patients": told, "use": before + 1, "alpha": f"{alpha:.6g}", "by": by}
        self.append(USED, at, facts)
        return before
