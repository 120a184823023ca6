"""What people answered to reports, as the store hands it out, and where a case stands by its answers.

Pure. An answer is signed, or was typed by anybody (`claimed`); only signed ones decide. Invariants: of each person the
last answer counts; of signed answers that differ none does; what is claimed changes nothing of what was signed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from medrec.audit import salted


class Decision(StrEnum):
    """What a reviewer decided; a claim may also take itself back, or say what nobody understands."""

    ACCEPT = "accept"
    REJECT = "reject"
    EDIT = "edit"
    WITHDRAWN = "withdrawn"
    UNKNOWN = "unknown"


DECIDED = (Decision.ACCEPT, Decision.REJECT, Decision.EDIT)
WORDS: Mapping[Decision, str] = {
    Decision.ACCEPT: "accepted", Decision.REJECT: "rejected", Decision.EDIT: "needs-edit",
    Decision.UNKNOWN: "not understood",
}  # fmt: skip
UNREVIEWED = "unreviewed"


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """One answer. `report` and `page` are the SHA-256 of report.json and report.html as they were read.

    `key` and `signature` are None for one that was only claimed; `problem` says then why it is no answer.
    """

    review: str
    case: str
    report: str
    page: str
    decision: Decision
    comment: str
    mask_sha256: str | None
    by: str
    at: str
    key: str | None = None
    signature: str | None = None
    problem: str = ""

    @property
    def signed(self) -> bool:
        """Whether its signer is known, instead of claimed."""
        return self.signature is not None

    @property
    def by_tag(self) -> bool:
        """Whether it is a claim of MLflow's tags, which tell of no page; `medrec review` tells which one it read."""
        return not self.signed and not self.page


@dataclass(frozen=True, slots=True)
class ReviewState:
    """Where a case stands: `word` is unreviewed, accepted, rejected, needs-edit or not understood.

    `signed` says that it decides; `conflict` why somebody should look, "" where nobody need. `by` and `at` are of the
    answer that counts, "" while there is none.
    """

    case: str
    word: str = UNREVIEWED
    signed: bool = False
    by: str = ""
    at: str = ""
    conflict: str = ""

    @property
    def shown(self) -> str:
        """In one line of our own words, for MLflow: a name only where a signature shows that it is that person's."""
        if self.word == UNREVIEWED:
            return self.word
        said = f"{self.word}, signed by {self.by}" if self.signed else f"{self.word}, claimed: nobody signed it"
        return f"{said} ({self.conflict})" if self.conflict else said


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """A label that is asked for: `wants` is "blind", or "any" that is not the network's own answer."""

    request: str
    case: str
    study: str
    patient: str
    card: str
    wants: str
    why: str
    by: str
    at: str


def standing(case: str, rows: Iterable[ReviewRow]) -> ReviewState:
    """Where a case stands by its answers, given in their order."""
    signed: list[ReviewRow] = []
    claimed: list[ReviewRow] = []
    for row in rows:
        if row.signed:
            signed.append(row)
        elif row.decision is Decision.WITHDRAWN:  # a tag takes back what tags said of that person, and nothing else
            claimed = [r for r in claimed if not r.by_tag or r.by != row.by]
        else:
            claimed.append(row)
    signed, claimed = _last_of_each(signed), _last_of_each(claimed)
    if signed:
        return _decided(case, signed, claimed)
    if not claimed:
        return ReviewState(case)
    last = claimed[-1]
    conflict = last.problem
    if not conflict and len({r.decision for r in claimed}) > 1:
        conflict = "answers that differ"
    return ReviewState(case, WORDS[last.decision], False, last.by, last.at, conflict)


def _last_of_each(rows: Iterable[ReviewRow]) -> list[ReviewRow]:
    """The last answer of each person, the last one of all last."""
    found: dict[str, ReviewRow] = {}
    for row in rows:
        found.pop(row.by, None)
        found[row.by] = row
    return list(found.values())


def _decided(case: str, signed: list[ReviewRow], claimed: list[ReviewRow]) -> ReviewState:
    last, decisions = signed[-1], {r.decision for r in signed}
    if len(decisions) > 1:
        careful = next(d for d in (Decision.REJECT, Decision.EDIT) if d in decisions)
        last = next(r for r in reversed(signed) if r.decision is careful)
        conflict = "signed answers that differ"
    else:
        other = bool(claimed) and (claimed[-1].decision is not last.decision or bool(claimed[-1].problem))
        conflict = "a tag says something else" if other else ""
    return ReviewState(case, WORDS[last.decision], True, last.by, last.at, conflict)


def signed_facts(row: ReviewRow, salt: str) -> dict[str, object]:
    """What a signature covers: comment and mask are keyed, because the one may hold a name, the other a patient."""
    facts: dict[str, object] = {n: getattr(row, n) for n in ("case", "report", "page", "by")}
    mask = "" if row.mask_sha256 is None else salted(salt, row.mask_sha256)
    return facts | {"decision": row.decision.value, "comment": salted(salt, row.comment), "mask": mask}


def sealed(row: ReviewRow, salt: str) -> dict[str, object]:
    """What the record of an answer says, so that a changed row is noticed: also where it says what none can say."""
    if row.signed:
        odd = {"problem": row.problem} if row.problem else {}
        return {**signed_facts(row, salt), "review": row.review, "key": row.key, "signature": row.signature, **odd}
    said = salted(salt, "\0".join((row.decision, row.by, row.comment, row.report, row.page)))
    facts: dict[str, object] = {"case": row.case, "review": row.review, "decision": row.decision.value}
    odd = {name: getattr(row, name) for name in ("key", "mask_sha256") if getattr(row, name) is not None}
    return {**facts, "said": said, "problem": row.problem, **odd}
