"""A case made again from its inputs, and held against its record, stage by stage.

Owns `Replay` and `Compared`. Inputs are found by their digests, card and weights come from the home, where every case
keeps them. In the environment that made the case (distributions, processor, threads, device) everything must come out
bit for bit; elsewhere decoded pixels must, and what the networks say must agree within the tolerances below. Writes
nothing.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import ValidationError

from medrec import environment, pipeline, planning, priors, stages
from medrec.audit import AuditRecord, salted
from medrec.config import CardFiles, Configuration, Settings
from medrec.config import load as configuration_of
from medrec.dicom import Archive, Pseudonyms
from medrec.errors import DataError, WeightsError
from medrec.events import CASE_KINDS, ERASED, PRUNED
from medrec.home import Home, sha256_of
from medrec.outputs import masks
from medrec.pictured import PreparedPictures
from medrec.pictures import Card, PictureCard, card_of
from medrec.pipeline import AnyPrediction, Prepared, Setting
from medrec.planning import Planned
from medrec.prediction import ModelCard
from medrec.report import AnyCase, Case, PictureCase, Status
from medrec.routing import rules_of
from medrec.series import ScanFile, group
from medrec.store import CaseRow, Store

# Other processors and libraries add in another order; what they change is far below what a reader can see.
MASK_SHARE = 1e-3  # of the marked voxels may differ, and at least:
MASK_VOXELS = 8
VOLUME_SHARE = 1e-2
PROBABILITY = 1e-2
SHORTEST_PREFIX = 6
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Compared:
    """One stage: whether it came out as recorded, and in plain words what differs or how far it was compared."""

    stage: str
    same: bool
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.stage}: {'same' if self.same else 'DIFFERS'}{f', {self.detail}' if self.detail else ''}"


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of a replay; `stages` end with the first that differs."""

    case: str
    stages: tuple[Compared, ...]
    exact: bool

    @property
    def agrees(self) -> bool:
        """Whether every stage came out as recorded."""
        return all(s.same for s in self.stages)

    @property
    def first_difference(self) -> str | None:
        """The name of the first stage that differs."""
        return next((s.stage for s in self.stages if not s.same), None)


def replay(key: str, folder: Path, home: Home, store: Store) -> Replay:
    """Make a case again from the files in `folder` and compare. `key` may be the beginning of a case's key.

    Raises DataError when there is nothing to replay: no such case, erased, failed, or no model asked for it.
    """
    row, record = _recorded(key, store)
    exact = record.facts.get("environment") == environment.digest()
    done: list[Compared] = []
    for compared in _stages(row, record, folder, home, store, exact):
        done.append(compared)
        if not compared.same:
            break
    return Replay(row.case, tuple(done), exact)


def _recorded(key: str, store: Store) -> tuple[CaseRow, AuditRecord]:
    if store.about(f"case {key}") and any(r.kind == ERASED for _, r in store.about(f"case {key}")):
        raise DataError(f"case {key}: erased; its patient asked for it, and nothing is left to replay")
    found = [
        row for row in store.cases() if row.case == key or (len(key) >= SHORTEST_PREFIX and row.case.startswith(key))
    ]
    if len(found) != 1:
        raise DataError(f"there {'is no case' if not found else 'are several cases'} {key} in this home")
    (row,) = found
    if row.status is Status.FAILED:
        raise DataError(f"case {row.case} failed for a reason of ours; the next night tries it again")
    if row.model is None:
        raise DataError(f"case {row.case}: no model was run, {row.reason}; there is nothing to replay")
    record = [r for _, r in store.about(f"case {row.case}") if r.kind in CASE_KINDS or r.kind == PRUNED][-1]
    if record.kind == PRUNED:
        rule = record.facts["rule"]
        raise DataError(f"case {row.case}: pruned on {record.at[:10]} by the rule {rule}; its report is not kept")
    return row, record


