"""Cards as people write them, before anything is trained: without what only a training knows.

Owns the reading of a draft, and the digest of its recipe. Invariant: a draft that is trained and one that is read back
have the same recipe.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from medrec.config import Configuration
from medrec.errors import ConfigError
from medrec.fields import mistakes
from medrec.pictures import Card, PictureCard, card_of

NO_DIGEST = "0" * 64


def read(named: str, configuration: Configuration) -> Card:
    """The card in a file, or of a configured model by its name. Raises ConfigError with every mistake."""
    path = Path(named)
    if not path.is_file():
        cards = {m.card.name: m.card for m in configuration.cards}
        if named in cards:
            return cards[named]
        raise ConfigError([f"{named}: neither a file nor a configured model ({', '.join(sorted(cards))})"])
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return card_of(_completed(content))
    except ValidationError as error:
        raise ConfigError([f"{path.name}: {m}" for m in mistakes(error)]) from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError([f"{path.name}: cannot be read as a card ({type(error).__name__})"]) from None


def recipe(card: Card) -> str:
    """Digest of what a card says before it is trained: not its version, nor what a training fills in."""
    networks = {place: n.model_copy(update={"sha256": NO_DIGEST}) for place, n in card.networks.items()}
    fields = json.loads(card.content)
    learnt = ("version", "trained_on", "measured", "segmentation", "ensemble", "classification")
    for name in (*learnt, "familiarity", "uncertainty"):
        fields.pop(name, None)
    if isinstance(card, PictureCard):
        fields["decision"].pop("temperature", None)
    fields["networks"] = {place: n.model_dump(mode="json") for place, n in networks.items()}
    return hashlib.sha256(json.dumps(fields, sort_keys=False).encode()).hexdigest()


def _completed(content: Any) -> Any:
    """A draft with what only a training knows: names and digests of weights, what was measured and on whom."""
    if not isinstance(content, dict):
        return content
    name = content.get("name", "model")
    filled = {"measured": [], "trained_on": [], "version": "1.0.0", **content}
    for place in ("segmentation", "classification"):
        if isinstance(filled.get(place), dict):
            filled[place] = {"weights": f"{name}_{place}.safetensors", "sha256": NO_DIGEST, **filled[place]}
    more = filled.get("ensemble")
    if isinstance(more, list):
        filled["ensemble"] = [
            {"weights": f"{name}_ensemble_{n}.safetensors", "sha256": NO_DIGEST, **part} for n, part in enumerate(more)
        ]
    return filled
