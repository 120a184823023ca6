"""What a card knows of its own limits: whom its networks know, and how far its volumes may be off.

python -m medrec.learning.knowing CARD --dicom DIR --table CSV [--masks DIR] [--folds DIR ...] --out DIR

Adds both to a card whose networks are trained already, from the images that they learnt from (or others of their
kind), and writes the card with one more file beside it. `--folds` are what `python -m medrec.learning --fold N` wrote:
without patients who were held back there is no interval of a volume. A retraining does the same by itself.

Limits come from distances of patients who were left out of what they are measured against. The networks have seen
them where no patient is held back; early maps, which are looked at, hardly know the difference (README).
"""

import argparse
import json
import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medrec import familiarity, findings, uncertainty
from medrec.config import PACKAGED_WEIGHTS
from medrec.errors import ScanError
from medrec.familiarity import Floats, Rows
from medrec.learning import cases, measures, pictures
from medrec.learning.cases import LabelledCase
from medrec.learning.material import Payload
from medrec.learning.measures import Answer
from medrec.learning.pictures import LabelledPicture
from medrec.learning.tasks import Task
from medrec.models import inference, still, strangers
from medrec.models.inference import TorchPredictor
from medrec.models.still import StillPredictor
from medrec.pictures import Card, PictureCard, card_of
from medrec.prediction import Familiarity, ModelCard
from medrec.statistics import dice
from medrec.uncertainty import Uncertainty

log = logging.getLogger("medrec.learning.knowing")

ALONE = "each left out of what it was measured against; the networks had learnt from them"
APART = "who watched the training, from which the networks did not learn but for when to stop"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Patients whom the networks of one fold did not learn from: the score of each, and its volumes in ml."""

    fold: int
    patient: str
    score: float
    true_ml: float
    marked_ml: float


def forgotten(card: Card) -> Card:
    """The card without what it knew of earlier networks' limits."""
    fields: dict[str, None] = {"familiarity": None}
    return card.model_copy(update=fields if isinstance(card, PictureCard) else {**fields, "uncertainty": None})


def rows(predictor: TorchPredictor | StillPredictor, payloads: Iterable[Payload]) -> Rows:
    """What the images look like to the first network; of volumes each other input too, in the place of the grid's."""
    found: list[tuple[Floats, int, str]] = []
    for payload in payloads:
        found += [(row, kind, payload.patient) for kind, row in _looked_at(predictor, payload)]
    numbers, kinds, patients = zip(*found, strict=True)
    present = sorted(set(kinds))  # an input that nobody has is no kind
    return Rows(np.array(numbers), np.array([present.index(k) for k in kinds]), tuple(patients))


def _looked_at(
    predictor: TorchPredictor | StillPredictor, payload: LabelledCase | LabelledPicture
) -> Iterator[tuple[int, Floats]]:
    if isinstance(payload, LabelledPicture):
        assert isinstance(predictor, StillPredictor)
        yield 0, predictor.row(payload.pixels)
        return
    assert isinstance(predictor, TorchPredictor)
    card = predictor.card
    for kind, name in enumerate(card.kinds):
        if name in payload.inputs:
            try:
                yield kind, predictor.row({card.grid: payload.inputs[name]})
            except ScanError:
                continue  # an input that is empty looks like nothing


def familiar(
    card: Card, known: Rows, out: Path, watching: Collection[str] = (), scores: Mapping[str, float] | None = None
) -> Familiarity | None:
    """The familiarity of a card whose file is written to `out`; None with too few patients to tell a limit.

    Those in `watching` give the limits, where there are enough of them, and otherwise everybody in turn. `scores` are
    of patients held out, by name.
    """
    judged = known.part(known.kinds == 0)
    apart = known.of(watching)
    if len(set(judged.patients)) < familiarity.FEWEST:
        return None
    if len({*known.part(apart).patients}) >= familiarity.FEWEST:
        shape = familiarity.fit(known.part(~apart))
        judged = known.part(apart & (known.kinds == 0))
        distances = np.array([shape.distance(row) for row in judged.rows])
        margins = np.array([shape.margin(row)[0] for row in judged.rows])
        on = APART
    else:
        distances, margins = familiarity.held_out(known)
        on = ALONE
    patients, distances, margins = _by_patient(judged.patients, distances, margins)
    limit = _upwards(familiarity.limit(distances, familiarity.ALARMS))
    kinds = int(known.kinds.max()) + 1
    margin = -_upwards(familiarity.limit(-margins, familiarity.MISTAKES)) if kinds > 1 else None
    flagged = (distances > limit) | (margins < (margin if margin is not None else -np.inf))
    names = f"{card.name}_familiarity.safetensors"
    sha256 = strangers.write(familiarity.fit(known), out / names)
    return Familiarity(
        weights=names,
        sha256=sha256,
        limit=limit,
        margin=margin,
        alarms=uncertainty.held(flagged, f"patients, {on}"),
        risk_coverage=_risk(patients, distances, scores or {}),
    )


def _upwards(value: float) -> float:
    """To four digits, away from whoever set the limit: who did is not beyond it."""
    return math.ceil(value * 1e4) / 1e4


def _risk(patients: Sequence[str], distances: Floats, scores: Mapping[str, float]) -> tuple[tuple[float, float], ...]:
    both = [(d, scores[p]) for p, d in zip(patients, distances, strict=True) if p in scores]
    if len(both) < familiarity.FEWEST:
        return ()
    far, good = np.array(both).T
    return tuple((share, round(value, 4)) for share, value in familiarity.risk_coverage(far, good))


