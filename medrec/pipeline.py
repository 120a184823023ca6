"""One study from files to a finished case: plan, prepare, predict, finish.

Three steps do the work, so that they can overlap; `plan` says beforehand what there is to do. Invariants: every study
gets a case, analysed or not; the case key covers inputs, card, weights and result-changing settings and nothing else;
outputs are whole before the store knows of them; one poisoned study ends as a value, not as an exception.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast

import numpy as np

from medrec import __version__, burned, environment, findings, observed, pictured, priors, report, stages, writing
from medrec.config import Configuration
from medrec.contrast import fluid_is_dark, proved
from medrec.dicom import Archive
from medrec.errors import ScanError
from medrec.home import Home
from medrec.kinds import kinds_of
from medrec.pictured import PreparedPictures
from medrec.pictures import IMAGE, Card, PictureCard, PicturePrediction, PicturePredictor
from medrec.planning import Planned
from medrec.plausibility import doubts
from medrec.prediction import InputRule, ModelCard, Prediction, Predictor
from medrec.report import AnyCase, Case, ImageFacts, PictureCase, Report, SeriesUse, Status, Verdict
from medrec.routing import Routed, RoutedPictures, covered_share
from medrec.series import Reason, Refused, Series, Skipped
from medrec.store import CaseRow, Store
from medrec.volume import Volume, midplane_left_mm, on_grid, tilt_from_axial_deg


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Volumes on one grid by input name, files that turned out broken, and series that could not be used after all."""

    volumes: Mapping[str, Volume]
    refused: tuple[Refused, ...]
    defective: tuple[Skipped, ...]

    @property
    def pixels_sha256(self) -> Mapping[str, str]:
        """Digests of the decoded inputs, by name."""
        return {name: volume.pixels_sha256 for name, volume in self.volumes.items()}


AnyPrepared = Prepared | PreparedPictures | Skipped
AnyPrediction = Prediction | tuple[PicturePrediction, ...] | Skipped


@dataclass(frozen=True, slots=True)
class Finished:
    """A case that stands in the store, and why some files turned out not to be inputs, by their digest."""

    row: CaseRow
    refused: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cases of one night share; `original` is `medrec.dicom.renaming.Renamed.original`."""

    batch: str
    home: Home
    store: Store
    configuration: Configuration
    device: str
    threads: int = 0
    original: Callable[[str], str] = str


def prepare(planned: Planned, archive: Archive) -> AnyPrepared:
    """Decode the inputs and bring them onto the grid of the card's grid input; single images stay as they are.

    Raises WorldError when a file changed or vanished since it was indexed.
    """
    if isinstance(planned.routed, Skipped):
        return planned.routed
    if isinstance(planned.routed, RoutedPictures):
        return pictured.prepare(planned.routed, archive)
    assert planned.model is not None
    card = planned.model.card
    assert isinstance(card, ModelCard)
    volumes: dict[str, Volume] = {}
    refused: list[Refused] = []
    defective: list[Skipped] = []
    for name in sorted(planned.routed.inputs, key=lambda n: n != card.grid):
        loaded = _proved(archive.load(planned.routed.inputs[name]), planned.routed.inputs[name], card.inputs[name])
        if isinstance(loaded, Skipped):
            if card.inputs[name].required:
                return Skipped(loaded.what, loaded.reason, f"{name.upper()}: {loaded.detail}", loaded.files)
            defective.append(loaded)
            continue
        volume, broken = loaded
        volumes[name] = on_grid(volume, volumes[card.grid]) if name != card.grid else volume
        refused += broken
    return Prepared(volumes, tuple(refused), tuple(defective))


def _proved(
    loaded: tuple[Volume, tuple[Refused, ...]] | Skipped, series: Series, rule: InputRule
) -> tuple[Volume, tuple[Refused, ...]] | Skipped:
    """What came in, unless it is called FLAIR, nothing tells how it was made, and its fluid is bright."""
    if isinstance(loaded, Skipped) or rule.contrast != "flair" or proved(series.first.timing, "flair"):
        return loaded
    if fluid_is_dark(loaded[0]) is not False:
        return loaded
    detail = "called FLAIR, but its fluid is bright, as in T2, and no inversion time is given"
    return Skipped(series.first.series, Reason.WRONG_CONTRAST, detail, series.files)


def predict(prepared: Prepared | PreparedPictures, predictor: Predictor | PicturePredictor) -> AnyPrediction:
    """Run the card's networks; an image that is empty or cannot be placed is refused by name."""
    if isinstance(prepared, PreparedPictures):
        return pictured.predict(prepared, cast(PicturePredictor, predictor))
    volumes = cast(Predictor, predictor)
    try:
        return volumes.predict(prepared.volumes)
    except ScanError as error:
        return Skipped(volumes.card.grid, Reason.BAD_GEOMETRY, str(error), ())


