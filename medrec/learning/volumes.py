"""The networks of a card of volumes, fitted to samples: slices (2D, 2.5D), or whole volumes (3D)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from medrec.learning import fitting, training
from medrec.learning.augmentation import Augmentation
from medrec.learning.cases import Sample
from medrec.models import preprocessing
from medrec.prediction import ModelCard, Network, Recipe

POSITIVE_SHARE = 5e-4  # of the square: fewer pixels are an edge that could as well be the next slice's
WATCHED_SLICES = 256  # a look at them takes seconds, and more of the same patients tell little more
AT_ONCE = 16


def train(
    card: ModelCard,
    learn: Sequence[Sample],
    out: Path,
    device: str,
    watching: Sequence[Sample] = (),
    following: fitting.Following | None = None,
) -> ModelCard:
    """Fit all networks of a card; returns the card with the digests of the weights written to `out`."""

    def fit(part: Network, outlines: bool) -> Network:
        recipe = part.training or card.training
        if card.preprocessing.depth is not None:
            batches, looks = _of_volumes(card, card.preprocessing.depth, learn, watching, recipe, outlines, device)
            loss = training.outline_loss(recipe.overlap) if outlines else study_loss
        else:
            batches, looks = _of_slices(card, learn, watching, recipe, device)
            loss = training.outline_loss(recipe.overlap) if outlines else training.slice_loss(POSITIVE_SHARE)
        channels, steps = preprocessing.channels(card), steps_of(card, part, outlines)
        return fitting.fit(part, channels, recipe, steps, batches, loss, out, device, looks, following)

    segmentation = None if card.segmentation is None else fit(card.segmentation, True)
    ensemble = tuple(fit(part, True) for part in card.ensemble)
    classification = None if card.classification is None else fit(card.classification, False)
    return card.model_copy(
        update={"segmentation": segmentation, "ensemble": ensemble, "classification": classification}
    )


def study_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of "this study is positive": logits (n, 1), targets (n, 1, z, y, x), the same everywhere."""
    return F.binary_cross_entropy_with_logits(logits[:, 0], (target.amax((1, 2, 3, 4)) > 0.5).float())


def _of_slices(
    card: ModelCard, learn: Sequence[Sample], watching: Sequence[Sample], recipe: Recipe, device: str
) -> tuple[training.Batches, list[fitting.Batch]]:
    outlined, seen = [s for s in learn if s.outlined], [s for s in watching if s.outlined]
    neighbours = card.preprocessing.neighbours
    batches = training.varied(training.Slices.of(outlined, neighbours), recipe, 1 + 2 * neighbours, device)
    return batches, _looks(training.Slices.of(seen, neighbours)) if seen else []


def _of_volumes(
    card: ModelCard,
    depth: int,
    learn: Sequence[Sample],
    watching: Sequence[Sample],
    recipe: Recipe,
    outlines: bool,
    device: str,
) -> tuple[training.Batches, list[fitting.Batch]]:
    """What is outlined as the targets, or targets that are 1 or 0 throughout: the class of the study."""
    if outlines:
        usable, seen = ([s for s in side if s.outlined] for side in (learn, watching))
    else:
        usable, seen = ([_classed(s) for s in side if s.positive is not None] for side in (learn, watching))
    batches = Volumes.of(usable, depth).batches(recipe, device, poses_targets=outlines)
    return batches, Volumes.of(seen, depth).looks() if seen else []


def _classed(sample: Sample) -> Sample:
    return replace(sample, target=torch.full_like(sample.target, float(bool(sample.positive))))


def steps_of(card: ModelCard, part: Network, outlines: bool) -> int:
    """How many steps a network is trained for, at most."""
    if part.training is not None:
        return part.training.steps
    return card.training.segmentation_steps if outlines else card.training.classification_steps


def _looks(slices: training.Slices) -> list[fitting.Batch]:
    """Slices evenly over all that watch, in batches."""
    pick = torch.linspace(0, len(slices.images) - 1, min(WATCHED_SLICES, len(slices.images))).round().long()
    x, y = slices.images[pick].float(), slices.targets[pick].float()
    return list(zip(x.split(AT_ONCE), y.split(AT_ONCE), strict=True))


class Volumes:
    """Whole volumes: images (n, inputs, z, y, x) and targets (n, 1, z, y, x), float16."""

    def __init__(self, images: torch.Tensor, targets: torch.Tensor) -> None:
        self._images = images
        self._targets = targets
        marked = (targets > 0.5).flatten(1).any(1)
        self._marked, self._bare = marked.nonzero()[:, 0], (~marked).nonzero()[:, 0]

    @classmethod
    def of(cls, samples: Sequence[Sample], depth: int) -> "Volumes":
        """Every sample with as many slices as the card's depth."""
        images = [preprocessing.whole(s.images.float(), depth).half() for s in samples]
        targets = [preprocessing.whole(s.target[:, None].float(), depth).half() for s in samples]
        return cls(torch.cat(images), torch.cat(targets))

    def looks(self) -> list[fitting.Batch]:
        """All volumes, one at a time."""
        return [(self._images[n : n + 1].float(), self._targets[n : n + 1].float()) for n in range(len(self._images))]

    def batches(self, recipe: Recipe, device: str, poses_targets: bool = True) -> training.Batches:
        """Batches of varied volumes, half of them with the finding if there are any.

        Without `poses_targets` targets stay as they are, because a class does not turn with its study, and the other
        half is without the finding, so that no class is the likelier one.
        """

        def batch(generator: torch.Generator) -> fitting.Batch:
            half = recipe.batch // 2 if len(self._marked) else 0
            pick = torch.randint(len(self._images), (recipe.batch,), generator=generator)
            if half:
                pick[:half] = self._marked[torch.randint(len(self._marked), (half,), generator=generator)]
            if not poses_targets:
                rest = recipe.batch - half
                pick[half:] = self._bare[torch.randint(len(self._bare), (rest,), generator=generator)]
            x, y = self._images[pick].float().to(device), self._targets[pick].float().to(device)
            varied, moved = Augmentation(generator, x.shape[2], recipe.augmentation == "strong").of_volumes(x, y)
            return varied, moved if poses_targets else y

        return batch
