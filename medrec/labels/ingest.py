"""Studies made known without analysing them: what may be labelled, on which grid, by whose pixels.

Every file of a folder goes through the rooms of the nightly run up to its pixels. Invariant: what becomes known is what
a night would analyse, and every file ends in exactly one of known, unused and refused.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medrec.dicom import Archive, Pseudonyms
from medrec.dicom.stills import Still
from medrec.home import Home
from medrec.pictures import Card
from medrec.prediction import ModelCard
from medrec.routing import Routed, RoutedPictures, route, rules_of
from medrec.series import Reason, Refused, ScanFile, Series, Skipped, Study, group
from medrec.store import Known, Store
from medrec.volume import Volume

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Ingested:
    """What a folder held: files by where they went, images that are known now (`new` before this), and reasons."""

    files: dict[str, int] = field(default_factory=dict)
    studies: int = 0
    images: int = 0
    new: int = 0
    cards: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)


def ingest(
    folder: Path,
    home: Home,
    store: Store,
    cards: Sequence[Card],
    at: str,
    progress: Progress = lambda what, done, total: None,
) -> Ingested:
    """Make known what `cards` take of the DICOM files below a folder. Raises WorldError when it cannot be listed."""
    return _Ingest(folder, home, store, cards, at).run(progress)


class _Ingest:
    def __init__(self, folder: Path, home: Home, store: Store, cards: Sequence[Card], at: str) -> None:
        self._archive = Archive(folder, Pseudonyms.load(home.key), rules_of(cards), memory=home.index)
        self._store, self._cards, self._at = store, cards, at
        self._before = {known.image: known for known in store.known()}
        self._done = Ingested()
        self._known: set[int] = set()
        self._refused: dict[int, str] = {}

    def run(self, progress: Progress) -> Ingested:
        index = self._archive.index()
        self._refuse(index.refused)
        erased = self._store.erased_patients()
        self._refuse((f for f in index.files if f.patient in erased), str(Reason.ERASED))
        studies = group(f for f in index.files if f.patient not in erased)
        for number, study in enumerate(studies, 1):
            self._study(study)
            progress("studies", number, len(studies))
        refused = {o: why for o, why in self._refused.items() if o not in self._known}
        seen, known = index.seen, len(self._known)
        self._done.files = {
            "seen": seen,
            "known": known,
            "unused": seen - known - len(refused),
            "refused": len(refused),
        }
        self._done.reasons = Counter(why.partition(":")[0] for why in refused.values())
        return self._done

    def _study(self, study: Study) -> None:
        if len(study.patients) > 1:
            self._refuse(study.files, str(Reason.MIXED_PATIENTS))
            return
        self._store.remember_study(study.study, study.patients[0], self._at)
        self._done.studies += 1
        series: dict[str, tuple[Series, list[str]]] = {}
        pictures: dict[str, tuple[ScanFile, list[str]]] = {}
        for card in self._cards:
            routed = route(study, card)
            if isinstance(routed, Skipped):
                self._refuse(routed.files, str(routed))
            elif isinstance(routed, RoutedPictures):
                for skipped in routed.defective:
                    self._refuse(skipped.files, str(skipped))
                for file in routed.pictures:
                    pictures.setdefault(file.instance, (file, []))[1].append(card.name)
            elif isinstance(routed, Routed) and isinstance(card, ModelCard):
                self._inputs(card, routed, series)
        for one, names in series.values():
            self._volume(one, names)
        self._pictures(list(pictures.values()))

    def _inputs(self, card: ModelCard, routed: Routed, series: dict[str, tuple[Series, list[str]]]) -> None:
        """The grid of a card is what is labelled; its other inputs are known with it."""
        grid = routed.inputs[card.grid]
        same, names = series.setdefault(grid.first.series, (grid, []))
        if same != grid:  # a series holds two stacks, and another card takes the other one
            self._refuse(grid.files, f"{Reason.MIXED}: cards take different stacks of one series")
            return
        names.append(card.name)
        self._known.update(f.ordinal for f in routed.files if f not in grid.files)

    def _volume(self, series: Series, cards: list[str]) -> None:
        inputs = tuple(sorted({f.sha256 for f in series.files}))
        if self._again(series.first.series, inputs, cards):
            self._known.update(f.ordinal for f in series.files)
            return
        loaded = self._archive.load(series)
        if isinstance(loaded, Skipped):
            self._refuse(series.files, str(loaded))
            return
        volume, refused = loaded
        self._refuse(refused)
        first, bad = series.first, {r.ordinal for r in refused}
        folders = frozenset[str]().union(*(self._archive.folders(f) for f in series.files))
        self._know(
            Known(
                image=first.series,
                study=first.study,
                patient=first.patient,
                series=first.series,
                frame=first.frame_of_reference,
                modality=first.modality,
                cards=tuple(sorted(cards)),
                shape=volume.voxels.shape,
                affine=tuple(float(n) for n in volume.affine_ijk_to_lps.ravel()),
                instances=tuple(copies[0].instance for copies in series.slices),
                inputs=inputs,
                geometry_sha256=geometry_sha256(volume),
                pixels_sha256=volume.pixels_sha256,
                at=self._at,
                names=tuple(sorted(folders)),
            ),
            [f for f in series.files if f.ordinal not in bad],
        )

    def _pictures(self, pictures: list[tuple[ScanFile, list[str]]]) -> None:
        new = []
        for file, cards in pictures:
            if self._again(file.instance, (file.sha256,), cards):
                self._known.add(file.ordinal)
            else:
                new.append((file, cards))
        for (file, cards), still in zip(new, self._archive.stills([f for f, _ in new]), strict=True):
            if isinstance(still, Refused):
                self._refuse([still])
                continue
            self._know(self._of_still(file, cards, still), [file])

    def _of_still(self, file: ScanFile, cards: list[str], still: Still) -> Known:
        shape = still.pixels.shape
        return Known(
            image=file.instance,
            study=file.study,
            patient=file.patient,
            series=file.series,
            frame=None,
            modality=file.modality,
            cards=tuple(sorted(cards)),
            shape=shape,
            affine=None,
            instances=(file.instance,),
            inputs=(file.sha256,),
            geometry_sha256=_sha256([list(shape)]),
            pixels_sha256=still.pixels_sha256,
            at=self._at,
            names=tuple(sorted(self._archive.folders(file) | self._archive.called(file))),
        )

    def _again(self, image: str, inputs: tuple[str, ...], cards: list[str]) -> bool:
        """Whether an image is known by the same files: then its pixels need not be decoded again."""
        before = self._before.get(image)
        if before is None or before.inputs != inputs:
            return False
        self._store.know(replace(before, cards=tuple(sorted(cards))))
        self._count(cards)
        return True

    def _know(self, known: Known, files: Iterable[ScanFile]) -> None:
        self._store.know(known)
        self._done.new += known.image not in self._before
        self._known.update(f.ordinal for f in files)
        self._count(known.cards)

    def _count(self, cards: Iterable[str]) -> None:
        self._done.images += 1
        self._done.cards.update(cards)

    def _refuse(self, files: Iterable[ScanFile | Refused], why: str = "") -> None:
        for file in files:
            self._refused.setdefault(file.ordinal, why or str(file))


def geometry_sha256(volume: Volume) -> str:
    """Digest of a grid: its shape and affine."""
    return _sha256([list(volume.voxels.shape), [float(n) for n in volume.affine_ijk_to_lps.ravel()]])


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
