"""Which lesion is which: what a person, or a comparison with priors, has said on the record.

The ledger's records are all there is: a lesion is known from before because a record says so, and no more when a later
one takes that back. Invariants: both lesions are of one patient; a lesion is one earlier lesion at most, and of the
lesions of one case no two are the same; nothing leads in a circle.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from medrec.errors import DataError
from medrec.events import MATCHED
from medrec.store.cases import Cases

LIFTED = "match lifted"


@dataclass(frozen=True, slots=True, order=True)
class Lesion:
    """A lesion by its case and its number there, from 1."""

    case: str
    number: int

    def __str__(self) -> str:
        return f"lesion {self.number} of case {self.case[:12]}"


class Matches(Cases):
    """What the store knows of lesions that are the same."""

    def match(self, lesion: Lesion, same_as: Lesion, by: str, why: str, at: str) -> None:
        """Note that `lesion` is `same_as`, which was known before, and is tracked as that from now on.

        Raises DataError when that contradicts what was said before, or they are of two patients.
        """
        if problem := self._contradiction(lesion, same_as):
            raise DataError(f"{lesion} cannot be {same_as}: {problem}")
        facts: dict[str, object] = {"case": lesion.case, "lesion": lesion.number, "by": by, "why": why}
        self.append(MATCHED, at, facts | {"same_case": same_as.case, "same_lesion": same_as.number})

    def lift_match(self, lesion: Lesion, by: str, why: str, at: str) -> None:
        """Take back that a lesion is known from before. Raises DataError when nobody said so."""
        if lesion.number not in self.matches(lesion.case):
            raise DataError(f"{lesion} is not matched with another")
        self.append(LIFTED, at, {"case": lesion.case, "lesion": lesion.number, "by": by, "why": why})

    def matches(self, case: str, before: int | None = None) -> Mapping[int, Lesion]:
        """The earlier lesion that each matched lesion of a case is, by number; by the records before `before`."""
        found: dict[int, Lesion] = {}
        for position, record in self.about(f"case {case}"):
            facts = record.facts
            if record.kind not in (MATCHED, LIFTED) or facts["case"] != case:
                continue
            if before is not None and position >= before:
                break
            number = int(str(facts["lesion"]))
            found.pop(number, None)
            if record.kind == MATCHED:
                found[number] = Lesion(str(facts["same_case"]), int(str(facts["same_lesion"])))
        return found

    def origin(self, lesion: Lesion, before: int | None = None) -> Lesion:
        """The lesion under whose tracking UID one is tracked, itself without a match (before `before`)."""
        earlier = self.matches(lesion.case, before).get(lesion.number)
        return lesion if earlier is None else self.origin(earlier, before)

    def _contradiction(self, lesion: Lesion, same_as: Lesion) -> str:
        rows = [self.case(one.case) for one in (lesion, same_as)]
        if rows[0] is None or rows[1] is None:
            return "there is no such case"
        if rows[0].patient != rows[1].patient:
            return "they are of two patients"
        if lesion.case == same_as.case:
            return "they are of one case"
        origin, known = self.origin(same_as), self.matches(lesion.case)
        if origin.case == lesion.case:
            return "that one is known from this case"
        if lesion.number in known:
            return f"it is {known[lesion.number]} already; take that back first"
        taken = [n for n, other in known.items() if self.origin(other) == origin]
        return f"lesion {taken[0]} of the same case is that one already" if taken else ""