def _stages(
    row: CaseRow, record: AuditRecord, folder: Path, home: Home, store: Store, same_environment: bool
) -> Iterator[Compared]:
    facts, salt = record.facts, store.salt(row.patient)
    kept = _Kept(home, row, facts)
    yield kept.report
    model = kept.card(row)
    yield model if isinstance(model, Compared) else Compared("card", True)
    if isinstance(model, Compared):
        return
    archive = Archive(folder, Pseudonyms.load(home.key), rules_of([model.card]))
    wanted = {str(digest) for digest in facts["inputs"]}  # type: ignore[attr-defined]
    found = _inputs(archive, row.study, wanted, salt)
    yield found if isinstance(found, Compared) else Compared("inputs", True, f"{len(wanted)} files")
    if isinstance(found, Compared):
        return
    planned, whole = _planned(found, model, wanted, salt)
    prepared = pipeline.prepare(planned, archive)
    if isinstance(prepared, Prepared | PreparedPictures):
        yield _pixels(prepared, facts, salt)
    prediction, device, threads = None, "", 0
    if isinstance(prepared, Prepared | PreparedPictures):
        try:
            prediction, device, threads = _predict(prepared, model, facts)
        except WeightsError as error:
            yield Compared("weights", False, str(error))
            return
        yield Compared("weights", True)
    configuration = Configuration(Settings(), (model,))
    setting = Setting(row.batch, home, store, configuration, device, threads)
    case = pipeline.case_of(planned, prepared, prediction, setting, datetime.now(UTC))
    recorded = (facts.get("device", device), facts.get("threads", threads))
    exact = same_environment and recorded == (case.report.device, threads) and "stages" in facts
    told = kept.facts.get("prior")
    compared = priors.again(case, told, home, store) if told is not None and isinstance(case, Case) else case
    yield from _digests(compared or case, facts, salt) if exact else _near(case, kept)
    if compared is None:
        yield Compared("prior", True, "not compared: the earlier report is not kept any more")
    yield _report(compared or case, kept.facts, whole, exact, () if compared else ("prior",))


class _Kept:
    """What the home kept of a case, each piece held against the digest in its record before it is believed."""

    def __init__(self, home: Home, row: CaseRow, facts: Mapping[str, Any]) -> None:
        self._home = home
        self._files: Mapping[str, str] = facts.get("files", {})
        self._folder = f"reports/{row.case}"
        self._ordered = "stages" in facts
        self._card_digest = str(facts.get("card", ""))
        data = self._read(f"{self._folder}/report.json")
        self.report = Compared("kept report", data is not None, "" if data else "report.json is not as it was written")
        self.facts: dict[str, Any] = json.loads(data) if data else {}

    def card(self, row: CaseRow) -> CardFiles | Compared:
        """The card as it was, and where its weights are kept."""
        data = self._read(f"kept/{self._card_digest}.card.json")
        if data is None:
            return Compared("card", False, f"the card of {row.model} {row.version} is not as it was kept")
        try:
            card: Card = card_of(json.loads(data))
        except ValidationError as error:
            return Compared("card", False, f"this medrec cannot read it ({error.error_count()} mistakes)")
        card = card if self._ordered or isinstance(card, PictureCard) else _in_order(card)
        weights = {n.weights: self._home.kept / f"{n.sha256}.safetensors" for n in card.networks.values()}
        return CardFiles(card, weights)

    def mask(self) -> npt.NDArray[np.bool_] | None:
        """(i, j, k) of segmentation.nii.gz; None when it is gone or changed."""
        name = f"{self._folder}/segmentation.nii.gz"
        if self._read(name) is None:
            return None
        mask: npt.NDArray[np.bool_] = np.asarray(nibabel.Nifti1Image.from_filename(self._home.root / name).dataobj) > 0
        return mask

    def picture_masks(self) -> dict[str, npt.NDArray[np.bool_]] | None:
        """(rows, columns) of each image's mask by the digest of its file; None when one is gone or changed."""
        folder = self._home.root / self._folder / masks.NAME
        name = f"{self._folder}/{masks.NAME}"
        if name not in self._files or not folder.is_dir() or sha256_of(folder) != self._files[name]:
            return None
        return {path.stem: np.asarray(Image.open(path)) > 0 for path in sorted(folder.glob("*.png"))}

    def _read(self, relative: str) -> bytes | None:
        try:
            data = (self._home.root / relative).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == self._files.get(relative) else None


