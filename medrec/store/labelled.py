"""What may be labelled, and the labels that people gave it: kept for ever, one in force for each card and image.

A label is about one image (a series as the volume that it becomes, or a single picture) under one card, and says
either where the lesion is (a mask) or which classes it has. A later one supersedes an earlier of the same kind; none
is deleted but with its patient. Each acceptance is a row and a ledger record in one transaction; what the record says
of the patient's files is keyed with the patient's salt.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from medrec import audit, events
from medrec.audit import salted
from medrec.store.cases import Cases
from medrec.store.session import Tail
from medrec.store.tables import KNOWN, LABELS, SALTS

What = Literal["mask", "class"]
LABEL_DIGITS = 24  # 96 bits: two labels never share a name by chance
LISTS = ("cards", "shape", "affine", "instances", "inputs", "names")  # JSON in their columns


class Origin(StrEnum):
    """How a label was made: without sight of a model's answer, from one that was edited, or from one as it was."""

    BLIND = "blind"
    EDITED_AI = "edited-AI"
    ACCEPTED_AI = "accepted-AI"


@dataclass(frozen=True, slots=True)
class Known:
    """What may be labelled. Names are pseudonyms: `image` is that of a series, or of one picture's instance.

    `shape` is (i, j, k) of the volume, or (rows, columns) of a picture; `affine` the 16 numbers of the volume's
    `affine_ijk_to_lps`, row by row, None for a picture; `instances` its slices in the order of k; `inputs` the SHA-256
    of its files; `cards` those whose grid it is (`ModelCard.grid`), or that take such a picture. `pixels_sha256` is
    that of `Volume` or `Still`: what cards list as trained on. `names` are pseudonyms of the folders that its files lie
    in, and of a picture's file.
    """

    image: str
    study: str
    patient: str
    series: str
    frame: str | None
    modality: str
    cards: tuple[str, ...]
    shape: tuple[int, ...]
    affine: tuple[float, ...] | None
    instances: tuple[str, ...]
    inputs: tuple[str, ...]
    geometry_sha256: str
    pixels_sha256: str
    at: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Label:
    """One thing that a person said of an image: `classes` (value by column), or the mask of `mask_sha256`.

    `geometry_sha256` and `pixels_sha256` are those of the image on which it was checked; `source_sha256` is of the
    file that it came from. `superseded_by` is None while it is in force.
    """

    label: str
    card: str
    study: str
    patient: str
    image: str
    what: What
    mask_sha256: str | None
    classes: Mapping[str, str]
    origin: Origin
    by: str
    at: str
    source_sha256: str
    geometry_sha256: str
    pixels_sha256: str
    superseded_by: str | None = None

    @property
    def content(self) -> str:
        """What it says, as one text."""
        return self.mask_sha256 or json.dumps(dict(self.classes), sort_keys=True)


class Labelled(Cases):
    """What the store knows of labels."""

    def know(self, known: Known) -> bool:
        """Note an image of a study that `remember_study` was told of, or what is new of it; False when all was known.

        Cards are added to those that took it before.
        """
        with self._writing() as connection:
            where = KNOWN.c.image == known.image
            before = connection.execute(sa.select(KNOWN).where(where)).first()
            if before is None:
                connection.execute(sa.insert(KNOWN).values(_columns(known)))
                return True
            old = _known(before)
            values = _columns(known) | {"cards": json.dumps(sorted({*old.cards, *known.cards}))}
            if values | {"at": old.at} == _columns(old):
                return False
            connection.execute(sa.update(KNOWN).where(where).values(values))
            return True

    def known(self, card: str | None = None) -> tuple[Known, ...]:
        """All that may be labelled, or what one card takes."""
        every = (_known(row) for row in self._rows(sa.select(KNOWN).order_by(KNOWN.c.study, KNOWN.c.image)))
        return tuple(k for k in every if card is None or card in k.cards)

    def labels(self, card: str | None = None, *, superseded: bool = False) -> tuple[Label, ...]:
        """The labels in force, of all cards or of one, in the order in which they were given; or really all."""
        where = [] if card is None else [LABELS.c.card == card]
        where += [] if superseded else [LABELS.c.superseded_by.is_(None)]
        return tuple(_label(row) for row in self._rows(sa.select(LABELS).where(*where).order_by(LABELS.c.seq)))

    def add_label(self, label: Label) -> Label | None:
        """Take a label (its `label` and `superseded_by` are filled in here); None when the same is in force already.

        Raises DataError when its study is unknown here.
        """
        salt = self.salt(label.patient)
        return self._extend(lambda tail: put_label(tail, label, salt))

    def sealed_labels(self) -> Iterator[tuple[Label, dict[str, object]]]:
        """Every label with what its record must say of it; a patient's salt that is gone keys nothing."""
        query = sa.select(LABELS, SALTS.c.salt).outerjoin(SALTS, SALTS.c.patient == LABELS.c.patient)
        for row in self._rows(query.order_by(LABELS.c.seq)):
            yield _label(row), sealed(_label(row), row.salt or "")


