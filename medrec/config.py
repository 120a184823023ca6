"""From YAML files to the settings classes that the rooms own: every mistake, with file and field, before any work.

The packaged files are the defaults; a file of the same name in a user's own folder takes its place, and cards there
are added. Nothing in a file is executed; unknown fields are mistakes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from medrec.errors import ConfigError
from medrec.fields import Sha256, mistakes
from medrec.peers import Destination, Intake, Peer, unknown_peers
from medrec.people import Person, unfit_people
from medrec.pictures import Card, PictureCard
from medrec.prediction import Frozen, ModelCard, Name
from medrec.schedule import Backfill, Monitoring, Notify, Retraining, Review, Schedule, Shadow, Workers

PACKAGE = Path(__file__).parent
PACKAGED_WEIGHTS = PACKAGE / "models" / "weights"

FREE_LICENCES = ("Apache-2.0", "BSD-3-Clause", "CC0-1.0", "MIT")

Loaded = TypeVar("Loaded", bound=Frozen)


Days = Annotated[int, Field(ge=1)] | None


class Retention(Frozen):
    """After how many days `medrec prune` clears away what; null: never."""

    reports_days: Days = None
    superseded_days: Days = None
    batches_days: Days = None


class Settings(Frozen):
    """configs/medrec.yaml: what an operator may change."""

    # An empty list means every card that is there.
    models: tuple[Name, ...] = ()
    # Licences of weights whose terms are accepted, by name, beside FREE_LICENCES, which ask nothing of who uses them.
    accept_licences: tuple[str, ...] = ()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    retention: Retention = Retention()
    # Where each night leaves the ledger's signed head, best on a medium that can be written once, and the private key.
    anchors: Path | None = None
    anchor_key: Path | None = None
    # Whether a model that passed its gate is put in force at once, or waits for `medrec models promote`.
    promote: Literal["by hand", "automatic"] = "by hand"
    # SHA-256 of the MONAI bundles that `medrec models import` may take in.
    bundles: tuple[Sha256, ...] = ()
    # A study whose newest file is younger may still be arriving: it waits for the next night.
    quiet_minutes: Annotated[float, Field(ge=0, le=1440)] = 0
    experiment: Annotated[str, Field(pattern=r"^[\w .-]{1,60}$")] = "medrec"
    # Nothing comes in and nothing goes out over a network unless it is named here.
    peers: dict[Name, Peer] = Field(default_factory=dict)
    intake: Intake | None = None
    destinations: tuple[Destination, ...] = ()
    # When medrec serve begins nights; who is told when one goes wrong; how much a backfill may do at once.
    schedule: Schedule | None = None
    retraining: Retraining | None = None
    monitoring: Monitoring = Monitoring()
    # A challenger that runs beside the champion, and whose answers go nowhere.
    shadow: Shadow | None = None
    # Who may decide what, by a signature; how long a report may wait for that, and how many are set aside.
    people: tuple[Person, ...] = ()
    review: Review | None = None
    notify: Notify = Notify()
    backfill: Backfill = Backfill()
    workers: Workers = Workers()
    # A second place for reports, by digest: a folder or an object store, as an fsspec URL.
    depot: Annotated[str, Field(pattern=r"^[a-z0-9+]+://\S+$")] | None = None


@dataclass(frozen=True, slots=True)
class CardFiles:
    """A card and where the weights that it pins lie, by their file name."""

    card: Card
    weights: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that was configured; `sha256` covers settings and cards by content."""

    settings: Settings
    cards: tuple[CardFiles, ...]

    @property
    def sha256(self) -> str:
        """Digest of settings and cards: comments and layout do not count."""
        content = {
            "settings": self.settings.model_dump(mode="json"),
            "cards": sorted(c.card.digest for c in self.cards),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def licence_name(licence: str) -> str:
    """The name of a card's licence, without what stands behind it in brackets."""
    return licence.partition(" (")[0].strip()


def unaccepted_licence(card: str, licence: str, settings: Settings) -> str:
    """Why weights under these terms may not be used, and what to write; "" where the settings accept them."""
    if licence_name(licence) in (*FREE_LICENCES, *settings.accept_licences):
        return ""
    return (
        f"medrec.yaml: the weights of {card} are under {licence}, which this configuration does not "
        f'accept: write accept_licences: ["{licence_name(licence)}"], or leave the card out by models: [...]'
    )


def unaccepted(configuration: Configuration) -> list[str]:
    """Each card whose terms nobody accepted, and what to write: for whoever is about to run its networks."""
    found = (unaccepted_licence(c.card.name, c.card.licence, configuration.settings) for c in configuration.cards)
    return [why for why in found if why]


def packaged_configs() -> Path:
    """The folder of default configurations: inside the installed package, or beside it in a checkout."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def load(own: Path | None = None) -> Configuration:
    """Read the packaged configuration and, over it, the folder `own`.

    Raises ConfigError that lists every mistake of every file: syntax, fields, values, missing or changed weights.
    """
    problems: list[str] = []
    folders = [packaged_configs()]
    if own is not None:
        if own.is_dir():
            folders.append(own)
        else:
            problems.append(f"{own}: no such folder of configurations")
    files = {path.relative_to(folder): path for folder in folders for path in sorted(folder.rglob("*.yaml"))}
    for path in sorted(p for folder in folders[1:] for p in folder.rglob("*.yml")):
        problems.append(f"{path.name}: only files that end in .yaml are read; rename it")
    settings = _read(files[Path("medrec.yaml")], Settings, problems)
    cards: list[CardFiles] = []
    for relative, path in sorted(files.items()):
        if relative.parent == Path("models"):
            card = _read_card(path, problems)
            if card is not None:
                cards.append(CardFiles(card, _weights(card, path, problems)))
    names = [c.card.name for c in cards]
    problems += [f"models: two cards are named {name}" for name in sorted({n for n in names if names.count(n) > 1})]
    if settings is not None:
        unknown = sorted(set(settings.models) - set(names))
        problems += [f"medrec.yaml: models: there is no card named {name}" for name in unknown]
        lost = unknown_peers(settings.peers, settings.intake, settings.destinations)
        lost += unfit_people(settings.people)
        if settings.promote == "automatic" and any("promoter" in p.roles for p in settings.people):
            lost.append("promote: automatic asks nobody, and people: names a promoter; choose one of the two")
        problems += [f"medrec.yaml: {problem}" for problem in lost]
    if problems or settings is None:
        raise ConfigError(problems)
    wanted = set(settings.models or names)
    return Configuration(settings, tuple(c for c in cards if c.card.name in wanted))


def _read_card(path: Path, problems: list[str]) -> Card | None:
    """A card of either kind: one of pictures asks for an `input`, one of volumes for `inputs`."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception:  # said below
        content = None
    of_pictures = isinstance(content, dict) and "input" in content
    return _read(path, PictureCard, problems) if of_pictures else _read(path, ModelCard, problems)


def _read(path: Path, kind: type[Loaded], problems: list[str]) -> Loaded | None:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return kind.model_validate(content if content is not None else {})
    except ValidationError as error:
        problems += [f"{path.name}: {mistake}" for mistake in mistakes(error)]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark is not None else "the whole file"
        problems.append(f"{path.name}: {where}: not YAML ({getattr(error, 'problem', None) or 'unreadable'})")
    except (OSError, ValueError, RecursionError) as error:  # YAML's own conversions raise these too
        problems.append(f"{path.name}: cannot be read ({type(error).__name__})")
    return None


def _weights(card: Card, source: Path, problems: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for field, part in card.networks.items():
        beside = source.parent / part.weights
        path = beside if beside.is_file() else PACKAGED_WEIGHTS / part.weights
        if not path.is_file():
            problems.append(f"{source.name}: {field}.weights: no file {part.weights} beside the card or in the package")
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != part.sha256:
            problems.append(
                f"{source.name}: {field}.sha256: the card pins {part.sha256[:12]}…, {part.weights} has {digest[:12]}…; "
                "these are not the weights that were measured"
            )
        found[part.weights] = path
    return found