def finish(
    planned: Planned,
    prepared: AnyPrepared,
    prediction: AnyPrediction | None,
    setting: Setting,
    started: datetime,
    failure: str = "",
    archive: Archive | None = None,
) -> Finished:
    """Measure, decide, compare with an earlier study, write the outputs and put the case into the store, in this order.

    A non-empty `failure` says why the analysis failed for a reason of ours. What goes back to the study is made where
    `archive` is there to tell whose it is. Raises WorldError when outputs or store cannot be written.
    """
    now = datetime.now(UTC)
    case = case_of(planned, prepared, prediction, setting, now, failure)
    if isinstance(case, Case):
        case = priors.beside(case, setting.home, setting.store)
    digests = writing.report(case, setting.home)
    if archive is not None and isinstance(case, Case) and isinstance(planned.routed, Routed):
        digests |= writing.returned(case, planned.routed.inputs, archive, setting.home, setting.store)
    copies = writing.keep(planned.model, setting.home)
    row = CaseRow(
        case=planned.case,
        study=planned.study.study,
        patient=planned.patient,
        batch=setting.batch,
        model=case.card.name if case.card else None,
        version=case.card.version if case.card else None,
        inputs_sha256=planned.inputs_sha256,
        status=case.report.status,
        reason=case.report.reason,
        verdict=case.report.verdict,
        report=f"reports/{planned.case}/report.html",
        supersedes=None,
        superseded_by=None,
        finished_at=case.report.created,
        seconds_ms=round((now - started).total_seconds() * 1000),
        mlflow_run_id=None,
    )
    facts: dict[str, object] = {
        "inputs": list(planned.inputs),
        "pixels": dict(case.report.pixels_sha256),
        "weights": dict(case.report.weights_sha256),
        "card": case.report.card_sha256,
        "configuration": case.report.config_sha256,
        "code": case.report.code_version,
        "environment": environment.digest(),
        "device": case.report.device,
        "threads": setting.threads,
        "stages": stages.digests(case),
        "files": digests | copies,
    }
    setting.store.remember_study(row.study, row.patient, case.report.created, planned.study.patients)
    if (prior := case.report.prior) is not None and prior.case:
        facts["prior"] = prior.case
    same, kept = priors.same_lesions(prior), observed.of_case(case, planned.routed.files)
    setting.store.finish(row, facts, case.report.created, setting.original, same, kept)
    stored = setting.store.case(row.case)
    assert stored is not None
    return Finished(stored, case.report.refused_inputs)


def refused_inputs(row: CaseRow, home: Home) -> dict[str, str]:
    """What `Finished.refused` was when the case was finished, from its report; {} when that is gone."""
    try:
        facts = json.loads(((home.root / (row.report or "")).parent / "report.json").read_text())
        return dict(facts["refused_inputs"])
    except (OSError, ValueError, KeyError):
        return {}


