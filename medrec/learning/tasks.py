"""A card's training and measurement on labelled images of a store, the same for volumes and for pictures.

Images are read from the archive when they are needed and not kept: what stays in memory are the samples that networks
learn from. Owns `Task`, and `Evaluation`, everything that was measured of one model on the locked patients.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from medrec import calibration, gate
from medrec.declared import LESS_IS_BETTER, Gate
from medrec.errors import ConfigError, DataError
from medrec.gate import Scores
from medrec.learning import cases, fitting, material, measures, pictures, robustness, volumes
from medrec.learning.cases import LabelledCase
from medrec.learning.material import Payload
from medrec.learning.measures import Answer
from medrec.learning.pictures import LabelledPicture
from medrec.models import inference, still
from medrec.models.still import StillPredictor
from medrec.pictures import Card, PictureCard
from medrec.prediction import ModelCard, Predictor
from medrec.statistics import Interval

Heard = Callable[[str, int, int, float], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Task:
    """One card on the images of a store."""

    card: Card
    sources: material.Sources
    device: str = "auto"

    def train(
        self,
        images: frozenset[str],
        watching: frozenset[str],
        out: Path,
        heard: Heard,
        altered: Callable[[nn.Module], None] = lambda network: None,
    ) -> Card:
        """Fit the card's networks to these images; those of the patients in `watching` say when to stop.

        Returns the card with the digests of its weights, which lie in `out`, and a fitted temperature. Raises DataError
        when the labels do not hold what a network is to learn.
        """
        following = fitting.Following(self.card.early_stop, heard, altered)
        device = inference.device_name(self.device)
        if isinstance(self.card, ModelCard):
            learn: list[cases.Sample] = []
            watch: list[cases.Sample] = []
            for payload in self._read(images):
                assert isinstance(payload, LabelledCase)
                side = watch if payload.patient in watching else learn
                side.append(cases.sample(payload, self.card))
            _check_volumes(self.card, learn)
            trained_volumes = volumes.train(self.card, learn, out, device, watch, following)
            return self._tempered(trained_volumes, images, watching, out)
        both = [p for p in self._read(images) if isinstance(p, LabelledPicture)]
        seen, looks = ([p for p in both if (p.patient in watching) is side] for side in (False, True))
        _check(self.card, seen)
        trained = pictures.train(self.card, seen, out, device, looks, following)
        return _tempered(trained, [p for p in looks if p.classed], out, device)

    def _tempered(self, card: ModelCard, images: frozenset[str], watching: frozenset[str], out: Path) -> ModelCard:
        """With the temperature that fits the patients who watched, where the card tells a class of studies."""
        plain = card.model_copy(update={"decision": card.decision.model_copy(update={"temperature": 1.0})})
        if not card.tells_class:
            return card
        predictor = replace(self, card=plain).predictor({n.weights: out / n.weights for n in card.networks.values()})
        looks = (p for p in self._read(images) if p.patient in watching)
        answers = [a for a in (measures.answer(predictor, p) for p in looks) if a.chance is not None]
        said, truth = np.array([a.chance for a in answers], float), np.array([a.positive for a in answers], bool)
        fitted = round(calibration.temperature(said, truth), 4) if len(answers) else 1.0
        return plain.model_copy(update={"decision": plain.decision.model_copy(update={"temperature": fitted})})

    def answers(
        self, weights: Mapping[str, Path], images: frozenset[str], progress: Progress = lambda what, done, total: None
    ) -> list[Answer]:
        """What the networks say of these images."""
        predictor = self.predictor(weights)
        found = []
        for payload in self._read(images):
            found.append(measures.answer(predictor, payload))
            progress("locked images", len(found), len(images))
        return found

    def scores(self, weights: Mapping[str, Path], images: frozenset[str]) -> Scores:
        """The measures of `answers` by patient."""
        return measures.scores(f"{self.card.name} {self.card.version}", self.answers(weights, images))

    def predictor(self, weights: Mapping[str, Path]) -> "Predictor | StillPredictor":
        """The networks with these weights."""
        device = inference.device_name(self.device)
        if isinstance(self.card, ModelCard):
            return inference.load(self.card, weights, device)
        return still.load(self.card, weights, device)

    def payloads(self, images: frozenset[str]) -> Iterator[Payload]:
        """The images with their truth."""
        return self._read(images)

    def robust(
        self, weights: Mapping[str, Path], images: frozenset[str], measure: str, specificity: float
    ) -> dict[str, Interval]:
        """A measure as it is, and under each change of the images, in the order of the changes."""
        predictor = self.predictor(weights)
        answers: dict[str, list[Answer]] = {}
        for payload in self._read(images):
            answers.setdefault("as it is", []).append(measures.answer(predictor, payload))
            for change in robustness.changes(payload):
                altered = robustness.changed(payload, change)
                answers.setdefault(change, []).append(measures.answer(predictor, altered))
        found = {c: measures.scores("", own, measure == "surface_distance") for c, own in answers.items()}
        return {c: gate.estimate(measure, s, specificity) for c, s in found.items() if measure in s.values}

    def _read(self, images: frozenset[str]) -> Iterator[Payload]:
        problems: list[str] = []
        for _, payload in material.read(self.card, self.sources, problems, images):
            yield payload
        if problems:
            raise DataError("; ".join(dict.fromkeys(problems)))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything that was measured on the locked patients, and whether the model is eligible."""

    eligible: bool
    lines: tuple[str, ...]
    verdict: gate.Verdict
    measured: Mapping[str, Interval]
    subgroups: Mapping[str, Mapping[str, float]]
    robustness: Mapping[str, Interval]
    froc: tuple[tuple[float, float, float], ...]
    patients: int

    def facts(self) -> dict[str, Any]:
        """As JSON takes it: numbers that are not there are null."""
        facts: dict[str, Any] = _finite(asdict(self))
        return facts


