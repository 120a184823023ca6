"""What the activation function does, measured: short trainings of the card's first network with another one each.

An experiment for the model's page, not a search: the same recipe, data and seed, a tenth of the steps, and only the
activation differs. Without any the network is one linear filter, however deep it is.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from medrec.learning.tasks import Task
from medrec.pictures import Card
from medrec.prediction import ModelCard, OwnRecipe, Recipe

LONGEST_STEPS = 120
SHORTEST_STEPS = 10
DESIGNED = "as designed"
ACTIVATIONS: Mapping[str, Callable[[], nn.Module] | None] = {
    DESIGNED: None,
    "ReLU": nn.ReLU,
    "tanh": nn.Tanh,
    "none at all": nn.Identity,
}
KNOWN = (nn.ReLU, nn.PReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Tanh, nn.ReLU6)


@dataclass(frozen=True, slots=True)
class Trial:
    """One short training: the loss on the watching patients, by step."""

    activation: str
    curve: tuple[tuple[int, float], ...]


def trials(task: Task, images: frozenset[str], watching: frozenset[str]) -> tuple[Trial, ...]:
    """Every activation of `ACTIVATIONS`, the same otherwise; () where no patient watches."""
    if not watching:
        return ()
    found = []
    for name, activation in ACTIVATIONS.items():
        with TemporaryDirectory() as place:
            short = replace(task, card=_short(task.card))
            card = short.train(images, watching, Path(place), lambda *_: None, _swapped(activation))
            (network,) = card.networks.values()
            curves = json.loads((Path(place) / f"{network.weights}.curves.json").read_text())
        found.append(Trial(name, tuple((int(s), float(v)) for s, v in curves["watching"])))
    return tuple(found)


def designed(network: nn.Module) -> str:
    """The activation that a network has, in its own words."""
    names = sorted({type(m).__name__ for m in network.modules() if isinstance(m, KNOWN)})
    return " and ".join(names) or "none"


def _short(card: Card) -> Card:
    """The card with its first network alone and a tenth of its steps."""
    place, part = next(iter(card.networks.items()))
    recipe = part.training or card.training
    planned = part.training.steps if part.training is not None else card.training.segmentation_steps
    if place == "classification" and part.training is None:
        planned = card.training.classification_steps
    steps = max(SHORTEST_STEPS, min(LONGEST_STEPS, planned // 10))
    own = OwnRecipe(steps=steps, **{n: getattr(recipe, n) for n in Recipe.model_fields})
    every = max(1, steps // 5)
    changed: dict[str, object] = {
        place: part.model_copy(update={"training": own}),
        "early_stop": card.early_stop.model_copy(update={"every": every, "patience": steps}),
    }
    if place == "segmentation":
        changed["classification"] = None
    return card.model_copy(update=changed | ({"ensemble": ()} if isinstance(card, ModelCard) else {}))


def _swapped(activation: Callable[[], nn.Module] | None) -> Callable[[nn.Module], None]:
    def swap(network: nn.Module) -> None:
        if activation is None:
            return
        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, KNOWN):
                    setattr(module, name, activation())

    return swap
