"""The data scientist's commands: a retraining, and the versions of a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medrec.cli.common import ConfigOption, HomeOption, open_store, progress_bar, say, stdout_kept, table

if TYPE_CHECKING:
    from medrec.registry import Registry, Version
    from medrec.signing import Signer
    from medrec.store import Store

ByOption = Annotated[str, typer.Option("--by", help="Who decides; goes into the ledger.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; goes into the ledger.")]
VersionArgument = Annotated[
    str, typer.Argument(metavar="VERSION", help="The beginning of its digest, or a model's name: its champion.")
]


def retrain(
    card: Annotated[str, typer.Argument(metavar="CARD", help="A YAML card, or the name of a configured model.")],
    by: Annotated[str, typer.Option("--by", envvar="USER", help="Who asks for it; goes into the ledger.")] = "",
    input: Annotated[
        list[Path] | None,
        typer.Option("--input", help="Folders with the labelled images. Default: those that images came from."),
    ] = None,
    if_new_labels: Annotated[
        int | None, typer.Option("--if-new-labels", min=1, help="Do nothing before so many labels came since the last.")
    ] = None,
    home: HomeOption = None,
    config: ConfigOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")] = False,
) -> None:
    """Train a card on the labels, measure it on locked patients, and let the gate decide."""
    from importlib.metadata import entry_points

    from medrec import config as configuration
    from medrec.errors import ConfigError
    from medrec.home import Home
    from medrec.retraining import Request

    place = Home(home or Home.default())
    place.check()
    if not place.holds_store():
        raise ConfigError([f"--home: there is no store at {place.root}: ingest studies and add labels first"])
    folders = tuple(input or ())
    for folder in folders:
        place.check_input(folder)
    request = Request(card, place, configuration.load(config), by, folders, if_new_labels)
    (flow,) = entry_points(group="medrec.flows", name="retrain")  # so that no room of medrec imports Prefect
    with stdout_kept(json) as print_json:
        with progress_bar() as progress:
            outcome = flow.load()(request, progress, say)
        if json:
            print_json(outcome.to_json())
    raise typer.Exit(0)


def show_models(home: HomeOption = None, config: ConfigOption = None) -> None:
    """Every version, its state, and the licence of its weights."""
    with _registry(home, config) as (registry, _):
        rows = [[v.name, v.version, v.card[:12], v.words, v.licence] for v in registry.versions()]
    table("Models", ("model", "version", "card", "state", "licence"), rows)


def show_model(version: VersionArgument, home: HomeOption = None, config: ConfigOption = None) -> None:
    """What is on record of a version, what was measured of it, and how it differed beside the champion."""
    import json

    from medrec import shadow
    from medrec.outputs.shadows import sentences

    with _registry(home, config) as (registry, store):
        found = registry.find(version)
        say(f"{found.name} {found.version}, card {found.card}: {found.words}")
        say(f"licence: {found.licence}")
        for number, record in store.about(f"card {found.card}"):
            if record.kind == shadow.COMPARED:
                continue  # one for each study
            by, why = (record.facts.get(n) for n in ("by", "why"))
            said = (f" by {by}" if by else "") + (f": {why}" if why else "")
            say(f"record {number}, {record.at}: {record.kind}{said}")
        if pairs := shadow.pairs(store, found.card):
            for text in sentences(pairs):
                say(f"beside the champion: {text}")
        kept = registry.load(found.name, found.card)
        for one in kept.card.measured:
            say(f"{one.what}: {one.value:g} [{one.low:g}, {one.high:g}] on {one.on}")
        if kept.folder is not None and (path := kept.folder / "evaluation.json").is_file():
            for line in json.loads(path.read_text())["lines"]:
                say(line)


def promote(
    version: VersionArgument,
    by: ByOption,
    reason: ReasonOption,
    key: Annotated[
        Path | None, typer.Option("--key", envvar="MEDREC_KEY", help="Your private key, where people: names promoters.")
    ] = None,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Put a version in force that passed its gate; nights use it from then on."""
    with _registry(home, config) as (registry, store):
        _accepted(registry.find(version), config)
        found = registry.promote(version, by, reason, _now(), _promoter(by, key, store, config))
        _said("in force", found)
        _show(found, registry, store, home, config)


