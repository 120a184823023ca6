"""Labels from files: read, matched to a known image, checked, and taken on record; each file is answered for.

Owns the way of `medrec labels add`. Invariants: what cannot be taken is refused by name and takes nothing else with it;
nothing that is in force changes but by a label that supersedes it; who is locked for testing gets blind labels only.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medrec.dicom import Pseudonyms, isolation, work
from medrec.dicom.marked import NOT_A_LABEL, Marked
from medrec.dicom.reading import walk
from medrec.errors import ConfigError, DataError
from medrec.home import Home
from medrec.labels import masks, placing, reading
from medrec.labels.classes import classes_of
from medrec.labels.matching import Images, is_image_of_dataset, read_table
from medrec.labels.placing import Marks
from medrec.labels.reading import DATASET, NIFTI, TABLE, kind_of
from medrec.pictures import Card
from medrec.splits import Side
from medrec.store import Known, Label, Origin, Store
from medrec.store.labelled import What

MAX_FILE_BYTES = 2**30
# Millions of corners, or a thousand frames, take less.
PARSE_SECONDS = 60.0
UNREADABLE = "it cannot be read: it is broken, or crafted"
MAX_NAME = 64
# What lies beside masks and is none.
BESIDE = (".json", ".txt", ".md", ".yaml", ".yml", ".pdf")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person says of the labels that they add.

    `cards` are those that they may be for; `segments` names or numbers of what counts of several; with `nothing_there`
    an empty mask says that nothing is there. `table` says by rows which file is of what.
    """

    by: str
    origin: Origin
    at: str
    cards: tuple[Card, ...]
    segments: tuple[str, ...] = ()
    nothing_there: bool = False
    table: Path | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one file, or one row of a table: `name` is for the terminal of who added it, and nothing else."""

    name: str
    sha256: str
    label: Label | None = None
    refused: str = ""
    note: str = ""


@dataclass(slots=True)
class Added:
    """What became of all: labels that are new, how many were in force already, refusals; `unused` are no labels."""

    added: list[Answer] = field(default_factory=list)
    already: int = 0
    refused: list[Answer] = field(default_factory=list)
    unused: int = 0


def add(path: Path, home: Home, store: Store, wish: Wish, progress: Progress = lambda what, done, total: None) -> Added:
    """Take every label below a folder, or in one file. Raises ConfigError for what was asked for wrongly."""
    return _Adding(path, home, store, wish).run(progress)


def one(path: Path, home: Home, store: Store, wish: Wish, study: str) -> Label:
    """The label that a mask makes of the one image of a study, or of the one that it names; the mask is kept.

    It is not taken on record here. The caller holds the home's labelling. Raises DataError unless it fits.
    """
    return _Adding(path, home, store, wish, study).one(path)


class _Adding:
    def __init__(self, path: Path, home: Home, store: Store, wish: Wish, study: str = "") -> None:
        self._check(path, wish)
        self._study = study
        self._own = [
            k for k in store.known() if study and k.study == study and {c.name for c in wish.cards} & {*k.cards}
        ]
        self._path, self._home, self._store, self._wish = path, home, store, wish
        self._folder = path if path.is_dir() else path.parent
        self._pseudonyms = Pseudonyms.load(home.key)
        self._cards = {card.name: card for card in wish.cards}
        self._images = Images(self._own if study else store.known(), self._cards, self._pseudonyms)
        self._sides = store.sides()
        self._table = read_table(wish.table) if wish.table is not None else []
        self._done = Added()

    @staticmethod
    def _check(path: Path, wish: Wish) -> None:
        problems = []
        if not path.exists():
            problems.append("PATH: there is no such file or folder")
        if not wish.by.strip() or len(wish.by) > MAX_NAME or not wish.by.isprintable():
            problems.append(f"--by: say who made these labels, in at most {MAX_NAME} characters")
        if wish.table is not None and not wish.table.is_file():
            problems.append("--table: there is no such file")
        if problems:
            raise ConfigError(problems)

    def run(self, progress: Progress) -> Added:
        masks.forget_unnamed(self._home, self._store)
        files = [p for p in walk(self._path) if not p.name.startswith(".")]
        for number, path in enumerate(files, 1):
            for answer in self._answers(path):
                if answer.refused:
                    self._done.refused.append(answer)
                elif answer.label is not None:
                    self._done.added.append(answer)
                else:
                    self._done.already += 1
            progress("labels", number, len(files))
        return self._done

    def one(self, path: Path) -> Label:
        """See `one`."""
        if not self._own:
            raise DataError("the study of this case is not known for labels: medrec ingest DIR makes it so")
        digest = _sha256(path)
        marked = self._marked(path) if not kind_of(path) else None
        if kind_of(path) in TABLE or (marked is None and not kind_of(path)):
            raise DataError(NOT_A_LABEL)
        return self._made(path, digest, marked)[0]

    def _answers(self, path: Path) -> Iterator[Answer]:
        name = str(path.relative_to(self._folder))
        if self._path.is_dir() and (path.suffix.lower() in BESIDE or path.name == DATASET or is_image_of_dataset(path)):
            self._done.unused += 1
            return
        digest = ""
        try:
            digest = _sha256(path)
            if kind_of(path) in TABLE:
                yield from self._rows(path, name, digest)
                return
            marked = self._marked(path) if not kind_of(path) else None
            if marked is None and not kind_of(path):
                self._done.unused += 1
                return
            yield self._masked(path, name, digest, marked)
        except DataError as error:
            yield Answer(name, digest, refused=str(error))

    def _marked(self, path: Path) -> Marked | None:
        """What a DICOM object marks; None for a file in a folder that is none of its labels."""
        future = isolation.start(
            work.marked, path.read_bytes(), self._pseudonyms, self._wish.segments, seconds=PARSE_SECONDS
        )
        try:
            found = isolation.result(future)
        except isolation.Lost as lost:
            raise DataError(lost.why) from None
        if found == NOT_A_LABEL and self._path.is_dir():
            return None
        if isinstance(found, str):
            raise DataError(found or UNREADABLE)
        return found

    def _masked(self, path: Path, name: str, digest: str, marked: Marked | None) -> Answer:
        label, note = self._made(path, digest, marked)
        return Answer(name, digest, self._store.add_label(label), note=note)

    def _made(self, path: Path, digest: str, marked: Marked | None) -> tuple[Label, str]:
        """A mask's label, which is not on record yet, and what is to be said of it."""
        note = ""
        if marked is not None:
            known = self._images.of_marked(marked)
            marks = placing.planes_on(marked.planes, known)
            if marked.contours:
                marks, note = placing.contours_on(marked.contours, known)
        else:
            alone = len(self._own) == 1
            known = self._own[0] if alone else self._images.of_file(path, self._folder, self._table)
            read = reading.nifti if kind_of(path) in NIFTI else reading.png
            marks = read(path, known, self._wish.segments)
        card = self._card(known)
        self._check_marks(marks)
        self._check_side(known)
        kept = masks.keep(self._home, marks)
        return self._label(known, card, digest, "mask", kept, {}), note

    def _rows(self, path: Path, name: str, digest: str) -> Iterator[Answer]:
        """The classes that a table gives to images; all of its mistakes, and the rows that have none are taken."""
        for line, own, found in classes_of(read_table(path), self._images, self._cards, self._store):
            where = f"{name}, line {line}"
            if isinstance(found, str):
                yield Answer(where, digest, refused=found)
                continue
            card, told = found
            for known in own:
                try:
                    self._check_side(known)
                except DataError as error:
                    yield Answer(where, digest, refused=str(error))
                    continue
                label = self._label(known, card.name, digest, "class", None, told)
                yield Answer(where, digest, self._store.add_label(label))

    def _card(self, known: Known) -> str:
        """The one card that a label of an image is for."""
        own = [name for name in known.cards if name in self._cards]
        if not own:
            raise DataError(
                f"its image is known to {', '.join(known.cards)}, not to {', '.join(self._cards)}: "
                "medrec ingest DIR --card CARD makes it known to more"
            )
        if len(own) > 1:
            raise DataError(f"its image is taken by the cards {', '.join(own)}: say with --card which it is for")
        return own[0]

    def _check_marks(self, marks: Marks) -> None:
        if not marks.any() and not self._wish.nothing_there:
            raise DataError("nothing is marked in it; where that is what was seen, say so with --nothing-there")
        if marks.all():
            raise DataError("all of it is marked")
        if marks[tuple(slice(None, None, max(1, n - 1)) for n in marks.shape)].all():
            raise DataError("every corner of the image is marked: its background is, instead of what lies before it")

    def _check_side(self, known: Known) -> None:
        if self._wish.origin is not Origin.BLIND and self._sides.get(known.patient) is Side.TEST:
            raise DataError(
                f"its patient is locked for testing, where only blind labels count; one of origin {self._wish.origin} "
                "is not taken"
            )

    def _label(
        self, known: Known, card: str, digest: str, what: What, mask: str | None, classes: dict[str, str]
    ) -> Label:
        return Label(
            label="",
            card=card,
            study=known.study,
            patient=known.patient,
            image=known.image,
            what=what,
            mask_sha256=mask,
            classes=classes,
            origin=self._wish.origin,
            by=self._wish.by.strip(),
            at=self._wish.at,
            source_sha256=digest,
            geometry_sha256=known.geometry_sha256,
            pixels_sha256=known.pixels_sha256,
        )


def _sha256(path: Path) -> str:
    try:
        if not path.is_file():
            raise DataError("it is no plain file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"it has more than {MAX_FILE_BYTES // 2**30} GiB; no label needs that")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise DataError("it cannot be read from the disk") from None