def _in_order(card: ModelCard) -> ModelCard:
    """The card with its inputs in the order of the networks' channels.

    Cards that release 0.1.0 kept have lost it: it is that of the packaged card of otherwise the same content.
    """
    cards = (c.card for c in configuration_of().cards)
    return next((c for c in cards if isinstance(c, ModelCard) and c.model_dump() == card.model_dump()), card)


def _inputs(archive: Archive, study: str, wanted: set[str], salt: str) -> list[ScanFile] | Compared:
    """The files of the study that are there; a comparison when recorded inputs are missing."""
    files = [f for f in archive.index().files if f.study == study]
    there = {salted(salt, f.sha256) for f in files}
    if missing := len(wanted - there):
        return Compared(
            "inputs", False, f"{missing} of {len(wanted)} input files are not in the folder, or were changed"
        )
    return files


def _planned(files: list[ScanFile], model: CardFiles, wanted: set[str], salt: str) -> tuple[Planned, bool]:
    """The case as it is planned today, without what came later if that changes it; and whether all files took part."""

    def plan(of: list[ScanFile]) -> Planned:
        return planning.plan(group(of), Configuration(Settings(), (model,)))[0]

    planned = plan(files)
    if {salted(salt, digest) for digest in planned.inputs} == wanted:
        return planned, True
    return plan([f for f in files if salted(salt, f.sha256) in wanted]), False


def _predict(
    prepared: Prepared | PreparedPictures, model: CardFiles, facts: Mapping[str, Any]
) -> tuple[AnyPrediction, str, int]:
    from medrec.models import inference, still  # torch and MONAI take seconds

    device = inference.device_name("auto") if str(facts.get("device")).startswith("cuda") else "cpu"
    inference.use_threads(int(facts.get("threads") or 0))
    card, files = model.card, model.weights
    predictor = (
        still.load(card, files, device) if isinstance(card, PictureCard) else inference.load(card, files, device)
    )
    return pipeline.predict(prepared, predictor), device, inference.threads()


def _pixels(prepared: Prepared | PreparedPictures, facts: Mapping[str, Any], salt: str) -> Compared:
    recorded = facts["pixels"]
    now = {name: salted(salt, digest) for name, digest in prepared.pixels_sha256.items()}
    different = sorted(n for n in now.keys() | recorded.keys() if now.get(n) != recorded.get(n))
    return Compared("pixels", not different, f"decoded otherwise: {', '.join(different)}" if different else "")


def _digests(case: AnyCase, facts: Mapping[str, Any], salt: str) -> Iterator[Compared]:
    """Bit for bit; the report is compared by its fields, which say more."""
    now = stages.digests(case)
    for stage in (s for s in stages.ORDER if s not in ("pixels", "report")):
        recorded = facts["stages"].get(stage)
        if stage == "prior" and stage not in now:
            continue  # what it was compared with is gone: said where that is known
        if recorded is not None or stage in now:
            yield Compared(stage, stage in now and salted(salt, now[stage]) == recorded, "bit for bit")


