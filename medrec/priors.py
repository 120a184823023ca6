"""The patient's study before this one: which it is, whether the two may be compared, and what changed.

Owns the choice and its refusals. All that is asked of the earlier study lies in the home, with its report: the archive
may be gone. Each file is held against its digest in the ledger before it is believed. Invariants: nothing that could
not be compared is called grown, shrunk, new or gone, and why is said; a report that stands is not changed by a study
that comes later.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import nibabel
import numpy as np

from medrec.changes import Change, Measured, Repeatability, compare
from medrec.coarse import Coarse, coarse_of
from medrec.dicom import Pseudonyms
from medrec.errors import DataError
from medrec.events import CASE_KINDS, PRUNED
from medrec.findings import Finding, Rules, label
from medrec.home import Home
from medrec.outputs import coarsened, nifti, visit
from medrec.prediction import ModelCard
from medrec.registration import Registration, register
from medrec.report import Case, Prior, Status, Verdict
from medrec.series import SEVERAL, Visit
from medrec.store import CaseRow, Store
from medrec.volume import LPS_TO_RAS

# What 95 of 100 pairs of measurements of an unchanged lesion differ by, at most. Heads were laid otherwise, made noisy
# and measured again, registration included: 12 patients by the brain MR networks and 14 phantoms by theirs, three times
# each. Volumes differed by up to 18%, small ones by more, as if their edge moved by up to 0.96 mm; 95% of diameters by
# up to 4.7 mm; and in 7 of 78 a region of up to 2.8 ml was there that was not before. The networks learnt from these
# patients, and no scanner was changed: hence the room.
DEFAULT = Repeatability(0.25, 1.0, 5.0, 3000.0, "medrec's default")
# Heads scanned again, with noise, motion and other slices, reach 0.96 and more; a T1 beside a FLAIR of one head at most
# 0.92, two heads 0.5, and a phantom's head that is 2% larger 0.87.
LEAST_SIMILARITY = 0.93
MOST_DISAGREEMENT_MM = 3.0
LEAST_OVERLAP = 0.5
MOST_ROTATION_DEG = 45.0


@dataclass(frozen=True, slots=True, eq=False)
class _Earlier:
    """What the home holds of an earlier case."""

    row: CaseRow
    facts: Mapping[str, Any]
    visit: Visit
    coarse: Coarse
    measured: Measured


def beside(case: Case, home: Home, store: Store) -> Case:
    """The case with what its report says of an earlier study; itself where no other study is known."""
    if case.labels is None or case.report.status is not Status.ANALYSED or case.card is None:
        return case
    chosen = _chosen(case, home, store)
    if chosen is None:
        return case
    prior = chosen if isinstance(chosen, Prior) else _against(case, case.card, chosen, home, store)
    return replace(case, report=replace(case.report, prior=prior))


def again(case: Case, recorded: Mapping[str, Any], home: Home, store: Store) -> Case | None:
    """The case with the same comparison made again; None when what it was compared with is not there any more.

    `recorded` is the report's `prior`. Where nothing was chosen, what was said of that is taken over.
    """
    if not recorded["case"]:
        return replace(case, report=replace(case.report, prior=Prior("", "", recorded["days"], recorded["reason"])))
    row = store.case(str(recorded["case"]))
    if row is None or case.card is None or any(r.kind == PRUNED for _, r in store.about(f"case {row.case}")):
        return None
    prior = _against(case, case.card, row, home, store)
    return replace(case, report=replace(case.report, prior=prior))


def same_lesions(prior: Prior | None) -> tuple[tuple[int, str, int], ...]:
    """(lesion, earlier case, lesion there) for each pair that is one lesion beyond doubt: they are tracked as one."""
    if prior is None:
        return ()
    return tuple((c.now[0], prior.case, c.before[0]) for c in prior.changes if c.kind == "same")


# Which one


def _chosen(case: Case, home: Home, store: Store) -> CaseRow | Prior | None:
    assert case.card is not None
    others = [r for r in store.of_person(case.report.patient, case.card.name) if r.study != case.report.study]
    if not others:
        return None
    if case.visit.nobody:
        return _none("the patient's id is a placeholder that many people share")
    if case.visit.day is None:
        return _none("this study does not say of which day it is")
    analysed = [r for r in others if r.status is Status.ANALYSED]
    if not analysed:
        return _none("the other study of this patient was not analysed")
    earlier: list[tuple[tuple[int, int], str, CaseRow]] = []
    untold = 0
    for row in analysed:
        seen = _visit(row, home, store)
        first = None if seen is None else seen.before(case.visit)
        untold += first is None
        if first and seen is not None and seen.day is not None:
            earlier.append(((seen.day, -1 if seen.minute is None else seen.minute), row.case, row))
    if earlier:
        return max(earlier)[2]
    return _none("of the other study of this patient it is not told whether it came before") if untold else None


def _none(reason: str) -> Prior:
    return Prior("", "", None, reason)


def _visit(row: CaseRow, home: Home, store: Store) -> Visit | None:
    """When an earlier study was made; None where its report does not keep it."""
    try:
        return visit.read(_read(row, visit.NAME, home, store))
    except (DataError, ValueError, TypeError):
        return None


# Whether, and what changed


def _against(case: Case, card: ModelCard, row: CaseRow, home: Home, store: Store) -> Prior:
    model = f"{row.model} {row.version}"
    try:
        earlier = _earlier(row, home, store)
    except DataError as error:
        return Prior(row.case, model, None, str(error))
    days = None
    if case.visit.day is not None and earlier.visit.day is not None:
        days = case.visit.day - earlier.visit.day
    prior = Prior(row.case, model, days, _another_person(case.visit, earlier.visit, Pseudonyms.load(home.key)))
    if prior.reason:
        return prior
    grid = case.volumes[card.grid]
    found = register(coarse_of(grid), earlier.coarse)
    prior = replace(prior, reason=_doubt(found))
    if found is None:
        return prior
    prior = replace(
        prior,
        similarity=round(found.similarity, 4),
        overlap=round(found.overlap, 4),
        disagreement_mm=round(found.disagreement_mm, 3),
        rotation_deg=round(found.rotation_deg, 2),
    )
    if prior.reason:
        return prior
    assert case.labels is not None
    now = Measured(case.labels, grid.affine_ijk_to_lps, case.report.findings, card.decision.minimum_volume_mm3)
    repeatability, caution = _repeatability(card), _caution(case, earlier)
    changes = compare(now, earlier.measured, found.matrix, repeatability)
    told = tuple(_silent(c, caution) for c in changes) if caution else changes
    return replace(prior, caution=caution, repeatability=repeatability, changes=told)


def _another_person(now: Visit, before: Visit, names: Pseudonyms) -> str:
    """Why two studies under one id may be of two people."""
    for what, a, b in (("sexes", before.sex, now.sex), ("dates of birth", before.born, now.born)):
        if SEVERAL in (a, b):
            return f"the files of one study name several {what} of the patient"
        if a and b and not names.same(a, b):
            return f"the two studies name different {what} under one id: they may be of two people"
    return ""


def _doubt(found: Registration | None) -> str:
    """Why a registration is not to be believed."""
    if found is None:
        return "the images cannot be laid over each other: one of them shows too little"
    words = "the images do not lie on each other well enough"
    if found.overlap < LEAST_OVERLAP:
        return f"{words}: they share {found.overlap:.0%} of the head, {LEAST_OVERLAP:.0%} are asked for"
    if found.similarity < LEAST_SIMILARITY:
        return f"{words}: likeness {found.similarity:.2f}, {LEAST_SIMILARITY:g} is asked for; another head, or contrast"
    if found.disagreement_mm > MOST_DISAGREEMENT_MM:
        return f"{words}: both directions differ by {found.disagreement_mm:.1f} mm"
    if found.rotation_deg > MOST_ROTATION_DEG:
        return f"{words}: one would be turned by {found.rotation_deg:.0f} degrees"
    return ""


def _caution(case: Case, earlier: _Earlier) -> str:
    """Why numbers of both studies stand side by side without a word for their difference."""
    facts, report = earlier.facts, case.report
    if facts["card_sha256"] != report.card_sha256:
        version = f"{facts['model_name']} {facts['model_version']}"
        return f"the earlier study was measured by another model ({version}): measure it anew to tell a change"
    if set(facts["pixels_sha256"]) != set(report.pixels_sha256):
        return "the model saw other series in the earlier study"
    if Verdict.INCONCLUSIVE in (report.verdict, facts["verdict"]):
        which = "this" if report.verdict is Verdict.INCONCLUSIVE else "the earlier"
        return f"the verdict of {which} study is inconclusive"
    return ""


def _silent(change: Change, why: str) -> Change:
    return replace(change, word="not told", why=change.why or why)


def _repeatability(card: ModelCard) -> Repeatability:
    own = card.priors
    if own.repeatability_volume_relative is None or own.repeatability_diameter_mm is None:
        return DEFAULT
    region_mm3 = DEFAULT.region_mm3 if own.smallest_new_ml is None else 1000 * own.smallest_new_ml
    volume, diameter_mm = own.repeatability_volume_relative, own.repeatability_diameter_mm
    return Repeatability(volume, 0.0, diameter_mm, region_mm3, own.source)


# From the home


def _earlier(row: CaseRow, home: Home, store: Store) -> _Earlier:
    """All that is kept of an earlier case. Raises DataError, in words for a report, where it is not."""
    try:
        facts = json.loads(_read(row, "report.json", home, store))
        seen = visit.read(_read(row, visit.NAME, home, store))
        coarse = coarsened.read(_read(row, coarsened.NAME, home, store))
        mask = nibabel.Nifti1Image.from_bytes(gzip.decompress(_read(row, nifti.NAME, home, store)))
        affine = LPS_TO_RAS @ np.asarray(mask.affine, np.float64)
        # Components are numbered as they were: by size, and in the order in which they lie.
        labels = label(np.asarray(mask.dataobj) > 0, affine, Rules(0.0))
        findings = tuple(Finding(**{k: _tuples(v) for k, v in f.items()}) for f in facts["findings"])
    except (OSError, ValueError, TypeError, KeyError):
        raise DataError("what is kept of the earlier study cannot be read") from None
    if int(labels.max()) != len(findings):
        raise DataError("report and mask of the earlier study do not tell of the same lesions")
    minimum_mm3 = min((f.volume_mm3 for f in findings), default=0.0)
    measured = Measured(labels, affine, findings, _minimum_mm3(facts, home, minimum_mm3))
    return _Earlier(row, facts, seen, coarse, measured)


def _minimum_mm3(facts: Mapping[str, Any], home: Home, otherwise: float) -> float:
    """The smallest lesion that the earlier study's card lets report tell of."""
    try:
        card = json.loads((home.kept / f"{facts['card_sha256']}.card.json").read_bytes())
        return float(card["decision"]["minimum_volume_mm3"])
    except (OSError, ValueError, KeyError):
        return otherwise


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _read(row: CaseRow, name: str, home: Home, store: Store) -> bytes:
    """A file of an earlier report, as the ledger tells of it. Raises DataError when it is not there or was changed."""
    relative = f"reports/{row.case}/{name}"
    records = [r for _, r in store.about(f"case {row.case}") if r.kind in CASE_KINDS]
    files = records[-1].facts.get("files", {}) if records else {}
    written = files.get(relative) if isinstance(files, dict) else None
    if written is None:
        raise DataError("an earlier release reported on the other study and kept no image to compare with")
    try:
        data = (home.root / relative).read_bytes()
    except OSError:
        raise DataError("the report of the earlier study is not in this home any more") from None
    if hashlib.sha256(data).hexdigest() != written:
        raise DataError("the report of the earlier study is not as it was written")
    return data
