"""Fit one network to labelled slices, with checkpoints from which a killed run goes on.

MONAI's loss, AdamW with a cosine, an exponential average of the weights (that is what is kept). Half of each batch
holds the finding. On a processor that computes in it, bfloat16 (one that only emulates it takes six times as long);
the random draws come from one seeded generator, whose state is part of the checkpoint, as is that of torch's own, from
which dropout draws: a killed training goes on to the same weights.
"""

import copy
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import nn
from torch.nn import functional as F

from medrec.errors import DataError
from medrec.learning.augmentation import Augmentation
from medrec.learning.cases import Sample
from medrec.models.preprocessing import with_neighbours
from medrec.prediction import Recipe

log = logging.getLogger(__name__)

WARM_UP_STEPS = 100  # or a tenth of a shorter training
DICE_FLOOR_PX = 100.0  # so that a few pixels more or less in an empty slice weigh little
CHECKPOINT_SECONDS = 30.0
GRADIENT_NORM = 5.0

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Batches = Callable[[torch.Generator], tuple[torch.Tensor, torch.Tensor]]  # images and targets of one step


def outline_loss(overlap: Literal["batch", "both"] = "batch") -> Loss:
    """Dice and cross-entropy of outlines: logits and targets (n, 1, y, x).

    Dice of the batch counts every pixel alike; "both" gives half of its weight to the mean of the slices' own.
    """
    dice_ce = DiceCELoss(sigmoid=True, batch=True, lambda_dice=1.0 if overlap == "batch" else 0.5)
    own = DiceLoss(sigmoid=True, smooth_nr=DICE_FLOOR_PX, smooth_dr=DICE_FLOOR_PX)

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = dice_ce(logits, target)
        return value if overlap == "batch" else value + 0.5 * own(logits, target)

    return loss


def slice_loss(minimum_share: float) -> Loss:
    """Cross-entropy of "this slice holds the finding": logits (n, 1), targets (n, 1, y, x).

    A slice holds it when more than `minimum_share` of its square is marked.
    """

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        positive = (target.mean((1, 2, 3)) > minimum_share).float()
        return F.binary_cross_entropy_with_logits(logits[:, 0], positive)

    return loss


