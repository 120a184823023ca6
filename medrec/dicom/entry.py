"""What was found in one file of a folder."""

from dataclasses import dataclass, replace

from medrec.dicom.pixels import Native
from medrec.series import Refused, ScanFile


@dataclass(frozen=True, slots=True)
class Entry:
    """What is in one file: mostly one thing, of a zip file one for each member; `natives` stands beside `found`."""

    found: tuple[ScanFile | Refused | str, ...]
    natives: tuple[Native | None, ...]

    def numbered(self, ordinal: int) -> "Entry":
        """The same file at another place in the walk."""
        found = tuple(f if isinstance(f, str) else replace(f, ordinal=ordinal) for f in self.found)
        return Entry(found, self.natives)