def put_label(tail: Tail, label: Label, salt: str) -> Label | None:
    """Take a label within a transaction of the store's, as `Labelled.add_label` does."""
    c = LABELS.c
    same = sa.and_(c.card == label.card, c.image == label.image, c.what == label.what)
    row = tail.connection.execute(sa.select(LABELS).where(same, c.superseded_by.is_(None))).first()
    before = None if row is None else _label(row)
    if before is not None and _said(before) == _said(label):
        return None
    name = _name(label, "" if before is None else before.label, salt)
    facts = sealed(label, salt) | {"label": name, "supersedes": None if before is None else before.label}
    tail.add(events.LABEL, label.at, facts)
    if before is not None:
        tail.connection.execute(sa.update(LABELS).where(c.label == before.label).values(superseded_by=name))
    values = {**_fields(label), "label": name, "superseded_by": None, "seq": tail.number}
    tail.connection.execute(sa.insert(LABELS).values(values))
    return _label_of(values)


def rename_images(connection: Connection, next_name: Callable[[str], str]) -> None:
    """Give images, series and what they are called their new names after the key was rotated.

    Studies and patients have theirs already. A slice of a file is named by the file's name and what follows it.
    """

    def new(name: str) -> str:
        own = re.match("[0-9a-f]*", name)
        assert own is not None
        return next_name(own[0]) + name[own.end() :]

    for row in connection.execute(sa.select(KNOWN)).all():
        known = _known(row)
        values = {n: new(getattr(known, n)) for n in ("image", "series")}
        values |= {n: json.dumps([new(x) for x in getattr(known, n)]) for n in ("instances", "names")}
        frame = None if known.frame is None else new(known.frame)
        connection.execute(sa.update(KNOWN).where(KNOWN.c.image == known.image).values(frame=frame, **values))
        where = LABELS.c.image == known.image
        connection.execute(sa.update(LABELS).where(where).values(image=values["image"]))


def sealed(label: Label, salt: str) -> dict[str, object]:
    """What a label's record says of it, so that a changed row is noticed."""
    keyed = {
        "study": label.study,
        "image": label.image,
        "content": label.content,
        "source": label.source_sha256,
        "pixels": label.pixels_sha256,
    }
    open_facts = {"card": label.card, "what": label.what, "origin": label.origin.value, "by": label.by}
    return {**open_facts, **{name: salted(salt, value) for name, value in keyed.items()}}


def _said(label: Label) -> tuple[str, ...]:
    return label.content, label.origin, label.by, label.source_sha256, label.geometry_sha256, label.pixels_sha256


def _name(label: Label, before: str, salt: str) -> str:
    parts = [label.card, label.image, label.what, *_said(label), before]
    return salted(salt, hashlib.sha256(audit.canonical(parts)).hexdigest())[:LABEL_DIGITS]


def _columns(known: Known) -> dict[str, Any]:
    values = {name: getattr(known, name) for name in Known.__slots__}
    return values | {n: None if values[n] is None else json.dumps(list(values[n])) for n in LISTS}


def _known(row: "sa.Row[tuple[object, ...]]") -> Known:
    values = {name: row._mapping[name] for name in Known.__slots__}
    for name in LISTS:
        values[name] = None if values[name] is None else tuple(json.loads(values[name]))
    return Known(**values)


def _fields(label: Label) -> dict[str, Any]:
    values = {name: getattr(label, name) for name in Label.__slots__}
    return values | {"classes": json.dumps(dict(label.classes), sort_keys=True), "origin": label.origin.value}


def _label(row: "sa.Row[tuple[object, ...]]") -> Label:
    return _label_of(dict(row._mapping))


def _label_of(row: Mapping[str, Any]) -> Label:
    values = {name: row[name] for name in Label.__slots__}
    return Label(**values | {"classes": json.loads(values["classes"]), "origin": Origin(values["origin"])})