@dataclass(frozen=True, slots=True, eq=False)
class Slices:
    """All training slices: images (n, channels, y, x) and targets (n, 1, y, x), float16.

    `positive` are those that hold the finding; `patients` the first and the end slice of each patient that has any.
    """

    images: torch.Tensor
    targets: torch.Tensor
    positive: torch.Tensor
    patients: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], neighbours: int) -> "Slices":
        """Put the slices of all samples together."""
        images = torch.cat([with_neighbours(s.images, neighbours) for s in samples])
        targets = torch.cat([s.target for s in samples])[:, None]
        ends = list(itertools.accumulate(len(s.target) for s in samples))
        patients = tuple(zip([0, *ends[:-1]], ends, strict=True))
        return cls(images, targets, (targets > 0.5).flatten(1).any(1).nonzero()[:, 0], patients)

    def draw(
        self, count: int, generator: torch.Generator, sampling: Literal["slices", "patients"] = "slices"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`count` slices, half of them with the finding, as float32; see `medrec.prediction.Recipe`."""
        pick = self._of_patients(count, generator) if sampling == "patients" else self._of_all(count, generator)
        pick = pick.to(self.images.device)
        return self.images[pick].float(), self.targets[pick].float()

    def to(self, device: str) -> "Slices":
        """The same with images and targets on `device`, where a batch is then drawn without a transfer."""
        return replace(self, images=self.images.to(device), targets=self.targets.to(device))

    def _of_all(self, count: int, generator: torch.Generator) -> torch.Tensor:
        half = count // 2
        with_finding = self.positive[torch.randint(len(self.positive), (half,), generator=generator)]
        anywhere = torch.randint(len(self.images), (count - half,), generator=generator)
        return torch.cat([with_finding, anywhere])

    def _of_patients(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """A patient for each slice, then one of the patient's slices; the first half with the finding, if any has."""
        where, place = torch.rand(2, count, generator=generator, dtype=torch.float64)
        chosen = [self.patients[int(w * len(self.patients))] for w in where]
        picks = []
        for number, (first, end) in enumerate(chosen):
            pool = self.positive[(self.positive >= first) & (self.positive < end)]
            if number >= count // 2 or not len(pool):
                pool = torch.arange(first, end)
            picks.append(pool[int(place[number] * len(pool))])
        return torch.stack(picks)


def varied(slices: Slices, settings: Recipe, grid_channels: int, device: str) -> Batches:
    """Batches of augmented slices; the first `grid_channels` show the grid's input and its neighbours."""
    slices = slices.to(device)

    def batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = slices.draw(settings.batch, generator, settings.sampling)
        return Augmentation(generator, grid_channels, settings.augmentation == "strong")(x, y)

    return batch


def fit(
    network: nn.Module,
    batches: Batches,
    loss: Loss,
    steps: int,
    settings: Recipe,
    checkpoint: Path,
    device: str,
    watch: Callable[[int, nn.Module], None] = lambda step, network: None,
    watch_every: int = 50,
    watcher: "Watcher | None" = None,
    tell: Callable[[int, float, float, float], None] = lambda step, loss, rate, left_s: None,
) -> nn.Module:
    """Train for `steps` batches and return the averaged network, or the one that a `watcher` found best.

    Goes on from `checkpoint` when that exists. `watch` sees the averaged network every `watch_every` steps; `tell`
    hears the loss, the learning rate and how many seconds are left.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    network = network.to(device).train()
    half = _computes_bfloat16(device)
    average = copy.deepcopy(network).eval()
    optimiser = torch.optim.AdamW(
        network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=device != "cpu"
    )
    first = _resume(checkpoint, network, average, optimiser, generator, watcher)
    saved = started = time.monotonic()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = _rate(step, steps) * settings.learning_rate
        x, y = batches(generator)
        # On a CPU oneDNN's bfloat16 gradient of small 3D convolutions is, now and then, no number (torch 2.13).
        enabled = half and not (torch.device(device).type == "cpu" and x.ndim == 5)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
            logits = network(x)
        value = loss(logits.float(), y)
        optimiser.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        if not torch.isfinite(norm):
            raise DataError(f"training broke off at step {step + 1}: its numbers ran away; try a lower learning_rate")
        optimiser.step()
        _average(average, network, min(settings.average, (step + 1) / (step + 10)))
        if (step + 1) % watch_every == 0:
            pace = (time.monotonic() - started) / (step + 1 - first)
            log.info("step %d of %d, loss %.4f, %.0f s left", step + 1, steps, value.item(), pace * (steps - step - 1))
            tell(step + 1, value.item(), optimiser.param_groups[0]["lr"], pace * (steps - step - 1))
            watch(step + 1, average)
        if watcher is not None and watcher.has_seen_enough(step + 1, average):
            break
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save(checkpoint, step + 1, network, average, optimiser, generator, watcher)
            saved = time.monotonic()
    return average if watcher is None else watcher.best(average)


class Watcher:
    """Looks at patients who are not learnt from, keeps the network of the best look, and says when to stop.

    `loss_of` is the loss of a network on them. Its state is part of the checkpoint.
    """

    def __init__(self, loss_of: Callable[[nn.Module], float], every: int, patience: int) -> None:
        self._loss_of = loss_of
        self._every = every
        self._patience = patience
        self.curve: list[tuple[int, float]] = []
        self._kept: dict[str, torch.Tensor] = {}

    def has_seen_enough(self, step: int, network: nn.Module) -> bool:
        """Look, every so many steps; True when the last `patience` looks were no better than one before them."""
        if step % self._every:
            return False
        before = min((value for _, value in self.curve), default=math.inf)
        self.curve.append((step, self._loss_of(network)))
        if self.curve[-1][1] < before or not self._kept:
            self._kept = {k: v.detach().clone() for k, v in network.state_dict().items()}
        best = min(range(len(self.curve)), key=lambda n: self.curve[n][1])
        return len(self.curve) - 1 - best >= self._patience

    def best(self, network: nn.Module) -> nn.Module:
        """The network with the weights of the best look; as it is when there was none."""
        if self._kept:
            network.load_state_dict(self._kept)
        return network

    def state(self) -> dict[str, object]:
        """What `restore` takes."""
        return {"curve": self.curve, "kept": self._kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as before a kill."""
        self.curve = [(int(step), float(value)) for step, value in state["curve"]]
        self._kept = dict(state["kept"])


def _computes_bfloat16(device: str) -> bool:
    if torch.device(device).type != "cpu":
        return True
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not say
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, min(WARM_UP_STEPS, steps // 10))
    return min(1.0, (step + 1) / warm_up) * max(0.005, 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, keep: float) -> None:
    pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    moving, still = [p for p in pairs if p[0].is_floating_point()], [p for p in pairs if not p[0].is_floating_point()]
    # All at once: on a GPU the launches of one each take longer than the sums.
    torch._foreach_lerp_([kept for kept, _ in moving], [new for _, new in moving], 1 - keep)
    for kept, new in still:
        kept.copy_(new)


def _save(
    path: Path,
    step: int,
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    watcher: Watcher | None,
) -> None:
    draft = path.with_suffix(".draft")
    state = {
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "generator": generator.get_state(),
        "torch": torch.get_rng_state(),
        "watcher": {} if watcher is None else watcher.state(),
    }
    torch.save(state, draft)
    draft.replace(path)  # a kill leaves the old checkpoint or the new one


def _resume(
    path: Path,
    network: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    watcher: Watcher | None,
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    generator.set_state(state["generator"])
    if "torch" in state:  # checkpoints of earlier releases lack it
        torch.set_rng_state(state["torch"])
    if watcher is not None and state.get("watcher"):
        watcher.restore(state["watcher"])
    log.info("going on from step %d", state["step"])
    return int(state["step"])