def case_of(
    planned: Planned,
    prepared: AnyPrepared,
    prediction: AnyPrediction | None,
    setting: Setting,
    now: datetime,
    failure: str = "",
) -> AnyCase:
    """The finished case with all that its writers need; nothing is written or stored."""
    card = planned.model.card if planned.model is not None else None
    skipped = next((p for p in (prepared, prediction) if isinstance(p, Skipped)), None)
    if isinstance(card, PictureCard):
        seen = prepared if isinstance(prepared, PreparedPictures) and skipped is None and not failure else None
        said = prediction if isinstance(prediction, tuple) and seen is not None else ()
        return _picture_case(planned, card, prepared, seen, said, setting, now, failure)
    volumes = prepared.volumes if isinstance(prepared, Prepared) and skipped is None and not failure else {}
    labels = None
    found: tuple[findings.Finding, ...] = ()
    verdict: Verdict | None = None
    text = ""
    flags: tuple[str, ...] = ()
    grid = volumes.get(card.grid) if card is not None else None
    if card is not None and grid is not None and isinstance(prediction, Prediction):
        rules = findings.Rules(card.decision.minimum_volume_mm3)
        labels = findings.label(prediction.mask, grid.affine_ijk_to_lps, rules)
        middle = midplane_left_mm(grid)
        found = findings.measure(labels, prediction.probability, grid.affine_ijk_to_lps, middle)
        nominal = _nominal(card, planned)
        outside = doubts(grid, card.envelope.head_extent_mm, nominal) + outside_card(grid, card, nominal)
        outside += incomplete(planned.routed, card)
        positive = prediction.positive
        called = card.segmentation is None and positive is not None and positive >= card.decision.class_threshold
        verdict, flags = report.decide(found, prediction.slice_probability, outside, card.decision, called)
        text = report.verdict_text(verdict, found, card, nominal, positive)
        flags += _missing_inputs(card, volumes) + _processed(planned.routed) + _trained_on(card, volumes)
        if middle is None and found:
            flags += ("the image cuts the head off on one side: left and right are not told",)
    used = planned.routed.inputs if isinstance(planned.routed, Routed) else {}
    shown, screened = volumes, tuple[str, ...]()
    if volumes and any(f.may_hold_text for series in used.values() for f in series.files):
        shown, screened = burned.screened(volumes)
    flags += screened
    facts = replace(
        _bare_report(planned, prepared, skipped, setting, now, failure),
        verdict=verdict,
        verdict_text=text,
        flags=flags,
        findings=found,
        slice_probability=_numbers(prediction.slice_probability) if isinstance(prediction, Prediction) else (),
        probabilities=_classes(prediction, card),
        spacing_mm=tuple(round(float(s), 6) for s in grid.spacing_mm) if grid is not None else (),
        shape=grid.voxels.shape if grid is not None else (),
        geometry_nominal=_nominal(card, planned),
        lossy=any(f.lossy for s in used.values() for f in s.files),
        pixels_sha256={name: volume.pixels_sha256 for name, volume in volumes.items()},
        device=_device(prediction, setting) if labels is not None else "",
    )
    answer = prediction if isinstance(prediction, Prediction) else None
    return Case(facts, card, shown, answer, labels, planned.study.visit)


def _picture_case(
    planned: Planned,
    card: PictureCard,
    prepared: AnyPrepared,
    seen: PreparedPictures | None,
    said: tuple[PicturePrediction, ...],
    setting: Setting,
    now: datetime,
    failure: str,
) -> PictureCase:
    """The case of single images; `seen` are those that were analysed, None when none was."""
    skipped = prepared if isinstance(prepared, Skipped) else None
    bare = _bare_report(planned, prepared, skipped, setting, now, failure)
    if seen is None:
        return pictured.case_of(bare, card, None, ())
    images: tuple[ImageFacts, ...] = tuple(
        pictured.facts_of(still, answer, card) for still, answer in zip(seen.stills, said, strict=True)
    )
    facts = replace(
        bare,
        verdict=pictured.verdict(images, card),
        verdict_text=report.picture_text(images, card),
        flags=pictured.flags(seen, images, card),
        images=images,
        lossy=seen.lossy,
        pixels_sha256=dict(seen.pixels_sha256),
        device=setting.device,
    )
    return pictured.case_of(facts, card, seen, said)


