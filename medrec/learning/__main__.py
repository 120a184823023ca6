"""Train and measure the networks of a card.

python -m medrec.learning CARD --dicom DIR --table CSV --masks DIR --out DIR

Writes the weights beside a new card that pins them, lists what was trained on and what was measured. Goes on where a
killed run stopped; weights that are there already are only measured.
"""

import argparse
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from medrec.learning import cases, evaluation, training
from medrec.learning.cases import LabelledCase, Sample
from medrec.models import inference, networks, preprocessing, weights
from medrec.prediction import ModelCard, Network
from medrec.statistics import dice

log = logging.getLogger("medrec.learning")

POSITIVE_SHARE = 5e-4  # of the square: fewer pixels are an edge that could as well be the next slice's


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("card", type=Path)
    for name in ("dicom", "table", "masks", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    draft = yaml.safe_load(options.card.read_text())
    card = ModelCard.model_validate(draft)
    labelled = list(cases.load(card, options.dicom, options.table, options.masks))
    learn = [c for c in labelled if not cases.is_validation(c.pixels_sha256(card))]
    held_back = [c for c in labelled if cases.is_validation(c.pixels_sha256(card))]
    log.info("%d patients to learn from, %d to validate on", len(learn), len(held_back))
    trained = train(card, learn, held_back, options.out, inference.device_name(options.device))
    draft |= trained.model_dump(mode="json", include={"segmentation", "classification"}, exclude_none=True)
    draft["trained_on"] = sorted(v.pixels_sha256 for c in learn for v in c.inputs.values())
    finished = ModelCard.model_validate(draft)
    parts = [p for p in (finished.segmentation, finished.classification) if p is not None]
    files = {p.weights: options.out / p.weights for p in parts}
    predictor = inference.load(finished, files, inference.device_name(options.device))
    scores = [evaluation.score(c, predictor) for c in held_back]
    on = f"{len(held_back)} patients not trained on"
    draft["measured"] = [m.model_dump() for m in evaluation.measured(scores, on)]
    (options.out / options.card.name).write_text(yaml.safe_dump(draft, sort_keys=False, width=110, allow_unicode=True))
    detail = [{"study": s.study, "dice": s.dice, "true_ml": s.true_ml, "marked_ml": s.marked_ml} for s in scores]
    (options.out / "validation.json").write_text(json.dumps(detail, indent=1))
    for m in draft["measured"]:
        log.info("%s: %.3f [%.3f, %.3f] on %s", m["what"], m["value"], m["low"], m["high"], m["on"])


def train(
    card: ModelCard, learn: list[LabelledCase], held_back: list[LabelledCase], out: Path, device: str
) -> ModelCard:
    """Fit both networks of a card; returns the card with the digests of the weights written to `out`."""
    slices = training.Slices.of([cases.sample(c, card) for c in learn], card.preprocessing.neighbours)
    watched = [cases.sample(c, card) for c in held_back]

    def fit(part: Network, steps: int, loss: training.Loss, watch: Any) -> Network:
        done = out / part.weights
        if done.exists():  # trained before a kill, or to be measured again
            return part.model_copy(update={"sha256": hashlib.sha256(done.read_bytes()).hexdigest()})
        torch.manual_seed(card.training.seed)
        network = networks.build(part.kind, part.settings, preprocessing.channels(card))
        grid_channels = 1 + 2 * card.preprocessing.neighbours
        checkpoint = out / f"{part.weights}.checkpoint"
        fitted = training.fit(network, slices, loss, steps, card.training, grid_channels, checkpoint, device, watch)
        return part.model_copy(update={"sha256": weights.write(fitted.state_dict(), done)})

    def overlap(step: int, network: torch.nn.Module) -> None:
        values = [_overlap(network, s, card, device) for s in watched]
        if values:
            log.info("step %d: validation Dice %.3f median %.3f", step, np.mean(values), np.median(values))

    segmentation = fit(card.segmentation, card.training.segmentation_steps, training.outline_loss(), overlap)
    classification = card.classification
    if classification is not None:
        loss = training.slice_loss(POSITIVE_SHARE)
        classification = fit(classification, card.training.classification_steps, loss, lambda *_: None)
    return card.model_copy(update={"segmentation": segmentation, "classification": classification})


@torch.no_grad()
def _overlap(network: torch.nn.Module, sample: Sample, card: ModelCard, device: str) -> float:
    """Dice in the networks' own frame: quick, for the log."""
    stack = preprocessing.with_neighbours(sample.images, card.preprocessing.neighbours)
    parts = [network(x.float().to(device)).sigmoid().cpu() for x in stack.split(inference.SLICES_AT_ONCE)]
    marked = torch.cat(parts)[:, 0] > card.decision.voxel_threshold
    return dice(marked.numpy(), (sample.target > 0.5).numpy())


if __name__ == "__main__":
    main()
