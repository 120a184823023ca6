"""What a reviewer sees of a night: one row for each study that is new, in the order in which eyes are needed.

Owns `Row`, `Overdue`, `Reviews`, the order and its words. Pure: a row is told by the night's line and the facts of its
report. Refuses nothing: a report that is gone leaves what the line says. Invariants: the order is total and the same
each time; "nominal" stands beside every size that is; no row says "normal".
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from medrec.report import Status, Verdict, side_text

NOT_REVIEWED = "not reviewed"
GONE, TAKEN_UP = "its report is not here any more", "a later night took it up again"
SHORT = 8  # characters of a study's pseudonym, as in the names of MLflow's runs
SETTLED = frozenset({Status.ALREADY_DONE, Status.WAITING})  # nothing new to look at


# From what needs eyes most to what needs them least.
ORDER: tuple[Verdict | Status, ...] = (
    Verdict.INCONCLUSIVE,
    Status.FAILED,
    Verdict.FINDING,
    Verdict.NOTHING_MARKED,
    Status.REFUSED,
)
RULE = (
    "What needs eyes most comes first: studies without a verdict (inconclusive, then failed), findings from the "
    "largest to the smallest (millimetres before pixels), nothing marked (flagged first, then the highest slice "
    "probability), refused."
)


@dataclass(frozen=True, slots=True)
class Overdue:
    """A case of an earlier night that nobody has reviewed for so many days; `study` is a pseudonym."""

    case: str
    study: str
    days: int


@dataclass(frozen=True, slots=True)
class Reviews:
    """Where reviews stand, in a word by case; whoever is not named was not reviewed."""

    words: Mapping[str, str] = field(default_factory=dict)

    def of(self, case: str) -> str:
        """The word for a case."""
        return self.words.get(case, NOT_REVIEWED)


@dataclass(frozen=True, slots=True)
class Row:
    """One study of a night; `study` is the pseudonym's beginning, `size` the largest lesion's, in words.

    `longest_mm` and `longest_px` are what rows are ordered by, 0 where nothing was outlined or it has no such size.
    """

    case: str
    study: str
    kind: Verdict | Status
    reason: str
    size: str
    where: str
    flags: tuple[str, ...]
    model: str
    review: str
    run_id: str | None
    longest_mm: float = 0.0
    longest_px: float = 0.0
    probability: float = 0.0

    @property
    def rank(self) -> tuple[object, ...]:
        """What comes first has the smaller one."""
        size = (-self.longest_mm, -self.longest_px)
        flagged = () if self.kind is Verdict.FINDING else (-len(self.flags),)
        return (ORDER.index(self.kind), *size, *flagged, -self.probability, self.study, self.case)


def row(
    line: Mapping[str, Any], facts: Mapping[str, Any] | None, review: str, run_id: str | None, gone: str = GONE
) -> Row:
    """The row of a case: `line` is the night's, `facts` those of its report, None where that is `gone`, as it says.

    What was not analysed has nothing to review.
    """
    kind = Verdict(line["verdict"]) if line["verdict"] else Status(line["status"])
    head = (line["case"], line["study"][:SHORT], kind, line["reason"])
    review = review if isinstance(kind, Verdict) or review != NOT_REVIEWED else ""
    if facts is None:
        return Row(*head, "", "", (gone,), "", review, run_id)
    model = f"{facts['model_name']} {facts['model_version']}".strip()
    size, where, longest = _of_images(facts) if facts.get("images") else _of_volumes(facts)
    return Row(
        *(*head, size, where, tuple(facts["flags"]), model, review, run_id),
        *(*longest, max(facts["slice_probability"], default=0.0)),
    )


def ordered(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows by `RULE`."""
    return tuple(sorted(rows, key=lambda r: r.rank))


def counted(rows: Iterable[Row]) -> tuple[tuple[Verdict | Status, int], ...]:
    """How many there are of each verdict or status, in `ORDER`."""
    found = Counter(r.kind for r in rows)
    return tuple((kind, found[kind]) for kind in ORDER if found[kind])


def table(rows: Sequence[Row]) -> str:
    """The rows as MLflow's `load_table` reads them: JSON, `split` in pandas' words."""
    columns = ["order", "study", "verdict", "review", "size", "where", "to note", "model", "run"]
    data = [
        [n, r.study, str(r.kind), r.review, r.size, r.where, "; ".join(noted(r)), r.model, r.run_id or ""]
        for n, r in enumerate(rows, 1)
    ]
    return json.dumps({"columns": columns, "data": data}, ensure_ascii=False)


def noted(r: Row) -> tuple[str, ...]:
    """What is to be said beside the verdict: the reason first."""
    return (*((r.reason,) if r.reason else ()), *r.flags)


def overdue(summary: Mapping[str, Any]) -> tuple[Overdue, ...]:
    """The overdue reviews that a night's summary names, the oldest first; an earlier release knew none."""
    found = (Overdue(str(o["case"]), str(o["study"]), int(o["days"])) for o in summary.get("overdue", ()))
    return tuple(sorted(found, key=lambda o: (-o.days, o.study, o.case)))


def as_facts(found: Iterable[Overdue]) -> tuple[dict[str, Any], ...]:
    """What a night's summary keeps of them."""
    return tuple(asdict(o) for o in found)


def _of_volumes(facts: Mapping[str, Any]) -> tuple[str, str, tuple[float, float]]:
    """Size and place in words, and the longest axial diameter in (mm, px)."""
    found = facts["findings"]
    if not found:
        return "", "", (0.0, 0.0)
    first, said = found[0], " nominal" if facts["geometry_nominal"] else ""
    ml = sum(f["volume_mm3"] for f in found) / 1000
    size = f"{first['longest_axial_mm']:.1f} × {first['perpendicular_mm']:.1f} mm{said}"
    size += f", {ml:.{1 if ml >= 1 else 2}f} ml{said}"
    place = side_text(first["side"])
    many = f"{len(found)} lesions, the largest {place}" if len(found) > 1 else place
    return size, many, (first["longest_axial_mm"], 0.0)


def _of_images(facts: Mapping[str, Any]) -> tuple[str, str, tuple[float, float]]:
    images = facts["images"]
    marked = [i for i in images if i["outlined"]]
    says = [f"{name} {max(i['probabilities'][name] for i in images):.2f}, no diagnosis" for name in _classes(images)]
    if not marked:
        return "", "; ".join(says), (0.0, 0.0)
    first = max(marked, key=lambda i: i["area_px"])
    size = f"{first['longest_px']:.0f} × {first['perpendicular_px']:.0f} pixels"
    if first["longest_mm"] is not None:
        size += f", {first['longest_mm']:.1f} × {first['perpendicular_mm']:.1f} mm by the file's calibration"
    count = [f"in {len(marked)} of {len(images)} images"] if len(images) > 1 else []
    return size, "; ".join(count + says), (first["longest_mm"] or 0.0, first["longest_px"])


def _classes(images: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted(set.intersection(*(set(i["probabilities"]) for i in images)))
