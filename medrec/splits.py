"""On which side a patient stands: locked for tests, or to be learnt from. Pure: hashes and counting.

A patient is what is divided, together with all others who are the same person or share pixels with them (`groups`).
Within each stratum those are locked who come first by a keyed hash, as many as the share asks for; who has a side
keeps it. So the same key and the same history give the same sides, later patients fall into place, and the test set
grows with them. Invariants: nobody who is locked ever leaves the lock, but to stand apart for good; nobody whom a model
has seen is ever locked.
"""

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

Draw = Callable[[str], str]  # a keyed hash of a patient's name, as hexadecimal digits


class Side(StrEnum):
    """`apart` is of patients who turned out to be on both sides: neither learnt from nor tested on."""

    TEST = "test"
    TRAINING = "training"
    APART = "apart"


class Candidate(NamedTuple):
    """One patient: `stratum` in words, whether the labels allow a locked test, and whether some model has seen them."""

    patient: str
    stratum: str
    testable: bool
    seen: bool


def groups(patients: Iterable[str], links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Patients to the first name of their group; linked ones share it, over any number of links."""
    leader = {p: p for p in patients}

    def find(name: str) -> str:
        while leader[name] != name:
            leader[name] = name = leader[leader[name]]
        return name

    for a, b in links:
        if a in leader and b in leader:
            first, second = sorted((find(a), find(b)))
            leader[second] = first
    return {p: find(p) for p in leader}


def assign(
    candidates: Iterable[Candidate], group_of: Mapping[str, str], known: Mapping[str, Side], share: float, draw: Draw
) -> dict[str, Side]:
    """The side of every candidate, known ones included; `known` are the sides that were given before."""
    members: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        members.setdefault(group_of.get(candidate.patient, candidate.patient), []).append(candidate)
    given: dict[str, set[Side]] = {}
    for patient, had in known.items():  # also of those who are not among the candidates today
        given.setdefault(group_of.get(patient, patient), set()).add(had)
    sides = {g: _given(own, known, given.get(g, set())) for g, own in members.items()}
    strata = {g: min(c.stratum for c in own) for g, own in members.items()}
    wanted = quotas({s: sum(v == s for v in strata.values()) for s in set(strata.values())}, share)
    for stratum, count in sorted(wanted.items()):
        here = [g for g in members if strata[g] == stratum]
        locked = sum(sides[g] is Side.TEST for g in here)
        free = [g for g in here if sides[g] is None]
        able = sorted((g for g in free if all(c.testable and not c.seen for c in members[g])), key=draw)
        chosen = set(able[: max(0, count - locked)])
        sides |= {g: Side.TEST if g in chosen else Side.TRAINING for g in free}
    return {c.patient: side for g, own in members.items() for c in own if (side := sides[g]) is not None}


def conflicts(group_of: Mapping[str, str], known: Mapping[str, Side]) -> tuple[str, ...]:
    """Groups of which some are locked and others were learnt from: they are to stand apart."""
    of: dict[str, set[Side]] = {}
    for patient, group in group_of.items():
        if patient in known:
            of.setdefault(group, set()).add(known[patient])
    return tuple(sorted(g for g, sides in of.items() if {Side.TEST, Side.TRAINING} <= sides))


def quotas(counts: Mapping[str, int], share: float) -> dict[str, int]:
    """How many of each stratum are locked: `share` of all together, each stratum within one of its own share."""
    total = round(sum(counts.values()) * share)
    exact = {s: n * share for s, n in counts.items()}
    found = {s: int(v) for s, v in exact.items()}
    for stratum in sorted(counts, key=lambda s: (found[s] - exact[s], s))[: max(0, total - sum(found.values()))]:
        found[stratum] += 1
    return found


def watching(patients: Iterable[tuple[str, str]], share: float, draw: Draw) -> frozenset[str]:
    """Of patients to learn from, with their strata, those who only watch the training (early stop, calibration)."""
    strata: dict[str, list[str]] = {}
    for patient, stratum in patients:
        strata.setdefault(stratum, []).append(patient)
    wanted = quotas({s: len(own) for s, own in strata.items()}, share)
    return frozenset(p for s, own in strata.items() for p in sorted(own, key=draw)[: wanted[s]])


def _given(own: list[Candidate], known: Mapping[str, Side], sides: set[Side]) -> Side | None:
    """The side that a group has already: one that is locked is not learnt from, one on both sides stands apart."""
    if Side.APART in sides or {Side.TEST, Side.TRAINING} <= sides:
        return Side.APART
    if Side.TEST in sides:  # somebody whom a model has seen joined a locked group: it cannot be tested on any more
        return Side.APART if any(c.seen and c.patient not in known for c in own) else Side.TEST
    return Side.TRAINING if sides else None
