"""The predictor: one card's networks in memory, many studies through them.

Weights are read and checked once. Whole forward passes on CPU are float32 and give the same bits on every run. The
answers of an ensemble are averaged; so are those to a slice and to its mirror image, where the card says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from medrec.models import networks, preprocessing, weights
from medrec.prediction import ModelCard, Network, Prediction
from medrec.volume import Volume

SLICES_AT_ONCE = 8


class TorchPredictor:
    """Implements `medrec.prediction.Predictor`."""

    def __init__(
        self, card: ModelCard, segmentation: Sequence[nn.Module], classification: nn.Module | None, device: str
    ) -> None:
        self.card = card
        self.device = device
        self._segmentation = [network.to(device).eval() for network in segmentation]
        self._classification = None if classification is None else classification.to(device).eval()

    def predict(self, inputs: Mapping[str, Volume]) -> Prediction:
        """Probabilities and mask on the grid of the card's grid input. Raises ScanError on an empty image."""
        stack, frame = preprocessing.images(inputs, self.card)
        stack = preprocessing.with_neighbours(stack, self.card.preprocessing.neighbours)
        maps = [self._outlined(network, stack)[:, 0] for network in self._segmentation]
        probability = frame.back(torch.stack(maps).mean(0))
        slices = None
        if self._classification is not None:
            scores = torch.cat(list(self._answers(self._classification, stack)))[:, 0]
            # The networks see slices from the feet up; the volume may count them the other way.
            slices = (scores.flip(0) if _reversed(frame) else scores).numpy()
        return Prediction(probability, probability > self.card.decision.voxel_threshold, slices)

    def _outlined(self, network: nn.Module, stack: torch.Tensor) -> torch.Tensor:
        """(k, channels, y, x) to probabilities (k, 1, y, x), slice by slice or all together as the card says."""
        depth = self.card.preprocessing.depth
        if depth is None:
            return torch.cat(list(self._answers(network, stack)))
        (maps,) = self._answers(network, preprocessing.whole(stack, depth))
        return preprocessing.slices(maps, len(stack))

    @torch.inference_mode()
    def _answers(self, network: nn.Module, stack: torch.Tensor) -> Iterator[torch.Tensor]:
        """Probabilities of a few slices at a time, averaged over the slice and its mirror image if the card says so."""
        for part in stack.split(SLICES_AT_ONCE):
            x = part.to(self.device)
            answer = network(x).sigmoid()
            if self.card.preprocessing.mirrored:
                other = network(x.flip(-1)).sigmoid()
                answer = (answer + (other.flip(-1) if other.ndim > 2 else other)) / 2
            yield answer.cpu()


def _reversed(frame: preprocessing.Frame) -> bool:
    return bool(frame.turn[2, 1] < 0)


def load(card: ModelCard, files: Mapping[str, Path], device: str) -> TorchPredictor:
    """Build a card's networks with the weights that it pins; `files` says where each lies, by the name in the card.

    Raises WeightsError when a digest differs or the weights do not fit, ConfigError when the card names no network.
    """

    def network(part: Network) -> nn.Module:
        built = networks.build(part.kind, part.settings, preprocessing.channels(card))
        weights.fill(built, weights.read(files[part.weights], part.sha256), part.weights)
        return built

    classification = None if card.classification is None else network(card.classification)
    outlining = [network(part) for part in (card.segmentation, *card.ensemble)]
    return TorchPredictor(card, outlining, classification, device)


def device_name(wanted: str = "auto") -> str:
    """ "cuda" where there is a GPU and `wanted` is "auto", else what is wanted, else "cpu"."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def use_threads(count: int) -> None:
    """Let the networks use `count` CPU threads; 0 leaves torch's own choice."""
    if count:
        torch.set_num_threads(count)


def threads() -> int:
    """How many CPU threads the networks use: sums are made in another order with another number."""
    return torch.get_num_threads()
