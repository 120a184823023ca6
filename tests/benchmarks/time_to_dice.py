"""How long until a plain recipe's Dice is reached: the card's first network, on the same patients, in one run.

    python tests/benchmarks/time_to_dice.py BASELINE.py DATA MINUTES [OUT.json]

BASELINE.py DATA MINUTES OUT.json trains the plain recipe for so many minutes on DATA/brain_mr, holds back every fifth
patient and writes their Dice (`dice`, by patient, and `mean`). The card's recipe then gets a quarter of the minutes,
with a cosine over them, and half as many where that was enough; reading and measuring are not counted for either.
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from paired import tell_numbers

from medrec import config
from medrec.dicom import Pseudonyms
from medrec.learning import cases, starts, training
from medrec.learning.cases import LabelledCase, Sample
from medrec.models import inference, networks, preprocessing
from medrec.prediction import ModelCard
from medrec.statistics import dice

TIMED_STEPS = 10


def main() -> None:
    """Train both, one after the other."""
    baseline, data, minutes = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    out = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    with TemporaryDirectory() as place:
        plain_json = Path(place, "plain.json")
        subprocess.run([sys.executable, str(baseline), str(data), str(minutes), str(plain_json)], check=True)
        plain = json.loads(plain_json.read_text())
        card = next(c.card for c in config.load().cards if c.card.name == "brain_mr")
        assert isinstance(card, ModelCard)
        learn, held = divided(card, data / "brain_mr", set(plain["dice"]))
        samples = [cases.sample(c, card) for c in learn]
        numbers: dict[str, float | str] = {"plain recipe, minutes": minutes, "plain recipe, Dice": plain["mean"]}
        for share in (0.25, 0.125):
            numbers[f"ours in {share:g} of its minutes, Dice"] = found = ours(
                card, samples, held, minutes * share, place
            )
            if found < plain["mean"]:
                break
    tell_numbers("Time to a plain recipe's Dice", numbers, out)


def divided(card: ModelCard, folder: Path, held_back: set[str]) -> tuple[list[LabelledCase], list[LabelledCase]]:
    """The same patients on the same sides as the baseline's."""
    labelled = list(cases.load(card, folder / "dicom", folder / "studies.csv", folder / "masks"))
    pseudonyms = Pseudonyms(cases.KEY)
    with (folder / "studies.csv").open(newline="") as file:
        held = {
            pseudonyms.of("study", r["study_instance_uid"]) for r in csv.DictReader(file) if r["patient"] in held_back
        }
    return [c for c in labelled if c.study not in held], [c for c in labelled if c.study in held]


def ours(card: ModelCard, samples: list[Sample], held: list[LabelledCase], minutes: float, place: str) -> float:
    """Mean Dice on the held-back patients after so many minutes of training from the start that the card names."""
    part, neighbours = card.segmentation, card.preprocessing.neighbours
    recipe = part.training or card.training
    device = inference.device_name()
    torch.manual_seed(recipe.seed)
    network = networks.build(part.kind, part.settings, preprocessing.channels(card))
    if part.start is not None:
        starts.begin(network, part.start)
    slices = training.Slices.of(samples, neighbours)
    batches = training.varied(slices, recipe, 1 + 2 * neighbours, device)
    loss = training.outline_loss(recipe.overlap)

    def trained(steps: int, name: str) -> tuple[torch.nn.Module, float]:
        started = time.perf_counter()
        short = recipe.model_copy(update={"average": min(recipe.average, 1 - 10 / max(steps, 11))})
        fitted = training.fit(network, batches, loss, steps, short, Path(place, name), device)
        return fitted, time.perf_counter() - started

    _, pace_s = trained(TIMED_STEPS, "pace")
    fitted, took_s = trained(max(1, int((minutes * 60 - pace_s) / (pace_s / TIMED_STEPS))), "run")
    print(f"{took_s / 60:.1f} minutes", flush=True)
    predictor = inference.TorchPredictor(card, [fitted], None, device)
    return float(np.mean([dice(predictor.predict(c.inputs).mask, c.mask) for c in held]))


if __name__ == "__main__":
    main()
