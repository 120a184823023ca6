"""The predictor: one card's networks in memory, many studies through them.

Weights are read and checked once. Whole forward passes on CPU are float32 and give the same bits on every run. The
answers of an ensemble are averaged; so are those to a slice and to its mirror image, where the card says so.

Memory that runs out costs a study time, not its report: fewer slices at a time, one at last, then the CPU; what was
done is told with the prediction, and the next study begins at the top again. On a device that is not the CPU what the
networks say of a stored sample is held against what they say in plain float32 on the CPU.
"""

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from medrec.calibration import tempered
from medrec.errors import ConfigError, WeightsError, WorldError
from medrec.models import networks, preprocessing, weights
from medrec.prediction import ModelCard, Network, Prediction, Running
from medrec.volume import Volume

LADDER = (8, 4, 2, 1)  # slices at a time on the device, before the CPU
SAMPLE_SLICES = 2

T = TypeVar("T")


class TorchPredictor:
    """Implements `medrec.prediction.Predictor`."""

    def __init__(
        self, card: ModelCard, segmentation: Sequence[nn.Module], classification: nn.Module | None, device: str
    ) -> None:
        self.card = card
        self.device = device
        self._segmentation = [_placed(network, device, card.running) for network in segmentation]
        self._classification = None if classification is None else _placed(classification, device, card.running)

    def predict(self, inputs: Mapping[str, Volume]) -> Prediction:
        """Probabilities and mask on the grid of the card's grid input; `device` says how, where memory ran out.

        Raises ScanError on an empty image, WorldError when there is no memory for one slice on the CPU.
        """
        stack, frame = preprocessing.images(inputs, self.card)
        stack = preprocessing.with_neighbours(stack, self.card.preprocessing.neighbours)
        (maps, scores), how = self._on_the_ladder(stack)
        if maps:
            probability = frame.back(torch.stack(maps).mean(0))
        else:
            probability = np.zeros(inputs[self.card.grid].voxels.shape, np.float32)
        threshold = self.card.decision.voxel_threshold
        mask, agreement = probability > threshold, _agreement(maps, threshold)
        if scores is None:
            return Prediction(probability, mask, None, how, agreement=agreement)
        if self.card.tells_class:
            positive = tempered(float(scores[0]), self.card.decision.temperature)
            return Prediction(probability, mask, None, how, positive, agreement)
        # The networks see slices from the feet up; the volume may count them the other way.
        slices = (scores.flip(0) if _reversed(frame) else scores).numpy()
        return Prediction(probability, mask, slices, how, agreement=agreement)

    def _on_the_ladder(self, stack: torch.Tensor) -> tuple[tuple[list[torch.Tensor], torch.Tensor | None], str]:
        """What the networks say, and how it was got where memory ran out ("" where it did not)."""
        for at_once in LADDER:
            answer = _unless_full(lambda n=at_once: self._run(stack, n, self.device))  # type: ignore[misc]
            if answer is not None:
                told = f"{self.device}, {at_once} slices at a time: its memory ran out"
                return answer, "" if at_once == LADDER[0] else told
        if self.device != "cpu":
            answer = _unless_full(lambda: self._run_on_cpu(stack))
            if answer is not None:
                return answer, f"cpu: the memory of {self.device} ran out"
        raise WorldError("out of memory: there is no room for one slice")

    def _run_on_cpu(self, stack: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        plain = self.card.model_copy(update={"running": _plain(self.card.running)})
        outlining = [copy.deepcopy(network).cpu() for network in self._segmentation]
        calling = None if self._classification is None else copy.deepcopy(self._classification).cpu()
        return TorchPredictor(plain, outlining, calling, "cpu")._run(stack, 1, "cpu")

    def _run(self, stack: torch.Tensor, at_once: int, device: str) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        maps = [self._outlined(network, stack, at_once, device)[:, 0] for network in self._segmentation]
        if self._classification is None:
            return maps, None
        depth = self.card.preprocessing.depth
        seen = stack if depth is None else preprocessing.whole(stack, depth)
        return maps, torch.cat(list(self._said(self._classification, seen, at_once, device)))[:, 0]

    def _outlined(self, network: nn.Module, stack: torch.Tensor, at_once: int, device: str) -> torch.Tensor:
        """(k, channels, y, x) to probabilities (k, 1, y, x), slice by slice or all together as the card says."""
        depth = self.card.preprocessing.depth
        if depth is None:
            return torch.cat(list(self._said(network, stack, at_once, device)))
        (maps,) = self._said(network, preprocessing.whole(stack, depth), at_once, device)
        return preprocessing.slices(maps, len(stack))

    @torch.inference_mode()
    def _said(self, network: nn.Module, stack: torch.Tensor, at_once: int, device: str) -> Iterator[torch.Tensor]:
        """Probabilities of a few slices at a time, on the CPU; averaged with the mirror image's where wanted."""
        running = self.card.running
        for part in stack.split(at_once):
            x = part.to(device)
            if running.channels_last and device != "cpu" and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            with _precision(running, device):
                said = network(x).sigmoid().float()
                if running.mirrored:
                    mirrored = network(x.flip(-1)).sigmoid().float()
                    said = (said + (mirrored.flip(-1) if mirrored.ndim > 2 else mirrored)) / 2
            yield said.cpu()


def _agreement(maps: Sequence[torch.Tensor], threshold: float) -> float | None:
    """The least Dice between the outlines of two networks, on their own grid; two empty ones agree."""
    masks = [m > threshold for m in maps]
    pairs = [(int((a & b).sum()), int(a.sum()) + int(b.sum())) for a, b in combinations(masks, 2)]
    return min((2 * both / total if total else 1.0 for both, total in pairs), default=None)


def _placed(network: nn.Module, device: str, running: Running) -> nn.Module:
    placed = network.to(device).eval()
    if running.channels_last and device != "cpu":
        placed = placed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return placed


def _plain(running: Running) -> Running:
    return running.model_copy(update={"autocast": None, "channels_last": False})


def _precision(running: Running, device: str) -> AbstractContextManager[object]:
    """Half precision where the card asks for it, on a GPU; a CPU mostly emulates it, and slowly."""
    if running.autocast is None or device == "cpu":
        return nullcontext()
    return torch.autocast(device.partition(":")[0], dtype=getattr(torch, running.autocast))


def _unless_full(run: Callable[[], T]) -> T | None:
    """What comes of `run`; None, with the memory given back, where that ran out."""
    try:
        return run()
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:  # what torch's allocator for the CPU raises has no name of its own
        if "allocate memory" not in str(error):
            raise
    gc.collect()  # outside of the handler: its traceback holds the tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _reversed(frame: preprocessing.Frame) -> bool:
    return bool(frame.turn[2, 1] < 0)


def load(card: ModelCard, files: Mapping[str, Path], device: str) -> TorchPredictor:
    """Build a card's networks with the weights that it pins; `files` says where each lies, by the name in the card.

    Raises WeightsError when a digest differs, the weights do not fit, or the device computes otherwise than a CPU;
    ConfigError when the card names no network.
    """

    def network(part: Network) -> nn.Module:
        built = networks.build(part.kind, part.settings, preprocessing.channels(card))
        weights.fill(built, weights.read(files[part.weights], part.sha256), part.weights)
        return built

    classification = None if card.classification is None else network(card.classification)
    outlining = [network(part) for place, part in card.networks.items() if place != "classification"]
    if device == "cpu":
        return TorchPredictor(card, outlining, classification, device)
    plain = TorchPredictor(card, copy.deepcopy(outlining), copy.deepcopy(classification), "cpu")
    placed = TorchPredictor(card, outlining, classification, device)
    hold_against(placed, plain)
    return placed


def sample(card: ModelCard) -> torch.Tensor:
    """The stored sample: a disk with a bright spot in noise, (slices, channels, size, size), the same everywhere."""
    size, channels = card.preprocessing.size_px, preprocessing.channels(card)
    noise = torch.randn(SAMPLE_SLICES, channels, size, size, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    inside = (x**2 + y**2 < 0.8).float()
    spot = ((x - 0.3) ** 2 + (y + 0.2) ** 2 < 0.03).float()
    return 0.1 * noise + inside + 2 * spot - 1


def hold_against(predictor: TorchPredictor, plain: TorchPredictor) -> None:
    """Raises WeightsError when a predictor answers farther from the plain one than its card tolerates."""
    (maps, scores), _ = predictor._on_the_ladder(sample(predictor.card))
    (wanted, called), _ = plain._on_the_ladder(sample(plain.card))
    pairs = [*zip(maps, wanted, strict=True), *([(scores, called)] if scores is not None else [])]
    off = [float((a - b).abs().max()) for a, b in pairs if b is not None]
    if not all(o <= predictor.card.running.tolerance for o in off):  # what is no number is not below it either
        worst = max(off, key=lambda o: (o != o, o))
        raise WeightsError(
            f"{predictor.card.name}: {predictor.device} computes otherwise than a CPU (off by {worst:.3f}, the card "
            f"tolerates {predictor.card.running.tolerance:g}); set device: cpu, or autocast: null in the card"
        )


def device_name(wanted: str = "auto") -> str:
    """ "cuda" where there is a GPU and `wanted` is "auto", else what is wanted, else "cpu".

    Raises ConfigError for a device that is not here: an answer from another one would be called its.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = wanted.partition(":")
    if kind == "cpu":
        return "cpu"
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind != "cuda" or not (number or "0").isdecimal() or int(number or 0) >= here:
        raise ConfigError([f"device: there is no {wanted} here; {here} GPUs were found"])
    return wanted


def use_threads(count: int) -> None:
    """Let the networks use `count` CPU threads; 0 leaves torch's own choice."""
    if count:
        torch.set_num_threads(count)


def threads() -> int:
    """How many CPU threads the networks use: sums are made in another order with another number."""
    return torch.get_num_threads()
