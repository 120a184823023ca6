"""Which series of a study is which input of which model.

Owns `Routed` and `RoutedPictures`. The patterns of a card are matched in the DICOM room; here their names are turned
into a choice. Invariants: the choice does not depend on the order of files; when several series fit one input, the
rule below picks and the report names the others; a required input that exists but is defective refuses the study by
that defect.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from medrec.contrast import contradiction
from medrec.kinds import kinds_of
from medrec.pictures import IMAGE, Card, PictureCard
from medrec.prediction import InputRule, ModelCard
from medrec.series import Reason, ScanFile, Series, Skipped, Study, once, unfit
from medrec.stacks import stacks
from medrec.volume import affine_of, tilt_from_axial_deg, to_world

NOT_AXIAL_DEG = 45.0  # beyond it, "axial slices" would be another plane


@dataclass(frozen=True, slots=True)
class Routed:
    """The inputs of one model, by name, and what else fitted them but was not used."""

    inputs: Mapping[str, Series]
    defective: tuple[Skipped, ...]
    passed_over: Mapping[str, str]

    @property
    def files(self) -> tuple[ScanFile, ...]:
        """Every file of the inputs, by digest."""
        return tuple(
            sorted((f for s in self.inputs.values() for f in s.files), key=lambda f: (f.sha256, f.ordinal, f.member))
        )


@dataclass(frozen=True, slots=True)
class RoutedPictures:
    """The images of a study that a model of pictures is to see, by digest, and those that fit but cannot be seen."""

    pictures: tuple[ScanFile, ...]
    defective: tuple[Skipped, ...]

    @property
    def files(self) -> tuple[ScanFile, ...]:
        """Every image that is used."""
        return self.pictures


def rules_of(cards: Iterable[Card]) -> dict[str, InputRule]:
    """Every input of every card under the name by which `ScanFile.matches` lists it."""
    return {_rule_name(card, name): rule for card in cards for name, rule in card.inputs.items()}


def route(study: Study, card: Card) -> Routed | RoutedPictures | Skipped | None:
    """The inputs of a card of either kind in a study; None when nothing in it fits."""
    return select_pictures(study, card) if isinstance(card, PictureCard) else select(study, card)


def select_pictures(study: Study, card: PictureCard) -> RoutedPictures | Skipped | None:
    """The single greyscale images that a card of pictures asks for; None when no file fits.

    Copies of one image are one input; images that carry one SOP Instance UID and differ are none.
    """
    rule = card.inputs[IMAGE]
    fitting = [f for f in study.files if _rule_name(card, IMAGE) in f.matches]
    if not fitting:
        return None
    defective: list[Skipped] = []
    whole: dict[str, list[ScanFile]] = {}
    for file in sorted(fitting, key=lambda f: (f.sha256, f.ordinal, f.member)):
        problem = _unfit_picture(file, rule)
        if problem is None:
            whole.setdefault(file.instance, []).append(file)
        else:
            defective.append(Skipped(file.series, *problem, (file,)))
    pictures: list[ScanFile] = []
    for same in whole.values():
        if len({f.content for f in same}) > 1:
            detail = "files with one SOP Instance UID hold different images"
            defective.append(Skipped(same[0].series, Reason.CONFLICTING_COPIES, detail, tuple(same)))
            continue
        pictures.append(same[0])
        if same[1:]:
            defective.append(Skipped(same[0].series, Reason.DUPLICATE, "a copy of it is used", tuple(same[1:])))
    if not pictures:
        first = max(defective, key=lambda d: len(d.files))
        files = tuple(f for d in defective for f in d.files)
        return Skipped(IMAGE, first.reason, first.detail, files)
    return RoutedPictures(tuple(sorted(pictures, key=lambda f: f.sha256)), tuple(defective))


def _unfit_picture(file: ScanFile, rule: InputRule) -> tuple[Reason, str] | None:
    """Why a file is no single greyscale image as its machine made it."""
    if (problem := unfit(file)) is not None:
        return problem
    if file.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return Reason.NOT_GREYSCALE, f"PhotometricInterpretation is {file.photometric}"
    if unwanted := [kind for kind in kinds_of(file) if kind in rule.refuse]:
        return Reason.OUTSIDE_CARD, f"its headers tell of a {unwanted[0]}"
    return None


def select(study: Study, card: ModelCard) -> Routed | Skipped | None:
    """The inputs of `card` in `study`; None when no series fits a required input."""
    usable: dict[str, list[Series]] = {}
    defective: list[Skipped] = []
    arranged: dict[str, tuple[Series | Skipped, ...]] = {}
    for name, rule in card.inputs.items():
        usable[name] = []
        fitting = [_divided(files, _rule_name(card, name)) for files in study.series]
        candidates = [fit for fit, _ in fitting if fit]
        if rule.required and not candidates:
            return None
        broken: list[Skipped] = [odd for fit, odd in fitting if fit and odd is not None]
        for files in candidates:
            key = " ".join(f.sha256 for f in files)
            results = arranged.setdefault(key, tuple(_fit_for_models(stacks(files))))
            for result in (_as_called(_allowed(r, rule, card), rule) for r in results):
                if isinstance(result, Series):
                    usable[name].append(result)
                else:
                    broken.append(result)
        if rule.required and not usable[name]:
            first = max(broken, key=lambda b: len(b.files))  # the defect of the most images, not of a stray one
            files = once(f for b in broken for f in b.files)
            return Skipped(name, first.reason, f"{name.upper()}: {first.detail}", files)
        defective += broken
    return _choose(card, usable, defective)


def _divided(files: tuple[ScanFile, ...], rule: str) -> tuple[tuple[ScanFile, ...], Skipped | None]:
    """The files of a series that fit a rule, and those that do not although others of their series do."""
    fit = tuple(f for f in files if rule in f.matches)
    odd = tuple(f for f in files if rule not in f.matches)
    if not fit or not odd:
        return fit, None
    detail = f"{len(odd)} of {len(files)} files of a series are described otherwise than the rest"
    return fit, Skipped(files[0].series, Reason.MIXED, detail, odd)


def _fit_for_models(results: Iterable[Series | Skipped]) -> Iterable[Series | Skipped]:
    """What no model reads although it can be converted: one of several volumes at a place, a slice, a localizer."""
    for result in results:
        if isinstance(result, Skipped):
            yield result
        elif result.part:
            yield _refused(result, Reason.SAME_POSITION, f"{result.part}; a model needs the one that is meant")
        elif len(result.slices) < 2:
            yield _refused(result, Reason.TOO_FEW_SLICES, "one slice makes no volume")
        elif result.first.photometric != "MONOCHROME2":
            yield _refused(result, Reason.NOT_GREYSCALE, f"PhotometricInterpretation is {result.first.photometric}")
        else:
            yield result


def _allowed(result: Series | Skipped, rule: InputRule, card: ModelCard) -> Series | Skipped:
    """A series of a kind, or with a tilt, that the card takes."""
    if isinstance(result, Skipped):
        return result
    unwanted = [kind for kind in kinds_of(result.first) if kind in rule.refuse]
    if unwanted:
        return _refused(result, Reason.OUTSIDE_CARD, f"ImageType tells of a {unwanted[0]}")
    tilt, most = result.gantry_tilt_deg, card.envelope.max_gantry_tilt_deg
    if tilt > most:
        detail = f"slices follow each other at {tilt:.1f} degrees from their normal; the card takes {most:g}"
        return _refused(result, Reason.TILTED, detail)
    return result


def _as_called(result: Series | Skipped, rule: InputRule) -> Series | Skipped:
    """A series whose sequence parameters contradict what it is called is none of that kind."""
    if isinstance(result, Skipped) or rule.contrast is None:
        return result
    problem = contradiction(result.first.timing, rule.contrast)
    return result if problem is None else _refused(result, Reason.WRONG_CONTRAST, problem)


def _refused(series: Series, reason: Reason, detail: str) -> Skipped:
    return Skipped(series.first.series, reason, detail, series.files)


def _choose(card: ModelCard, usable: dict[str, list[Series]], defective: list[Skipped]) -> Routed | Skipped:
    grid = min(usable[card.grid], key=_preference)
    tilt = tilt_from_axial_deg(affine_of(grid))
    if tilt > NOT_AXIAL_DEG:
        detail = f"the slices of {card.grid.upper()} lie {tilt:.0f} degrees from axial; the model reads axial slices"
        return Skipped(card.grid, Reason.OUTSIDE_CARD, detail, grid.files)
    inputs = {card.grid: grid}
    passed_over: dict[str, str] = {}
    for name, found in usable.items():
        for series in sorted(found, key=_preference):
            if series.first.series in (s.first.series for s in inputs.values()):
                continue
            if not _same_frame(series, grid):
                passed_over[series.first.series] = f"fits {name}, but has another frame of reference than {card.grid}"
            elif name in inputs:
                passed_over[series.first.series] = f"fits {name} as well; the better covered series was used"
            else:
                inputs[name] = series
    passed_over = {s: why for s, why in passed_over.items() if s not in {i.first.series for i in inputs.values()}}
    missing = [name for name, rule in card.inputs.items() if rule.required and name not in inputs]
    if missing:
        detail = f"{', '.join(missing).upper()} not in one frame of reference with {card.grid.upper()}"
        return Skipped(missing[0], Reason.NO_INPUT, detail, tuple(f for s in usable[missing[0]] for f in s.files))
    used = {(f.series, f.ordinal, f.member) for series in inputs.values() for f in series.files}
    left = (
        replace(d, files=tuple(f for f in d.files if (f.series, f.ordinal, f.member) not in used))
        for d in dict.fromkeys(defective)
    )
    return Routed(inputs, tuple(d for d in left if d.files), passed_over)


def covered_share(series: Series, other: Series) -> float | None:
    """How much of the head-foot extent of another stack a stack covers, 0..1; None where one of them is not axial."""
    low, high = [], []
    for stack in (series, other):
        affine = affine_of(stack)
        if tilt_from_axial_deg(affine) > NOT_AXIAL_DEG:
            return None
        middle = (stack.first.columns - 1) / 2, (stack.first.rows - 1) / 2
        ends = to_world(affine, np.array([[*middle, -0.5], [*middle, len(stack.slices) - 0.5]]))[:, 2]
        low.append(float(ends.min()))
        high.append(float(ends.max()))
    return max(0.0, min(high) - max(low)) / (high[1] - low[1])


def _preference(series: Series) -> tuple[bool, bool, float, int, str]:
    """Best first: axial, as acquired, the larger extent, the earlier series."""
    first = series.first
    number = first.series_number if first.series_number is not None else 2**31
    return (
        tilt_from_axial_deg(affine_of(series)) > NOT_AXIAL_DEG,
        "DERIVED" in first.image_type,
        -float(np.round(series.extent_mm, 1)),
        number,
        first.series,
    )


def _same_frame(series: Series, grid: Series) -> bool:
    frame = series.first.frame_of_reference
    return frame is not None and frame == grid.first.frame_of_reference


def _rule_name(card: Card, name: str) -> str:
    return f"{card.name}/{name}"
