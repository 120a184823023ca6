"""Whole-slice inference against MONAI's sliding windows as its tutorials use them, paired on the same patients.

    python tests/benchmarks/inference.py DICOM TABLE MASKS [PATIENTS [OUT.json]]

The windows are as large as what the network was trained on, four at a time, overlapping by half, over the whole image
at the scale that the network knows. Ours is the square that holds the head, once.
"""

import sys
import time
from itertools import islice
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from paired import tell_numbers
from torch import nn
from torch.nn import functional as F

from medrec import config
from medrec.learning.cases import LabelledCase
from medrec.learning.cases import load as labelled
from medrec.models import inference, preprocessing
from medrec.models.preprocessing import Frame
from medrec.prediction import ModelCard
from medrec.statistics import dice


def windows(case: LabelledCase, card: ModelCard, network: nn.Module) -> np.ndarray:
    """The mask (i, j, k) by sliding windows over the whole image."""
    grid = case.inputs[card.grid]
    tissue = preprocessing.foreground(grid.voxels)
    frame = preprocessing.frame_of(grid, card.preprocessing.size_px)
    size = card.preprocessing.size_px
    width, height, _ = frame.shape
    scale = size / frame.box[2], size / frame.box[3]
    whole = Frame(frame.turn, frame.undo, (0, 0, width, height), frame.shape, size)
    names = [card.grid, *(n for n in card.inputs if n != card.grid)]
    shape = max(size, round(height * scale[1])), max(size, round(width * scale[0]))

    def image(name: str) -> torch.Tensor:
        if name not in case.inputs:
            return torch.zeros(frame.shape[2], *shape)
        plain = Frame(frame.turn, frame.undo, (0, 0, width, height), frame.shape, width)
        values = plain.cut(preprocessing.normalised(case.inputs[name].voxels, tissue))
        return F.interpolate(values[:, None], shape, mode="bilinear", antialias=True)[:, 0]

    stack = torch.stack([image(n) for n in names], 1)
    stack = preprocessing.with_neighbours(stack, card.preprocessing.neighbours)
    with torch.inference_mode():
        said = [sliding_window_inference(part[None], (size, size), 4, network, overlap=0.5) for part in stack]
    probability = torch.cat(said)[:, 0].sigmoid()
    return whole.back(probability) > card.decision.voxel_threshold


def main() -> None:
    """Take turns on each patient; Dice and seconds of each way."""
    (model,) = [c for c in config.load().cards if c.card.name == "brain_mr"]
    predictor = inference.load(model.card, model.weights, inference.device_name())
    (network,) = predictor._segmentation
    predictor._classification = None  # the windows outline only
    once = model.card.model_copy(update={"running": model.card.running.model_copy(update={"mirrored": False})})
    single = inference.TorchPredictor(once, [network], None, predictor.device)
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 10
    ways = {
        "sliding windows": lambda case: windows(case, model.card, network),
        "ours": lambda case: predictor.predict(case.inputs).mask,
        "ours, without mirror images": lambda case: single.predict(case.inputs).mask,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    overlaps: dict[str, list[float]] = {name: [] for name in ways}
    places = [Path(p) for p in sys.argv[1:4]]
    for case in islice(labelled(model.card, *places), count + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            mask = way(case)
            seconds[name].append(time.perf_counter() - started)
            overlaps[name].append(dice(mask, case.mask))
    numbers: dict[str, float | str] = {"patients (the first warms up)": str(len(overlaps["ours"]) - 1)}
    for name in ways:
        numbers[f"{name}: s a study"] = mean(seconds[name][1:])
        numbers[f"{name}: Dice"] = mean(overlaps[name][1:])
    for name in list(ways)[1:]:
        ratios = [a / b for a, b in zip(seconds["sliding windows"][1:], seconds[name][1:], strict=True)]
        numbers[f"{name}: times as fast, median"] = float(np.median(ratios))
    tell_numbers(f"inference on {predictor.device}", numbers, Path(sys.argv[5]) if len(sys.argv) > 5 else None)


if __name__ == "__main__":
    main()
