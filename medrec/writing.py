"""A case on the disk: its report, what goes back to its study, and what made it; each with its digest.

Invariants: a folder under its final name is whole; what was written before the store knows of it is written again.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from medrec import disk, environment, objects
from medrec.audit import anchor_text
from medrec.config import CardFiles
from medrec.dicom import Archive
from medrec.errors import WorldError
from medrec.home import Home, sha256_of
from medrec.outputs import OUTPUTS, PICTURE_OUTPUTS
from medrec.prediction import ModelCard
from medrec.report import AnyCase, Case, PictureCase, Status
from medrec.series import Series
from medrec.store import Store


def report(case: AnyCase, home: Home) -> dict[str, str]:
    """Write all outputs into a draft folder, flush it, and put it in place; returns digests by path below the home."""
    final = home.reports / case.report.case
    draft = home.reports / f".draft-{case.report.case}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        _write(case, draft)
        digests = {}
        for path in sorted(draft.iterdir()):
            for inside in sorted(path.iterdir()) if path.is_dir() else ():
                disk.flush(inside)
            disk.flush(path)
            # Files within a folder are named by digests of the patient's own: the folder stands for all of them.
            digests[str((final / path.name).relative_to(home.root))] = sha256_of(path)
        disk.flush(draft)
        shutil.rmtree(final, ignore_errors=True)  # left by a killed night, or of a case that failed before
        draft.rename(final)
        disk.flush(home.reports)
    except OSError as error:
        raise WorldError(
            f"the report of case {case.report.case} cannot be written: {os.strerror(error.errno or 0)}"
        ) from error
    return digests


def _write(case: AnyCase, folder: Path) -> None:
    if isinstance(case, PictureCase):
        for write_pictures in PICTURE_OUTPUTS.values():
            write_pictures(case, folder)
    else:
        for write in OUTPUTS.values():
            write(case, folder)


def returned(case: Case, inputs: Mapping[str, Series], archive: Archive, home: Home, store: Store) -> dict[str, str]:
    """Put what goes back to the study into the outbox; returns digests by path below the home.

    A study that nothing can be returned to keeps its report; the reason lies in the outbox.
    """
    card = case.card
    if not isinstance(card, ModelCard) or not card.returned.objects or case.report.status is not Status.ANALYSED:
        return {}
    before = store.current(case.report.study, card.name)
    folder = home.outbox / case.report.case
    earlier = home.outbox / before.case if before is not None and before.case != case.report.case else None
    try:
        found = objects.make(case, archive.source(inputs[card.grid]), earlier, anchor_text(store.position()))
    except objects.NotReturnableError as why:
        found = (objects.refusal(why),)
    objects.place(found, folder)
    return {str((folder / one.name).relative_to(home.root)): one.sha256 for one in found}


def keep(model: CardFiles | None, home: Home) -> dict[str, str]:
    """Copy card, weights and the list of the environment into the home by digest; returns digests by path below it.

    Years later a report can be replayed with what made it, whatever the package holds then.
    """
    contents = [(environment.content(), "environment.json")]
    if model is not None:
        contents += [(model.card.content, "card.json")]
        contents += [(path.read_bytes(), "safetensors") for path in model.weights.values()]
    kept = {}
    for data, suffix in contents:
        digest = hashlib.sha256(data).hexdigest()
        path = home.kept / f"{digest}.{suffix}"
        if not path.exists():
            disk.replace_file(path, data)
        kept[str(path.relative_to(home.root))] = digest
    return kept
