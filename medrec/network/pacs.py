"""What a PACS can be asked, whichever protocol it speaks, and how it can fail.

Owns the protocol `Pacs` and the values that it trades in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from medrec.errors import DataError, WorldError


class UnreachableError(WorldError):
    """The peer is away, too slow, or broke off: trying again may help."""


class UnansweredError(UnreachableError):
    """The peer took what it was sent, and does not say that it keeps it: other objects may go all the same."""


class RefusedError(DataError):
    """The peer does not want us or our object: trying again changes nothing."""


@dataclass(frozen=True, slots=True, repr=False)
class StudyFound:
    """A study that a PACS holds, and its date where it says it."""

    study_uid: str
    date: str


@dataclass(frozen=True, slots=True, repr=False)
class SeriesFound:
    """A series that a PACS holds; `images` is how many it says, None where it does not."""

    series_uid: str
    modality: str
    description: str
    images: int | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which studies are asked for: dates as YYYYMMDD, both ends included; `description` may hold * and ?."""

    first_date: str
    last_date: str
    modality: str
    description: str = ""

    def fits(self, study: StudyFound, series: Sequence[SeriesFound]) -> bool:
        """Whether it is what was asked for: a PACS may overlook what it was asked, and send everything.

        Without regard to case, as PACS differ in that (PS3.4 C.2.2.2.4).
        """
        dated = not study.date or self.first_date <= study.date <= self.last_date
        pattern = self.description.casefold() or "*"
        return dated and any(
            s.modality == self.modality and fnmatchcase(s.description.casefold(), pattern) for s in series
        )


@dataclass(frozen=True, slots=True, repr=False)
class Person:
    """Whose a study is, as a PACS or an object says it."""

    id: str
    issuer: str
    name: str
    birth_date: str
    sex: str

    def differs(self, other: "Person") -> list[str]:
        """In what two people differ, by the name of the field; what only one of them says is no difference.

        An id must be there and equal; a name is compared without case and without empty components.
        """
        found = [] if self.id and self.id == other.id else ["patient id"]
        pairs = {
            "issuer of the id": (self.issuer, other.issuer),
            "name": (_plain(self.name), _plain(other.name)),
            "birth date": (self.birth_date, other.birth_date),
            "sex": (self.sex, other.sex),
        }
        return found + [what for what, (a, b) in pairs.items() if a and b and a != b]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one object that was sent; `status` is the PACS's code, "0000" when all went well."""

    name: str
    stored: bool
    status: str
    again: bool = False

    @property
    def warned(self) -> bool:
        """Stored, but not as it was sent (PS3.4 B.2.3: coercion and its like)."""
        return self.stored and self.status != "0000"


MAX_ANSWERS = 100_000  # to one question: more than any series has images, few enough to hold
Keep = Callable[[str, bytes], bool]
"""Takes a study's UID and a whole file; says whether it was new."""


class Pacs(Protocol):
    """A PACS. Every method raises UnreachableError or RefusedError; `name` is the peer's name in the configuration."""

    name: str

    def store(self, files: Sequence[Path]) -> tuple[Outcome, ...]:
        """Send files, one outcome each, in order."""
        ...

    def person(self, study_uid: str) -> Person | None:
        """Whose a study is there; None when it has no such study."""
        ...

    def holds(self, study_uid: str, series_uid: str) -> frozenset[str]:
        """The SOP Instance UIDs of a series there."""
        ...

    def search(self, wanted: Wanted) -> tuple[StudyFound, ...]:
        """The studies of these days with this modality, each once; the description is the caller's to look at."""
        ...

    def series(self, study_uid: str) -> tuple[SeriesFound, ...]:
        """The series of a study."""
        ...

    def fetch(self, study_uid: str, series_uid: str, keep: Keep) -> frozenset[str]:
        """Bring a series' files, one at a time, to `keep`; returns their SOP Instance UIDs. Others are refused."""
        ...

    def committed(self, files: Sequence[Path]) -> frozenset[str] | None:
        """The names of those files that it takes responsibility for; None where it offers no commitment."""
        ...


def _plain(name: str) -> str:
    """DICOM PS3.5 6.2.1: components by ^, groups by =; the first group is the alphabetic one."""
    return "^".join(part.strip() for part in name.split("=")[0].casefold().split("^")).rstrip("^")