def _bare_report(
    planned: Planned,
    prepared: AnyPrepared,
    skipped: Skipped | None,
    setting: Setting,
    now: datetime,
    failure: str,
) -> Report:
    """What every report says, whatever was found."""
    card = planned.model.card if planned.model is not None else None
    status = Status.FAILED if failure else Status.REFUSED if skipped is not None else Status.ANALYSED
    refused = _refused(prepared) if status is Status.ANALYSED else {}
    return Report(
        case=planned.case,
        study=planned.study.study,
        patient=planned.patient,
        batch=setting.batch,
        created=now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        status=status,
        reason=failure or (str(skipped) if skipped is not None else ""),
        verdict=None,
        verdict_text="",
        flags=(),
        findings=(),
        slice_probability=(),
        spacing_mm=(),
        shape=(),
        geometry_nominal=False,
        lossy=False,
        series=_series_uses(planned, prepared),
        inputs=tuple(digest for digest in planned.inputs if digest not in refused),
        refused_inputs=refused,
        pixels_sha256={},
        model_name=card.name if card else "",
        model_version=card.version if card else "",
        card_sha256=card.digest if card else "",
        weights_sha256=_weights(card),
        licence=card.licence if card else "",
        config_sha256=setting.configuration.sha256,
        code_version=__version__,
        device="",
    )


def outside_card(grid: Volume, card: ModelCard, nominal: bool) -> tuple[str, ...]:
    """In what a volume lies outside of the card's envelope, in plain words; `nominal` is said beside every size."""
    mm = "mm (nominal)" if nominal else "mm"
    envelope, outside = card.envelope, []
    distance_mm = float(grid.spacing_mm[2])
    coverage_mm = distance_mm * grid.voxels.shape[2]
    low, high = envelope.slice_distance_mm
    if round(coverage_mm) < envelope.min_coverage_mm:  # positions are rounded
        outside.append(
            f"coverage incomplete: the slices span {coverage_mm:.0f} {mm}, the model's card asks for at least "
            f"{envelope.min_coverage_mm:.0f} mm"
        )
    if not low <= distance_mm <= high:
        outside.append(f"outside the card: slices {distance_mm:.1f} {mm} apart, {low:g} to {high:g} mm were tested")
    tilt = tilt_from_axial_deg(grid.affine_ijk_to_lps)
    if tilt > envelope.max_tilt_from_axial_deg:
        outside.append(
            f"outside the card: slices lean {tilt:.0f} degrees from axial, at most "
            f"{envelope.max_tilt_from_axial_deg:.0f} were tested"
        )
    return tuple(outside)


def incomplete(routed: Routed | RoutedPictures | Skipped, card: ModelCard) -> tuple[str, ...]:
    """In what a study tells that slices of the grid's input are missing at its ends, where they leave no gap.

    Compared are what the headers promise, and the head-foot extent of the other axial inputs in the same frame of
    reference.
    """
    if not isinstance(routed, Routed):
        return ()
    grid, told = routed.inputs[card.grid], []
    here, promised = len(grid.slices), grid.promised_slices
    if promised is not None and promised > here:
        told.append(f"incomplete: the headers promise {promised} slices, {here} are here")
    for name, other in routed.inputs.items():
        if name == card.grid or other.first.frame_of_reference != grid.first.frame_of_reference:
            continue
        share = covered_share(grid, other)
        if share is not None and share < card.envelope.min_share_of_sibling:
            told.append(
                f"incomplete: {card.grid.upper()} covers {share:.0%} of the extent of {name.replace('_', ' ').upper()}"
            )
    return tuple(told)