def _near(case: AnyCase, kept: _Kept) -> Iterator[Compared]:
    """The mask within the stated tolerance of the one that was kept."""
    if isinstance(case, PictureCase):
        yield from _near_pictures(case, kept)
        return
    if case.labels is None or case.card is None or case.card.segmentation is None:
        return
    before, now = kept.mask(), case.labels > 0
    if before is None or before.shape != now.shape:
        yield Compared("prediction", False, "segmentation.nii.gz is not as it was written")
        return
    different, limit = int((before != now).sum()), max(MASK_VOXELS, MASK_SHARE * int(before.sum()))
    words = f"another environment: {different} voxels differ, at most {limit:.0f} may"
    yield Compared("prediction", different <= limit, words)


def _near_pictures(case: PictureCase, kept: _Kept) -> Iterator[Compared]:
    """As `_near`, over the images of a case together."""
    now = {p.input: p.prediction.mask for p in case.pictures}
    before = kept.picture_masks() if now else {}
    if not now:
        return
    if before is None or {n: m.shape for n, m in before.items()} != {n: m.shape for n, m in now.items()}:
        yield Compared("prediction", False, "the masks are not as they were written")
        return
    different = sum(int((before[n] != now[n]).sum()) for n in now)
    limit = max(MASK_VOXELS * len(now), MASK_SHARE * sum(int(m.sum()) for m in before.values()))
    words = f"another environment: {different} pixels differ, at most {limit:.0f} may"
    yield Compared("prediction", different <= limit, words)


def _report(
    case: AnyCase, before: Mapping[str, Any], whole: bool, exact: bool, unknown: tuple[str, ...] = ()
) -> Compared:
    """Field by field; a field that only one of the two releases knows is no difference."""
    without = ("card_sha256", *unknown) + (() if whole else ("refused_inputs",))
    now = json.loads(json.dumps(stages.essence(case.report, without)))
    # Series that no input came from may have been sent later, or be gone from the archive.
    before = {**before, "series": [s for s in before.get("series", ()) if s["role"]]}
    now["series"] = [s for s in now.get("series", ()) if s["role"]]
    spacing_mm = max(case.report.spacing_mm, default=0.0)
    same: Callable[[str, Any, Any], bool] = _equal if exact else lambda name, a, b: _close(name, a, b, spacing_mm)
    different = [name for name in now if name in before and not same(name, before[name], now[name])]
    detail = f"it says otherwise: {', '.join(different)}" if different else "" if exact else "within the tolerances"
    return Compared("report", not different, detail)


def _equal(name: str, a: Any, b: Any) -> bool:
    return bool(a == b)


def _close(name: str, a: Any, b: Any, spacing_mm: float, inside: str = "") -> bool:
    """Whether two values of one field agree within the tolerances."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(k, a[k], b[k], spacing_mm, name) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_close(name, x, y, spacing_mm) for x, y in zip(a, b, strict=True))
    if inside == "prior" and name in ("reason", "caution"):
        return _NUMBER.sub("#", str(a)) == _NUMBER.sub("#", str(b))
    if name in ("flags", "verdict_text"):  # numbers within sentences are those of other fields
        return _NUMBER.sub("#", str(a)) == _NUMBER.sub("#", str(b))
    if isinstance(a, bool) or not isinstance(a, int | float) or not isinstance(b, int | float):
        return bool(a == b)
    if name in ("similarity", "overlap"):
        return abs(a - b) <= PROBABILITY
    if name.endswith("_percent"):
        return abs(a - b) <= 200 * VOLUME_SHARE
    if name.startswith("volume_") and name.endswith("_mm3"):
        return abs(a - b) <= max(VOLUME_SHARE * abs(a), MASK_VOXELS * spacing_mm**3)
    if "probability" in name or inside == "probabilities":
        return abs(a - b) <= PROBABILITY
    if name.startswith("area_"):
        return abs(a - b) <= max(VOLUME_SHARE * abs(a), MASK_VOXELS)
    if name.endswith("_px"):
        return abs(a - b) <= 1
    if name.endswith(("_mm", "_deg")):
        return abs(a - b) <= spacing_mm
    return abs(a - b) <= 1 if name.endswith(("_ijk", "_slice")) else bool(a == b)