def _by_patient(patients: Sequence[str], distances: Floats, margins: Floats) -> tuple[tuple[str, ...], Floats, Floats]:
    """Of each patient's images the one that is farthest away, and the one that is nearest to another kind."""
    names, of = np.unique(np.asarray(patients), return_inverse=True)
    farthest, nearest = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    np.maximum.at(farthest, of, distances)
    np.minimum.at(nearest, of, margins)
    return tuple(names.tolist()), farthest, nearest


def completed(
    task: Task, files: Mapping[str, Path], images: frozenset[str], watching: frozenset[str], out: Path
) -> Card:
    """The task's card with what its learnt `images` tell of its limits; files are added to `out`."""
    card = task.card
    predictor = task.predictor(files)
    assert isinstance(predictor, TorchPredictor | StillPredictor)
    known = rows(predictor, task.payloads(images))
    held = list(_answers(predictor, (p for p in task.payloads(images) if p.patient in watching)))
    found = {"familiarity": familiar(card, known, out, watching, {h.patient: h.score for h in held})}
    if isinstance(card, PictureCard):
        return card.model_copy(update=found)
    return card.model_copy(update={**found, "uncertainty": volumes(held, f"patients {APART}")})


def of_volumes(
    predictor: TorchPredictor, learnt: Sequence[LabelledCase], held: Sequence[LabelledCase], out: Path
) -> dict[str, Any]:
    """What a card's YAML says of its limits after a training that held some patients back; a file goes to `out`."""
    apart = [replace(c, patient=c.study) for c in held]
    known = rows(predictor, [*(replace(c, patient=c.study) for c in learnt), *apart])
    answers = list(_answers(predictor, apart))
    watching = {h.patient for h in answers}
    card = predictor.card
    found = familiar(card, known, out, watching, _scores(answers)), volumes(answers, "patients held back")
    told = zip(("familiarity", "uncertainty"), found, strict=True)
    return {name: limits.model_dump(mode="json") for name, limits in told if limits is not None}


def _answers(predictor: TorchPredictor | StillPredictor, payloads: Iterable[Payload]) -> Iterator[HeldOut]:
    for payload in payloads:
        said: Answer = measures.answer(predictor, payload)
        if not said.outlined:
            continue
        reported, card = said.mask, predictor.card
        if isinstance(card, ModelCard):
            rules = findings.Rules(card.decision.minimum_volume_mm3)
            reported = findings.label(said.mask, np.diag([*said.spacing, 1.0]), rules) > 0
        volumes_ml = (float(m.sum() * np.prod(said.spacing)) / 1000 for m in (said.truth, reported))
        yield HeldOut(0, payload.patient, dice(said.mask, said.truth), *volumes_ml)


def volumes(held: Sequence[HeldOut], on: str) -> Uncertainty | None:
    """The interval of a volume, from patients held out."""
    true_ml, marked_ml = (np.array([getattr(h, n) for h in held], float) for n in ("true_ml", "marked_ml"))
    return uncertainty.calibrated(true_ml, marked_ml, [h.fold for h in held], on)


def held_out(folders: Sequence[Path]) -> Iterator[HeldOut]:
    """What trainings with a fold held back measured of it."""
    for fold, folder in enumerate(folders):
        for one in json.loads((folder / "validation.json").read_text()):
            yield HeldOut(fold, str(one["study"]), float(one["dice"]), float(one["true_ml"]), float(one["marked_ml"]))


def written(text: str, card: Card) -> str:
    """The YAML of a card with its limits in place of earlier ones, its version counted up; all else, word for word."""
    kept = re.sub(r"(?m)^(?:familiarity|uncertainty):.*\n(?:[ -].*\n|\n)*", "", text.rstrip() + "\n")
    kept = re.sub(r"(?m)^version: (\d+)\.(\d+)\.(\d+)", lambda v: f"version: {v[1]}.{v[2]}.{int(v[3]) + 1}", kept)
    fields = ("familiarity",) if isinstance(card, PictureCard) else ("familiarity", "uncertainty")
    told = {n: card.model_dump(mode="json")[n] for n in fields if getattr(card, n) is not None}
    return kept + yaml.safe_dump(told, sort_keys=False, width=110, allow_unicode=True, default_flow_style=None)


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card", type=Path)
    for name in ("dicom", "table", "masks", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--folds", type=Path, nargs="*", default=[], help="outputs of trainings with a fold held back")
    parser.add_argument("--folds-are", default="", help="how their networks differ from the card's, in words")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    text = options.card.read_text()
    card = forgotten(card_of(yaml.safe_load(text)))
    here = options.card.parent
    files = {n.weights: p if (p := here / n.weights).is_file() else PACKAGED_WEIGHTS / n.weights
             for n in card.networks.values()}  # fmt: skip
    held = list(held_out(options.folds))
    if isinstance(card, PictureCard):
        stills = pictures.load(card, options.dicom, options.table, options.masks)
        known = rows(still.load(card, files, "cpu"), stills)
    else:
        labelled = cases.load(card, options.dicom, options.table, options.masks)
        known = rows(inference.load(card, files, "cpu"), (replace(c, patient=c.study) for c in labelled))
    finished = card.model_copy(update={"familiarity": familiar(card, known, options.out, (), _scores(held))})
    if isinstance(finished, ModelCard):
        on = f"patients, each by a network that did not learn from them ({options.folds_are or 'the same recipe'})"
        finished = finished.model_copy(update={"uncertainty": volumes(held, on)})
    (options.out / options.card.name).write_text(written(text, finished))
    for name, found in (("familiarity", finished.familiarity), ("uncertainty", getattr(finished, "uncertainty", None))):
        log.info("%s: %s", name, "too few patients held out: none is told" if found is None else found)


def _scores(held: Iterable[HeldOut]) -> dict[str, float]:
    return {h.patient: h.score for h in held}


if __name__ == "__main__":
    main()