def _refused(prepared: AnyPrepared) -> dict[str, str]:
    """Why a file that was to be an input was not, by its digest: it is known only after decoding."""
    if isinstance(prepared, Skipped):
        return {}
    of_series = {f.sha256: str(s) for s in prepared.defective for f in s.files}
    return of_series | {r.sha256: str(r) for r in prepared.refused}


def _trained_on(card: ModelCard, volumes: Mapping[str, Volume]) -> tuple[str, ...]:
    known = sorted(name for name, volume in volumes.items() if volume.pixels_sha256 in card.trained_on)
    if not known:
        return ()
    return ("the model was trained on these very images: how well it does here says nothing of other patients",)


def _missing_inputs(card: ModelCard, volumes: Mapping[str, Volume]) -> tuple[str, ...]:
    missing = [name.replace("_", " ").upper() for name in card.inputs if name not in volumes]
    return (f"analysed without {' and '.join(missing)}",) if missing else ()


def _processed(routed: Routed | RoutedPictures | Skipped) -> tuple[str, ...]:
    """What was done to the inputs before they came, or is odd about how they lie, by their headers."""
    if not isinstance(routed, Routed):
        return ()
    told = []
    for name, series in sorted(routed.inputs.items()):
        kinds = kinds_of(series.first)
        label = name.replace("_", " ").upper()
        if kinds:
            told.append(f"{label} was processed before it came: {', '.join(kinds)}")
        if tilt := series.gantry_tilt_deg:
            told.append(f"{label}: gantry tilted by {tilt:.1f} degrees; read slice by slice as it lies, not resampled")
    return tuple(told)


def _device(prediction: AnyPrediction | None, setting: Setting) -> str:
    """What computed a prediction; where memory ran out it says so itself."""
    return (prediction.device if isinstance(prediction, Prediction) else "") or setting.device


def _nominal(card: ModelCard | None, planned: Planned) -> bool:
    if card is None or not isinstance(planned.routed, Routed):
        return False
    return card.envelope.nominal_when_secondary and "SECONDARY" in planned.routed.inputs[card.grid].first.image_type


def _numbers(values: np.ndarray | None) -> tuple[float, ...]:
    return () if values is None else tuple(round(float(v), 4) for v in values)


def _classes(prediction: AnyPrediction | None, card: Card | None) -> dict[str, float]:
    """The probability of the card's positive class for the whole study, by its name."""
    if not isinstance(prediction, Prediction) or prediction.positive is None or card is None or card.positive is None:
        return {}
    return {card.positive: round(prediction.positive, 4)}


def _weights(card: Card | None) -> dict[str, str]:
    return {} if card is None else {name: part.sha256 for name, part in card.networks.items()}


def _series_uses(planned: Planned, prepared: AnyPrepared) -> tuple[SeriesUse, ...]:
    roles: dict[str, str] = {}
    why: dict[str, str] = {}
    if isinstance(planned.routed, Routed):
        roles = {series.first.series: name for name, series in planned.routed.inputs.items()}
        why |= planned.routed.passed_over
        why |= {s.files[0].series: str(s) for s in planned.routed.defective if s.files}
    if isinstance(planned.routed, RoutedPictures):
        roles = {f.series: IMAGE for f in planned.routed.pictures}
        why |= {f.series: str(s) for s in planned.routed.defective for f in s.files if f.series not in roles}
    late = [prepared] if isinstance(prepared, Skipped) else list(prepared.defective)
    for skipped in late:
        for file in skipped.files:
            why.setdefault(file.series, str(skipped))
            roles.pop(file.series, None)
    return tuple(
        SeriesUse(
            number=files[0].series_number,
            modality=files[0].modality,
            words=tuple(dict.fromkeys(w for f in files for w in f.words)),
            files=len(files),
            role=roles.get(files[0].series),
            reason=why.get(files[0].series, "" if files[0].series in roles else "no model asks for it"),
        )
        for files in planned.study.series
    )
