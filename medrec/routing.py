"""Which series of a study is which input of which model.

Owns `Routed`. The patterns of a card are matched in the DICOM room; here their names are turned into a choice.
Invariants: the choice does not depend on the order of files; when several series fit one input, the rule below picks
and the report names the others; a required input that exists but is defective refuses the study by that defect.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from medrec.prediction import InputRule, ModelCard
from medrec.series import Reason, ScanFile, Series, Skipped, Study, arrange
from medrec.volume import affine_of, tilt_from_axial_deg

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
        return tuple(sorted((f for s in self.inputs.values() for f in s.files), key=lambda f: (f.sha256, f.ordinal)))


def rules_of(cards: Iterable[ModelCard]) -> dict[str, InputRule]:
    """Every input of every card under the name by which `ScanFile.matches` lists it."""
    return {_rule_name(card, name): rule for card in cards for name, rule in card.inputs.items()}


def select(study: Study, card: ModelCard) -> Routed | Skipped | None:
    """The inputs of `card` in `study`; None when no series fits a required input."""
    usable: dict[str, list[Series]] = {}
    defective: list[Skipped] = []
    arranged: dict[str, Series | Skipped] = {}
    for name, rule in card.inputs.items():
        usable[name] = []
        candidates = [files for files in study.series if all(_rule_name(card, name) in f.matches for f in files)]
        if rule.required and not candidates:
            return None
        broken = []
        for files in candidates:
            result = arranged.setdefault(files[0].series, arrange(files))
            if isinstance(result, Series):
                usable[name].append(result)
            else:
                broken.append(result)
        if rule.required and not usable[name]:
            first = broken[0]
            files = tuple(f for b in broken for f in b.files)
            return Skipped(name, first.reason, f"{name.upper()}: {first.detail}", files)
        defective += broken
    return _choose(card, usable, defective)


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
    return Routed(inputs, tuple(defective), passed_over)


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


def _rule_name(card: ModelCard, name: str) -> str:
    return f"{card.name}/{name}"
