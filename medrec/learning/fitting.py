"""One network of a card, from its recipe to a file of weights; the same for volumes and for pictures.

Weights that are there already are only pinned: a training that was killed between two networks goes on with the next.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from medrec.declared import EarlyStop
from medrec.learning import starts, training
from medrec.models import networks, weights
from medrec.prediction import Network, Recipe

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Following:
    """How a training is followed: when it stops early, and who hears of it.

    `heard` gets the weights' file name, the step, the number of steps and the seconds that are left. `altered` changes
    a network before it is trained, for an experiment.
    """

    early_stop: EarlyStop
    heard: Callable[[str, int, int, float], None] = lambda name, step, steps, left_s: None
    altered: Callable[[nn.Module], None] = lambda network: None


def fit(
    part: Network,
    channels: int,
    recipe: Recipe,
    steps: int,
    batches: training.Batches,
    loss: training.Loss,
    out: Path,
    device: str,
    watching: Sequence[Batch] = (),
    following: Following | None = None,
) -> Network:
    """Fit one network and write its weights to `out`, and what was seen on the way to `out`/<weights>.curves.json.

    With `following` the training stops early by what it does on `watching`, batches of patients not learnt from.
    """
    done = out / part.weights
    if done.exists():
        return part.model_copy(update={"sha256": hashlib.sha256(done.read_bytes()).hexdigest()})
    torch.manual_seed(recipe.seed)
    network = networks.build(part.kind, part.settings, channels)
    if part.start is not None:
        starts.begin(network, part.start)
    if following is not None:
        following.altered(network)
    watcher, curve = None, out / f"{part.weights}.curve.jsonl"
    if following is not None and watching:
        early = following.early_stop
        watcher = training.Watcher(lambda n: _loss(n, watching, loss, device), early.every, early.patience)

    def tell(step: int, value: float, rate: float, left_s: float) -> None:
        with curve.open("a") as file:
            file.write(json.dumps([step, value, rate]) + "\n")
        if following is not None:
            following.heard(part.weights, step, steps, left_s)

    checkpoint = out / f"{part.weights}.checkpoint"
    every = 50 if following is None else min(50, following.early_stop.every)
    fitted = training.fit(
        network, batches, loss, steps, recipe, checkpoint, device, watch_every=every, watcher=watcher, tell=tell
    )
    _write_curves(curve, watcher, out / f"{part.weights}.curves.json")
    draft = out / f".{part.weights}.draft"
    digest = weights.write(fitted.state_dict(), draft)
    draft.replace(done)  # a kill leaves no half of a file that would be taken for a whole one
    checkpoint.unlink(missing_ok=True)
    return part.model_copy(update={"sha256": digest})


@torch.inference_mode()
def _loss(network: nn.Module, watching: Sequence[Batch], loss: training.Loss, device: str) -> float:
    values = [float(loss(network(x.to(device)).float(), y.to(device))) * len(x) for x, y in watching]
    return sum(values) / sum(len(x) for x, _ in watching)


def _write_curves(curve: Path, watcher: training.Watcher | None, target: Path) -> None:
    """Loss and rate by step (of the last try at each step, where a kill made some of them twice), and the looks."""
    lines = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
    steps = {int(step): (value, rate) for step, value, rate in lines}
    told = {
        "loss": [[s, v] for s, (v, _) in sorted(steps.items())],
        "rate": [[s, r] for s, (_, r) in sorted(steps.items())],
        "watching": [] if watcher is None else [list(look) for look in watcher.curve],
    }
    target.write_text(json.dumps(told))
    curve.unlink(missing_ok=True)