def evaluate(
    task: Task,
    weights: Mapping[str, Path],
    rules: Gate,
    old: Scores | None,
    used: int,
    images: frozenset[str],
    answers: Sequence[Answer],
) -> Evaluation:
    """Ask the gate, and measure all that a reader wants to know beside it."""
    new = measures.scores(f"{task.card.name} {task.card.version}", answers)
    verdict = gate.decide(rules, new, old, used=used)
    measured = {m: gate.estimate(m, new, rules.specificity) for m in new.values}
    if "auc" in new.values:
        names = sorted(new.values["auc"])
        said = np.array([new.values["auc"][n] for n in names])
        measured |= calibration.intervals(said, np.array([new.truth[n] for n in names]))
    wanted = task.card.robustness
    table = {} if wanted is None else task.robust(weights, images, wanted.measure, rules.specificity)
    reasons = list(verdict.reasons)
    if wanted is not None:
        if not table:
            reasons.append(f"robustness: {wanted.measure} is missing")
        less = wanted.measure in LESS_IS_BETTER
        fallen = [c for c, i in table.items() if not (i.value <= wanted.floor if less else i.value >= wanted.floor)]
        reasons += [f"not robust: {wanted.measure}, {c}: {table[c]}, floor {wanted.floor:g}" for c in fallen]
    patients = len({a.patient for a in answers})
    lines = [*verdict.lines()[: -1 - len(verdict.reasons)]]
    rest = {name: value for name, value in measured.items() if name not in verdict.acceptance}
    lines += [f"{name}: {value}, on {patients} locked patients" for name, value in rest.items()]
    lines += [f"robustness, {wanted.measure} {change}: {i}" for change, i in table.items() if wanted is not None]
    points = measures.froc(answers)
    lines += [f"FROC: at {t:g} sensitivity {s:.3f} with {f:.2f} false positives an image" for t, f, s in points]
    lines += [*reasons, "ELIGIBLE" if not reasons else "NOT ELIGIBLE"]
    return Evaluation(
        not reasons, tuple(lines), verdict, measured, _subgroups(new, answers), table, points, patients
    )  # fmt: skip


def _subgroups(new: Scores, answers: Sequence[Answer]) -> dict[str, dict[str, float]]:
    """Each mean by the size of what is marked, below and above the median of the locked patients."""
    sizes: dict[str, float] = {}
    for a in answers:
        sizes[a.patient] = max(sizes.get(a.patient, 0.0), float(a.truth.sum() * np.prod(a.spacing)))
    middle = float(np.median(list(sizes.values()))) if sizes else 0.0
    side = {p: "smaller lesions" if v < middle else "larger lesions" for p, v in sizes.items()}
    found: dict[str, dict[str, float]] = {}
    for measure in ("dice", "lesion_sensitivity", "brier"):
        for name, values in measures.by_subgroup(new, side, measure).items():
            found.setdefault(name, {})[measure] = float(np.mean(values))
            found[name]["patients"] = float(len(values))
    return found


def _check_volumes(card: ModelCard, learn: Sequence[cases.Sample]) -> None:
    problems = []
    if card.segmentation is not None and not any(bool((s.target > 0.5).any()) for s in learn):
        problems.append("no mask of the patients to learn from marks anything: there is nothing to outline")
    if card.tells_class and {s.positive for s in learn if s.positive is not None} != {True, False}:
        problems.append(f"the labels of the patients to learn from hold one side only of {card.positive}")
    if problems:
        raise DataError("; ".join(problems))


def _check(card: PictureCard, seen: Sequence[LabelledPicture]) -> None:
    problems = []
    if card.segmentation is not None and not any(p.outlined and p.mask.any() for p in seen):
        problems.append("segmentation: no mask of the patients to learn from marks anything")
    if card.classification is not None and len({p.positive for p in seen if p.classed}) < 2:
        problems.append(
            f"classification: the labels of the patients to learn from hold one side only of {card.positive}"
        )
    if problems:
        raise ConfigError(problems)


def _tempered(card: PictureCard, looks: Sequence[LabelledPicture], out: Path, device: str) -> PictureCard:
    """With the temperature that fits the patients who watched."""
    plain = card.model_copy(update={"decision": card.decision.model_copy(update={"temperature": 1.0})})
    if card.classification is None or len({p.positive for p in looks}) < 2:
        return plain
    predictor = still.load(plain, {n.weights: out / n.weights for n in plain.networks.values()}, device)
    said = np.array([predictor.predict(p.pixels).positive for p in looks], float)
    fitted = round(calibration.temperature(said, np.array([p.positive for p in looks])), 4)
    return plain.model_copy(update={"decision": plain.decision.model_copy(update={"temperature": fitted})})


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
