"""Train and measure the networks of a card.

python -m medrec.learning CARD --dicom DIR --table CSV --masks DIR --out DIR

Writes the weights beside a new card that pins them, lists what was trained on and what was measured. Goes on where a
killed run stopped; weights that are there already are only measured. The patients held back are looked at once, at the
end; to compare recipes, `--rehearse` leaves them out and holds back others of those that are trained on. `--fold N`
holds back one of five folds instead; `--held PATTERN` those whose patient in the table it fits (a site);
`--everyone` holds back nobody, and leaves what the card says was measured.
"""

import argparse
import json
import logging
from pathlib import Path

import yaml

from medrec.learning import cases, evaluation, volumes
from medrec.learning.cases import LabelledCase
from medrec.models import inference
from medrec.prediction import ModelCard

log = logging.getLogger("medrec.learning")

FOLDS = 5


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", type=Path)
    for name in ("dicom", "table", "masks", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    held = parser.add_mutually_exclusive_group()
    held.add_argument("--rehearse", action="store_true", help="measure on patients of the training side instead")
    held.add_argument("--fold", type=int, choices=range(FOLDS), help="measure on this fold of five")
    held.add_argument("--held", metavar="PATTERN", help="measure on the patients that this regular expression fits")
    held.add_argument("--everyone", action="store_true", help="learn from everyone, measure on nobody")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    draft = yaml.safe_load(options.card.read_text())
    card = ModelCard.model_validate(draft)
    labelled = list(cases.load(card, options.dicom, options.table, options.masks))
    learn, held_back = split(labelled, card, rehearsal=options.rehearse)
    if options.fold is not None or options.everyone:
        learn, held_back = of_fold(labelled, card, options.fold)
    if options.held is not None:
        apart = cases.named(options.table, options.held)
        learn, held_back = ([c for c in labelled if (c.study in apart) is side] for side in (False, True))
        if not learn or not held_back:
            parser.error(f"--held: {options.held} fits {len(held_back)} of {len(labelled)} patients")
    log.info("%d patients to learn from, %d to validate on", len(learn), len(held_back))
    trained = train(card, learn, options.out, inference.device_name(options.device))
    parts = {"segmentation", "ensemble", "classification"}
    draft |= trained.model_dump(mode="json", include=parts, exclude_none=True, exclude_defaults=True)
    draft["trained_on"] = sorted(v.pixels_sha256 for c in learn for v in c.inputs.values())
    finished = ModelCard.model_validate(draft)
    files = {p.weights: options.out / p.weights for p in finished.networks.values()}
    predictor = inference.load(finished, files, inference.device_name(options.device))
    scores = [evaluation.score(c, predictor) for c in held_back]
    on = f"{len(held_back)} patients not trained on"
    if held_back:
        draft["measured"] = [m.model_dump() for m in evaluation.measured(scores, on)]
    (options.out / options.card.name).write_text(yaml.safe_dump(draft, sort_keys=False, width=110, allow_unicode=True))
    detail = [{"study": s.study, "dice": s.dice, "true_ml": s.true_ml, "marked_ml": s.marked_ml} for s in scores]
    (options.out / "validation.json").write_text(json.dumps(detail, indent=1))
    for m in draft["measured"]:
        log.info("%s: %.3f [%.3f, %.3f] on %s", m["what"], m["value"], m["low"], m["high"], m["on"])


def split(
    labelled: list[LabelledCase], card: ModelCard, *, rehearsal: bool
) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Those to learn from and those held back; a rehearsal leaves the latter out and splits the former in their way."""
    learn = [c for c in labelled if not cases.is_validation(c.pixels_sha256(card))]
    if not rehearsal:
        return learn, [c for c in labelled if cases.is_validation(c.pixels_sha256(card))]
    return (
        [c for c in learn if not cases.is_validation(c.pixels_sha256(card), "rehearsal")],
        [c for c in learn if cases.is_validation(c.pixels_sha256(card), "rehearsal")],
    )


def of_fold(
    labelled: list[LabelledCase], card: ModelCard, fold: int | None
) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """Those to learn from and those of one fold, dealt out in the order of their pixels' digests; None is nobody."""
    dealt = sorted(labelled, key=lambda c: c.pixels_sha256(card))
    held = [c for n, c in enumerate(dealt) if n % FOLDS == fold]
    return [c for n, c in enumerate(dealt) if n % FOLDS != fold], held


def train(card: ModelCard, learn: list[LabelledCase], out: Path, device: str) -> ModelCard:
    """Fit all networks of a card; returns the card with the digests of the weights written to `out`."""
    return volumes.train(card, [cases.sample(c, card) for c in learn], out, device)


if __name__ == "__main__":
    main()
