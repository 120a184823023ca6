"""`medrec pull`: jobs that bring studies from a PACS, and go on where they were stopped.

A job is a file in the spool: which studies were found, how many images each was said to have, and which are here. It is
named by what was asked, so that asking again goes on. Invariants: what came is counted against what was promised; a
study that came incomplete is not handed over, and is asked for again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medrec.dicom.parsing import IMAGES
from medrec.errors import WorldError
from medrec.network import Pacs, RefusedError, SeriesFound, Wanted
from medrec.sources.spool import Spool

TRIES = 3
Tell = Callable[[int, int], None]
"""Gets studies done and in all."""


@dataclass(frozen=True, slots=True, repr=False)
class Item:
    """One study of a job, and how many images the PACS holds of it."""

    study_uid: str
    expected: int
    received: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a job did: studies and images, expected and here; `problems` are sentences for a person."""

    studies: int
    complete: int
    expected: int
    received: int
    problems: tuple[str, ...]


def pull(pacs: Pacs, wanted: Wanted, spool: Spool, tell: Tell) -> Pulled:
    """Find what is wanted, and bring what is not here yet. `tell` gets studies done and in all.

    Raises UnreachableError when the PACS is away; the job then goes on at the next call. Raises WorldError when the
    disk does not take what comes.
    """
    spool.create()
    path = spool.jobs / f"{_name(pacs.name, wanted)}.json"
    items = _merged(_load(path), _search(pacs, wanted))
    _save(path, items)
    problems: list[str] = []
    for number, item in enumerate(items):
        if not item.done:
            items[number], problem = _fetch(pacs, item, spool)
            problems += [f"study {number + 1} of {len(items)}: {problem}"] if problem else []
            _save(path, items)
        tell(number + 1, len(items))
    return Pulled(
        studies=len(items),
        complete=sum(i.done for i in items),
        expected=sum(i.expected for i in items),
        received=sum(i.received for i in items),
        problems=tuple(problems),
    )


def _search(pacs: Pacs, wanted: Wanted) -> list[Item]:
    """What the PACS has of what is wanted, and how many images each study has: as told, else as listed."""
    found = []
    for study in pacs.search(wanted):
        series = pacs.series(study.study_uid)
        if wanted.fits(study, series):
            counts = (_count(pacs, study.study_uid, s) for s in _images(series))
            found.append(Item(study.study_uid, sum(counts)))
    return found


def _images(series: Sequence[SeriesFound]) -> list[SeriesFound]:
    """Those of images: reports, presentation states and the like are not brought, and not counted."""
    return [one for one in series if one.modality in IMAGES]


def _count(pacs: Pacs, study_uid: str, series: SeriesFound) -> int:
    return len(pacs.holds(study_uid, series.series_uid)) if series.images is None else series.images


def _fetch(pacs: Pacs, item: Item, spool: Spool) -> tuple[Item, str]:
    """One study, asked for a few times while images are missing."""
    came: set[str] = set()
    for _ in range(TRIES):
        try:
            for series in _images(pacs.series(item.study_uid)):
                came |= pacs.fetch(item.study_uid, series.series_uid, spool.keep)
        except RefusedError as error:
            return item, str(error)
        if len(came) >= item.expected:
            spool.complete(item.study_uid)
            return replace(item, received=len(came), done=True), ""
    why = f"{len(came)} of {item.expected} images came; it is asked for again next time"
    return replace(item, received=len(came)), why


def _merged(known: list[Item], found: list[Item]) -> list[Item]:
    """What a job knew, and what is new; a study that has grown is asked for again."""
    before = {item.study_uid: item for item in known}
    for item in found:
        old = before.get(item.study_uid)
        if old is None or item.expected > max(old.expected, old.received):
            before[item.study_uid] = item
    return list(before.values())


def _name(peer: str, wanted: Wanted) -> str:
    question = json.dumps([peer, asdict(wanted)])
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def _load(path: Path) -> list[Item]:
    """The job as it was left; a file that was damaged is begun anew, because what came is in the spool anyway."""
    try:
        return [Item(**item) for item in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def _save(path: Path, items: list[Item]) -> None:
    draft = path.with_suffix(".draft")
    try:
        draft.write_text(json.dumps([asdict(item) for item in items]))
        draft.chmod(0o600)
        draft.replace(path)
    except OSError as error:
        raise WorldError(f"the job cannot be kept: {os.strerror(error.errno or 0)}") from None