def rollback(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    by: ByOption,
    reason: ReasonOption,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Put the version back in force that was before the present one."""
    with _registry(home, config) as (registry, store):
        found = registry.rollback(model, by, reason, _now())
        _said("in force again", found)
        _show(found, registry, store, home, config)


def disable(
    version: VersionArgument, by: ByOption, reason: ReasonOption, home: HomeOption = None, config: ConfigOption = None
) -> None:
    """The kill switch: nights refuse this version's studies by name, at once and for good."""
    with _registry(home, config) as (registry, _):
        _said("disabled", registry.disable(version, by, reason, _now()))


def shadow(
    version: VersionArgument,
    by: ByOption,
    nights: Annotated[int, typer.Option("--nights", min=0, max=365, help="For how many nights; 0 ends it.")] = 14,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Run a version that passed its gate beside the champion; its answers go nowhere, how they differ is kept."""
    from medrec import shadow as beside

    with _registry(home, config) as (registry, store):
        found = beside.order(registry, store, version, nights, by, _now())
    _said(f"runs beside the champion for {nights} nights" if nights else "runs no more", found)


def export_bundle(
    version: VersionArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The zip file to write.")],
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Write a version as a MONAI Bundle, and say its digest."""
    import hashlib

    from medrec.errors import ConfigError
    from medrec.learning.page import card_markdown
    from medrec.models import bundles

    if output.exists():
        raise ConfigError([f"--output: {output} is there already"])
    with _registry(home, config) as (registry, _):
        found = registry.find(version)
        kept = registry.load(found.name, found.card)
    data = bundles.pack(kept.card, kept.weights, card_markdown(kept.card, None))
    output.write_bytes(data)
    say(f"{output}: sha256 {hashlib.sha256(data).hexdigest()}, licence {found.licence}")


def import_bundle(
    bundle: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle's zip file.")],
    by: ByOption,
    reason: ReasonOption,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Take in a MONAI Bundle whose digest the configuration approves; it runs nowhere before it passed its gate."""
    import hashlib
    from tempfile import TemporaryDirectory

    from medrec import config as configuration
    from medrec.errors import ConfigError

    if not bundle.is_file():
        raise ConfigError([f"{bundle}: no such file"])
    data = bundle.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest not in configuration.load(config).settings.bundles:
        raise ConfigError([f"{bundle.name}: medrec.yaml approves no bundle with sha256 {digest} (bundles:)"])
    from medrec.models import bundles

    with _registry(home, config) as (registry, store), TemporaryDirectory() as place:
        card, files = bundles.unpack(data, Path(place))
        kept = registry.put(card, files).card
        facts = {"card": kept.digest, "weights": kept.weights_digest, "bundle": digest, "by": by, "why": reason}
        told = {"model": kept.name, "version": kept.version, "licence": kept.licence}
        store.append("model imported", _now(), facts | told)
    say(f"{kept.name} {kept.version}, card {kept.digest[:12]}…: imported; licence {kept.licence}")
    say(f"medrec models evaluate {kept.digest[:12]} --by NAME asks its gate")


def evaluate(
    version: VersionArgument,
    by: ByOption,
    input: Annotated[list[Path] | None, typer.Option("--input", help="Folders with the labelled images.")] = None,
    home: HomeOption = None,
    config: ConfigOption = None,
) -> None:
    """Ask the gate about a version that was not trained here; a use of the locked patients."""
    from medrec import config as configuration
    from medrec.home import Home
    from medrec.retraining import Request, evaluate_version

    with _registry(home, config) as (registry, _):
        found = registry.find(version)
        card = registry.card_file(found)
    place = Home(home or Home.default())
    request = Request(str(card), place, configuration.load(config), by, tuple(input or ()))
    with progress_bar() as progress:
        evaluate_version(found.card, request, say, progress)


@contextmanager
def _registry(home: Path | None, config: Path | None) -> "Iterator[tuple[Registry, Store]]":
    from medrec import config as configuration
    from medrec.registry import Registry

    loaded = configuration.load(config)
    place, store = open_store(home)
    with store:
        yield Registry(place, store, loaded.cards), store


def _accepted(version: "Version", config: Path | None) -> None:
    """Raises ConfigError for a licence whose terms the configuration does not accept: every night would stop there."""
    from medrec import config as configuration
    from medrec.errors import ConfigError

    if why := configuration.unaccepted_licence(version.name, version.licence, configuration.load(config).settings):
        raise ConfigError([why])


def _promoter(by: str, key: Path | None, store: "Store", config: Path | None) -> "Signer | None":
    """Who signs a promotion; None where nobody need. Raises ConfigError where somebody must."""
    from medrec import config as configuration
    from medrec import reviewing
    from medrec.errors import ConfigError
    from medrec.signing import Signer

    settings = configuration.load(config).settings
    if key is None:
        if any("promoter" in person.roles for person in settings.people) or store.register().has("promoter"):
            raise ConfigError(["--key: a promotion is signed with the private key of a promoter"])
        return None
    signer = Signer.load(by, key)
    reviewing.enrol_own(store, settings, signer, _now())
    return signer


def _show(version: "Version", registry: "Registry", store: "Store", home: Path | None, config: Path | None) -> None:
    """Move the alias in MLflow too; what is in force stands in the ledger, whatever MLflow says."""
    from medrec import config as configuration
    from medrec import delivery
    from medrec.config import CardFiles
    from medrec.errors import WorldError
    from medrec.home import Home
    from medrec.tracking import Tracker

    kept = registry.load(version.name, version.card)
    try:
        tracker = Tracker(Home(home or Home.default()), configuration.load(config).settings.experiment)
        delivery.begin(store, tracker)
        delivery.register_models(store, tracker, [CardFiles(kept.card, kept.weights)])
    except WorldError as error:
        say(f"{error}; the next night says so there")


def _said(what: str, version: "Version") -> None:
    say(f"{version.name} {version.version}, card {version.card[:12]}…: {what}")


def _now() -> str:
    from datetime import UTC, datetime

    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
