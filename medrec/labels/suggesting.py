"""What to label next for a card, from what is kept of its cases: no pixels are read.

Invariants: what is labelled, superseded or refused is not suggested; who is locked for tests only to who labels blind,
because a suggestion is made with sight of a model's answer and a locked patient's label must not be.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from medrec.choice import Candidate, Chosen, choose
from medrec.errors import DataError
from medrec.report import Status
from medrec.splits import Side
from medrec.store import SeenCase, ShadowRow, Store


@dataclass(frozen=True, slots=True)
class Suggested:
    """What to label, with its study; `locked` says that the patient is, and only a blind label counts."""

    chosen: Chosen
    study: str
    locked: bool


@dataclass(frozen=True, slots=True)
class Suggestions:
    """For one card; `left_out` are cases of it of which nothing is kept: they are from before it was."""

    card: str
    suggested: tuple[Suggested, ...]
    candidates: int
    labelled: int
    left_out: int


def suggest(store: Store, card: str, count: int, *, blind: bool = False) -> Suggestions:
    """At most `count` cases of a card, the most telling first. Raises DataError when it has no cases."""
    cases = {r.case: r for r in store.cases() if _counts(r.model, r.status, r.superseded_by, card)}
    if not cases:
        raise DataError(f"no case of {card} is analysed here: there is nothing to choose from")
    known = [one for one in store.observed() if one.row.case in cases]
    labelled = {label.study for label in store.labels(card)}
    sides = store.sides()
    locked = {patient for patient, side in sides.items() if side is not Side.TRAINING}
    shadowed = {row.study: row for row in store.shadows()}
    free = [one for one in known if one.row.study not in labelled and (blind or one.row.patient not in locked)]
    candidates = [_candidate(one, shadowed.get(one.row.study)) for one in free]
    taught = [one.observed.values for one in known if one.row.study in labelled]
    chosen = choose(candidates, taught, count)
    rows = {one.row.case: one.row for one in free}
    suggested = (Suggested(c, rows[c.candidate.case].study, rows[c.candidate.case].patient in locked) for c in chosen)
    return Suggestions(card, tuple(suggested), len(free), len(taught), len(cases) - len(known))


def _counts(model: str | None, status: Status, superseded_by: str | None, card: str) -> bool:
    return model == card and status is Status.ANALYSED and superseded_by is None


def _candidate(one: SeenCase, shadow: ShadowRow | None) -> Candidate:
    doubts = _doubts(one.observed.values)
    if shadow is not None:
        changed = shadow.facts["verdict"][0] != shadow.facts["verdict"][1]
        overlap = shadow.facts["dice"]
        if changed:
            doubts["champion and challenger give another verdict"] = 1.0
        elif overlap is not None:
            doubts[f"champion and challenger overlap by a Dice of {overlap:.2f}"] = 1 - overlap
    return Candidate(one.row.case, one.row.patient, one.observed.values, doubts)


def _doubts(values: Mapping[str, float]) -> dict[str, float]:
    """In what the networks disagree, from 0 to 1, by what to call it."""
    told = {}
    if (apart := values.get("networks disagree")) is not None:
        told[f"the networks that outline overlap by a Dice of {1 - apart:.2f}"] = apart
    if (otherwise := values.get("slices called otherwise")) is not None:
        told[f"{otherwise:.0%} of the slices are called otherwise than they are outlined"] = otherwise
    if not told and (unclear := values.get("unclear outline")) is not None:
        told[f"{unclear:.0%} of the outline is unclear"] = unclear / 2
    return told
