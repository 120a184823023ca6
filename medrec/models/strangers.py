"""How unlike its training a study looks to a card's first network: the row of numbers that `medrec.familiarity` judges.

What the image itself shows (brightness, sharpness) and what the network's early maps hold on average, which lie close
to the pixels: late ones have learnt to see the same in everything. Of a volume only the grid's own input is looked at,
so that patients without the others are no strangers. Everything runs in float32 on the CPU, whatever the card says.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn

from medrec import familiarity
from medrec.errors import WeightsError
from medrec.familiarity import Familiar, Floats
from medrec.models import lite, preprocessing
from medrec.prediction import Familiarity, ModelCard, Strangeness

SLICES = 12  # of a volume, evenly from end to end: more tell little more
FINENESS = (4, 8)  # maps at these parts of the resolution: finer ones are edges, which `looks` tells


def read(data: bytes, name: str) -> Familiar:
    """The shape of a training set from a file's bytes. Raises WeightsError when they hold something else."""
    try:
        return Familiar.of(load(data))
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{name} does not say what the training patients looked like: {error}") from error


def write(familiar: Familiar, path: Path) -> str:
    """Store the shape of a training set; returns the file's sha256."""
    data = save(dict(familiar.arrays()))
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def of_volume(network: nn.Module, images: torch.Tensor, card: ModelCard) -> Floats:
    """The row (d,) of a study as `preprocessing.images` gives it: (k, inputs, y, x), the grid's own input first."""
    alone = torch.zeros_like(images)
    alone[:, :1] = images[:, :1]
    if card.preprocessing.depth is not None:
        x = preprocessing.whole(alone, card.preprocessing.depth)
    else:
        x = preprocessing.with_neighbours(alone, card.preprocessing.neighbours)
        x = x[torch.linspace(0, len(x) - 1, min(SLICES, len(x))).round().long()]
    return np.concatenate([familiarity.looks(images[:, 0].numpy()), averages(network, x)])


def of_picture(network: nn.Module, image: torch.Tensor) -> Floats:
    """The row (d,) of one image as the network sees it, (1, channels, y, x)."""
    return np.concatenate([familiarity.looks(image[:, 0].numpy()), averages(network, image)])


def judged(familiar: Familiar, limits: Familiarity, row: Floats, kinds: Sequence[str] = ()) -> Strangeness:
    """How far a row lies out; `kinds` are the card's inputs, its own first.

    Raises WeightsError when it is of another network than what it is held against.
    """
    if len(row) != len(familiar.spread):
        raise WeightsError(
            f"familiarity: {len(familiar.spread)} numbers describe the training patients, this network tells {len(row)}"
        )
    margin, nearest = familiar.margin(row)
    mistaken = None
    if limits.margin is not None and margin < limits.margin and nearest < len(kinds):
        mistaken = kinds[nearest].replace("_", " ").upper()
    return Strangeness(round(familiar.distance(row) / limits.limit, 3), familiar.strangest(row), mistaken)


@torch.inference_mode()
def averages(network: nn.Module, x: torch.Tensor) -> Floats:
    """What each early map holds on average over images and places, (channels,); of images (n, channels, [z,] y, x)."""
    if isinstance(encoder := getattr(network, "encoder", None), lite.Encoder):
        kept = encoder.early(x.contiguous(memory_format=torch.channels_last))
    else:
        kept = list(_early(network, x))
    found: Floats = torch.cat([m.transpose(0, 1).flatten(1).mean(1) for m in kept]).double().numpy()
    return found


def _early(network: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The last map at each of `FINENESS` before a coarser one comes; of a shallow network its coarsest."""
    last: dict[int, torch.Tensor] = {}

    def heard(module: nn.Module, _: object, y: torch.Tensor) -> None:
        part = round(x.shape[-1] / y.shape[-1])
        if not last or part >= max(last):
            last[part] = y

    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    hooks = [m.register_forward_hook(heard) for m in convolutions]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [last[p] for p in FINENESS if p in last] or [last[max(last)]]
    yield from wanted
