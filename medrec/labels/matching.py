"""Which known image a label is of: by the UIDs that it carries, or by what its file and folders are called.

A name must be an image's own: of the file of a mask, or of its folder where the file is only called "mask" or the like.
Folders above it only choose between images that fit already. What fits none, or several, is refused; nothing is
decided by likeness.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medrec.dicom import Pseudonyms
from medrec.dicom.marked import Marked
from medrec.errors import DataError
from medrec.labels.reading import IMAGES, LABELS, stem_of
from medrec.store import Known

# What people call the mask of something, when they do not call it by the something.
GENERIC = "mask|masks|seg|segmentation|label|labels|lesion|tumor|tumour|roi|gt|annotation|manual"
_ALONE = re.compile(f"(?i)({GENERIC})[0-9]*")
_ENDING = re.compile(f"(?i)[ _.-]+({GENERIC})")
# Columns of a table that say of what a row is, the narrowest first, and the kind of pseudonym that they are known by.
KEYS: Mapping[str, str] = {
    "sop_instance_uid": "instance",
    "image": "called",
    "series_instance_uid": "series",
    "study_instance_uid": "study",
    "patient_id": "patient",
    "patient": "called",
}
MAX_TABLE_BYTES = 2**27
Row = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Images:
    """The images that may be labelled, and the key that names them."""

    known: tuple[Known, ...]
    pseudonyms: Pseudonyms

    def of_marked(self, marked: Marked) -> Known:
        """The image that an object refers to. Raises DataError when it is unknown, or another patient's."""
        series = {k.image: k for k in self.known if k.series in marked.series}
        drawn_on = {k.image: k for k in self.known if marked.instances & {_bare(i) for i in k.instances}}
        # A picture is one image of its series: the series alone does not say which.
        found = drawn_on or {name: k for name, k in series.items() if k.affine is not None}
        if not found:
            raise DataError(
                "no series or image that it refers to is known: ingest its study first (medrec ingest DIR, with --card "
                "for a card of your own); if that was done, it was drawn on other images"
            )
        if len(found) > 1:
            raise DataError(f"it refers to {len(found)} images: a label is of one")
        (image,) = found.values()
        if marked.study != image.study or marked.patient != image.patient:
            raise DataError("its study or patient is not that of the images that it refers to")
        return image

    def of_file(self, path: Path, folder: Path, table: Sequence[Row]) -> Known:
        """The image that a mask's file is called after, or that a row of the table names. Raises DataError."""
        stem = stem_of(path)
        if (row := _row_of(stem, table)) is not None:
            return self._only(self.of_row(row), "its row of the table")
        name = _ENDING.sub("", stem) if not _ALONE.fullmatch(stem) else path.parent.name
        fitting = self._called((stem, name) if not _ALONE.fullmatch(stem) else (name,))
        if not fitting:
            raise DataError(
                "no known image goes by its name: ingest its study first, or name the file (or the folder of a file "
                "called mask) after its patient, study, series, image or their folder, or name a --table"
            )
        parents = [parent.name for parent in path.relative_to(folder).parents if parent.name]
        for parent in parents:
            narrower = [k for k in fitting if k in self._called((parent,))]
            # A bare number is the name of many things: the folder that it lies in must be the image's too.
            fitting = narrower or ([] if name.isdigit() and parent == parents[0] else fitting)
        return self._only(fitting, "its name")

    def of_row(self, row: Row) -> list[Known]:
        """The images of a row: by its narrowest column that is filled in; the wider ones must not contradict it."""
        keys = [(name, row[name].strip()) for name in KEYS if (row.get(name) or "").strip()]
        if not keys:
            raise DataError("none of the columns that say of what it is filled in")
        while True:
            first, value = keys.pop(0)
            found = [k for k in self.known if self._is(k, first, value)]
            if found or not keys or KEYS[first] != "called":  # a name may be the table's own; an identifier is not
                break
        for name, value in keys:
            if KEYS[name] in ("series", "study") and any(not self._is(k, name, value) for k in found):
                raise DataError(f"its {name} is not that of the image that its {first} names")
        return found

    def _is(self, known: Known, column: str, value: str) -> bool:
        of, kind = self.pseudonyms.of, KEYS[column]
        if kind == "patient":
            return known.patient == of("patient", "", value)
        if kind == "called":
            return of("called", value) in known.names
        name = of(kind, value)
        return name in ({_bare(i) for i in known.instances} if kind == "instance" else (getattr(known, kind),))

    def _called(self, names: Iterable[str]) -> list[Known]:
        """Every image that goes by one of these names: of its file, a folder, or one of its identifiers."""
        columns = ("sop_instance_uid", "series_instance_uid", "study_instance_uid", "patient_id", "image")
        wanted = [(column, name) for name in dict.fromkeys(names) if name for column in columns]
        return [k for k in self.known if any(self._is(k, column, name) for column, name in wanted)]

    @staticmethod
    def _only(found: Sequence[Known], what: str) -> Known:
        if not found:
            raise DataError(f"{what} fits no known image: ingest its study first")
        if len(found) > 1:
            raise DataError(
                f"{what} fits {len(found)} known images: name it after the study, series or image, or name a --table"
            )
        return found[0]


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file whose first line names the columns; comma, semicolon or tab between them.

    Raises DataError for a file that is none, or that says of no image what it is about.
    """
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise DataError(f"a table has at most {MAX_TABLE_BYTES // 2**20} MiB")
        text = path.read_text(encoding="utf-8-sig")
        lines = text.splitlines()
        separator = max(",;\t", key=lambda c: lines[0].count(c)) if lines else ","
        rows = list(csv.DictReader(lines, delimiter=separator, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise DataError("it is no table of comma-separated values in UTF-8") from None
    named = {name.strip() for name in rows[0] if name} if rows else set()
    if not named & KEYS.keys():
        raise DataError(f"none of its columns says of what its rows are: {', '.join(KEYS)}")
    if uneven := next((n for n, r in enumerate(rows, 2) if None in r or None in r.values()), 0):
        raise DataError(f"line {uneven} has not as many values as there are columns")
    return [{k.strip(): v for k, v in row.items()} for row in rows]


def is_image_of_dataset(path: Path) -> bool:
    """Whether a file is an image of the layouts that keep masks beside them."""
    return path.parent.name in IMAGES and any((path.parent.parent / name).is_dir() for name in LABELS)


def _row_of(stem: str, table: Sequence[Row]) -> Row | None:
    """The one row that holds a file's name in any of its columns."""
    rows = [row for row in table if stem in (value.strip() for value in row.values())]
    if len(rows) > 1:
        raise DataError(f"{len(rows)} rows of the table hold its name")
    return rows[0] if rows else None


def _bare(instance: str) -> str:
    """The name of the image of a slice, without the number of its frame."""
    return instance.partition(".")[0].rstrip("+")
