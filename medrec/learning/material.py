"""What a card's networks learn from and are measured on: the labels of a store, with the images of an archive.

An image counts only if it is, pixel for pixel, the one that was labelled; what is not is named and left out. A label
that is an answer of a model which somebody accepted (`accepted-AI`) is no material at all. Volumes and pictures come
through the same rooms as in the nightly run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medrec import labels, likeness
from medrec.dicom import Archive, Pseudonyms, stills
from medrec.errors import DataError
from medrec.home import Home
from medrec.labels import Label, Origin
from medrec.learning.cases import LabelledCase, inputs_of
from medrec.learning.pictures import LabelledPicture
from medrec.pictures import Card, PictureCard
from medrec.prediction import ModelCard
from medrec.routing import Routed, rules_of, select
from medrec.series import group
from medrec.store import Store
from medrec.volume import Volume, voxel_volume_mm3

Payload = LabelledCase | LabelledPicture


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One labelled image without its pixels: whose it is, what it looks like, and how it was labelled.

    `digests` are those of the pixels of every input, `stratum` what it shows, in words; `blind` says that every label
    of it was made without sight of a model's answer. `content` is what the labels say, for the data's digest.
    """

    image: str
    patient: str
    digests: tuple[str, ...]
    prints: likeness.Prints
    stratum: str
    blind: bool
    content: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What people said of the images of one card: labels in force by image, without those that may not teach."""

    masks: Mapping[str, Label]
    classes: Mapping[str, Label]

    @classmethod
    def of(cls, store: Store, card: Card) -> "Wanted":
        """From the store."""
        usable = [x for x in labels.current(store, card.name) if x.origin is not Origin.ACCEPTED_AI]
        return cls({x.image: x for x in usable if x.what == "mask"}, {x.image: x for x in usable if x.what == "class"})

    def of_image(self, image: str) -> tuple[Label, ...]:
        """Mask first."""
        return tuple(of[image] for of in (self.masks, self.classes) if image in of)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where images lie, and what was said of them when a training began: later labels are for the next one."""

    folders: tuple[Path, ...]
    home: Home
    wanted: Wanted


def read(
    card: Card, sources: Sources, problems: list[str], only: frozenset[str] | None = None
) -> Iterator[tuple[Item, Payload]]:
    """Every labelled image of a card that is there, or those of `only`; `problems` gets what is not, in words."""
    pseudonyms = Pseudonyms.load(sources.home.key)
    wanted = sources.wanted
    if isinstance(card, PictureCard):
        found = _pictures(card, sources, pseudonyms, only, problems)
    else:
        found = _volumes(card, sources, pseudonyms, only, problems)
    seen = set()
    for item, payload in found:
        if item.image not in seen:
            seen.add(item.image)
            yield item, payload
    lost = {x for x in (*wanted.masks, *wanted.classes) if only is None or x in only} - seen
    if lost:
        problems.append(f"{len(lost)} labelled images are not among the input's files, or not as they were labelled")


def _volumes(
    card: ModelCard,
    sources: Sources,
    pseudonyms: Pseudonyms,
    only: frozenset[str] | None,
    problems: list[str],
) -> Iterator[tuple[Item, Payload]]:
    wanted = sources.wanted
    by_study: dict[str, dict[str, list[Label]]] = {}
    for one in (*wanted.masks.values(), *wanted.classes.values()):
        if only is None or one.image in only:
            by_study.setdefault(one.study, {}).setdefault(one.pixels_sha256, []).append(one)
    for folder in sources.folders:
        archive = Archive(folder, pseudonyms, rules_of([card]), memory=sources.home.index)
        for study in group(archive.index().files):
            here = by_study.get(study.study)
            routed = select(study, card) if here else None
            if not here or not isinstance(routed, Routed):
                continue
            volumes = inputs_of(routed, card, archive)
            own = here.get(volumes[card.grid].pixels_sha256) if card.grid in volumes else None
            if not own:
                continue
            try:
                case = _case(card, own, volumes, sources.home)
            except DataError as error:
                problems.append(str(error))
                continue
            grid = volumes[card.grid]
            digests = tuple(sorted(v.pixels_sha256 for v in volumes.values()))
            stratum = _band(case.mask.sum() * voxel_volume_mm3(grid.affine_ijk_to_lps))
            if case.positive is not None:
                stratum = f"{'positive' if case.positive else 'negative'}, {stratum}"
            item = _item(own[0].image, wanted, digests, likeness.of_slices(grid.voxels), stratum)
            yield item, case


def _case(card: ModelCard, own: Sequence[Label], volumes: Mapping[str, Volume], home: Home) -> LabelledCase:
    """A study with what its labels say. Raises DataError for a mask that is gone or lies elsewhere."""
    masked, classed = (next((x for x in own if x.what == what), None) for what in ("mask", "class"))
    shape = volumes[card.grid].voxels.shape
    mask = np.zeros(shape, bool) if masked is None else labels.mask(home, masked)
    if masked is not None and mask.shape != shape:
        raise DataError(f"the mask of label {masked.label} does not lie on its image; add the label again")
    positive = None
    if classed is not None and card.class_column is not None and card.class_column in classed.classes:
        positive = classed.classes[card.class_column] == card.positive
    return LabelledCase(own[0].study, own[0].patient, volumes, mask, masked is not None, positive)


def _pictures(
    card: PictureCard,
    sources: Sources,
    pseudonyms: Pseudonyms,
    only: frozenset[str] | None,
    problems: list[str],
) -> Iterator[tuple[Item, Payload]]:
    wanted = sources.wanted
    for folder in sources.folders:
        for still in stills.read_folder(folder, pseudonyms):
            own = wanted.of_image(still.instance)
            if not own or (only is not None and still.instance not in only):
                continue
            if any(x.pixels_sha256 != still.pixels_sha256 for x in own):
                continue
            mask, positive, graded = np.zeros(still.pixels.shape, bool), False, ""
            masked, classed = wanted.masks.get(still.instance), wanted.classes.get(still.instance)
            if masked is not None:
                mask = labels.mask(sources.home, masked)
            if mask.shape != still.pixels.shape:
                problems.append("a mask does not lie on its image; add the label again")
                continue
            if classed is not None and card.class_column is not None:
                positive = classed.classes.get(card.class_column) == card.positive
                graded = "" if card.softened is None else classed.classes.get(card.softened.column, "")
            picture = LabelledPicture(
                still.instance, own[0].patient, "", still.pixels, mask, positive, still.pixels_sha256,
                masked is not None, classed is not None, graded,
            )  # fmt: skip
            stratum = f"{'positive' if positive else 'negative'}, {_band(mask.mean() * 1e6)}"
            prints = likeness.fingerprint(still.pixels)
            yield _item(still.instance, wanted, (still.pixels_sha256,), prints, stratum), picture


def _item(image: str, wanted: Wanted, digests: tuple[str, ...], prints: likeness.Prints, stratum: str) -> Item:
    own = wanted.of_image(image)
    blind = all(x.origin is Origin.BLIND for x in own)
    content = " ".join(f"{x.content} {x.origin}" for x in own)
    return Item(image, own[0].patient, digests, prints, stratum, blind, content)


def _band(size: float) -> str:
    """In which factor of four a size lies: fixed bounds, so that a patient's stratum does not depend on the others."""
    return "nothing marked" if size < 1 else f"marked about 4^{int(math.log(size, 4))}"


def strata(items: Sequence[Item]) -> dict[str, str]:
    """Each patient's stratum: that of the image with the most to show."""
    found: dict[str, str] = {}
    for item in items:
        found[item.patient] = max(found.get(item.patient, ""), item.stratum)
    return found
