"""Which versions of a model there are, which one is in force, and who decided so: read from the ledger.

A version is a card with its weights, named by the card's digest: packaged with medrec, or trained or imported here and
kept in `models/<name>/<digest>/`. Its state is folded from the ledger's records, so that nothing but a record makes a
champion. Invariants: only what passed the gate is promoted, by a named person and for a reason; a disabled version is
never in force again; what is read back is, byte for byte, what was put there.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from medrec.config import CardFiles, Configuration
from medrec.errors import ConfigError, DataError, WeightsError, WorldError
from medrec.home import Home
from medrec.pictures import Card, card_of
from medrec.signing import Signer
from medrec.store import Store

KINDS = (
    "model trained", "model imported", "model evaluated", "model eligible", "model promoted", "model rolled back",
    "model disabled",
)  # fmt: skip
WORDS_LENGTH = 500


@dataclass(frozen=True, slots=True)
class Kept:
    """A card and where its weights and its other files lie."""

    card: Card
    weights: Mapping[str, Path]
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """One version: `state` is what the last record says of it, or "packaged"; `champion` that it is in force."""

    name: str
    version: str
    card: str
    licence: str
    state: str
    champion: bool
    why_disabled: str | None = None

    @property
    def words(self) -> str:
        """Its state for people."""
        return f"{self.state}, champion" if self.champion and self.state != "champion" else self.state


class Registry:
    """The versions of one home."""

    def __init__(self, home: Home, store: Store, packaged: tuple[CardFiles, ...] = ()) -> None:
        self._home = home
        self._store = store
        self._packaged = {m.card.name: Kept(m.card, m.weights) for m in packaged}

    def put(self, card: Card, files: Mapping[str, Path], more: tuple[Path, ...] = ()) -> Kept:
        """Keep a version with its weights, and `more` files beside it; one that is there already stays.

        Raises WorldError when it cannot be written.
        """
        folder = self._home.version(card.name, card.digest)
        draft = folder.with_name(f".draft-{card.digest}")
        try:
            if not folder.exists():
                shutil.rmtree(draft, ignore_errors=True)
                draft.mkdir(parents=True, mode=0o700)
                for name, path in files.items():
                    shutil.copyfile(path, draft / name)
                text = yaml.safe_dump(json.loads(card.content), sort_keys=False, width=110, allow_unicode=True)
                (draft / "card.yaml").write_text(text)
                draft.rename(folder)
            for path in more:
                if path.exists():
                    shutil.copyfile(path, folder / path.name)
        except OSError as error:
            raise WorldError(f"the version cannot be kept: {os.strerror(error.errno or 0)}") from error
        return self.load(card.name, card.digest)

    def card_file(self, version: "Version") -> Path:
        """Where the card of a version that is kept in the home lies."""
        return self._home.version(version.name, version.card) / "card.yaml"

    def load(self, name: str, digest: str) -> Kept:
        """A version by its name and digest. Raises WeightsError when it is gone or was changed."""
        packaged = self._packaged.get(name)
        if packaged is not None and packaged.card.digest == digest:
            return packaged
        folder = self._home.version(name, digest)
        try:
            card = card_of(yaml.safe_load((folder / "card.yaml").read_text()))
        except (OSError, ValueError, yaml.YAMLError):
            raise WeightsError(f"{name}: the card {digest[:12]}… is not in the home, or cannot be read") from None
        if card.digest != digest:
            raise WeightsError(f"{name}: the card {digest[:12]}… was changed since it was put there; not used")
        return Kept(card, {n.weights: folder / n.weights for n in card.networks.values()}, folder)

    def versions(self) -> tuple[Version, ...]:
        """Every version, by name, the oldest first."""
        found = {k.card.digest: _packaged(k.card) for k in self._packaged.values()}
        champions: dict[str, str | None] = {name: k.card.digest for name, k in self._packaged.items()}
        for _, record in self._store.of_kinds(*KINDS):
            facts = record.facts
            digest, what = str(facts["card"]), record.kind.removeprefix("model ")
            if digest not in found:
                if "model" not in facts:
                    continue  # packaged with another release: nothing of it is here any more
                name, version = str(facts["model"]), str(facts.get("version", ""))
                found[digest] = Version(name, version, digest, str(facts.get("licence", "")), what, False)
            one = found[digest]
            if what == "promoted":
                champions[one.name] = digest
            if what == "rolled back":
                champions[one.name] = str(facts["to"])
            found[digest] = replace(
                one, state=what, why_disabled=str(facts["why"]) if what == "disabled" else one.why_disabled
            )
        versions = [replace(v, champion=champions.get(v.name) == v.card) for v in found.values()]
        return tuple(sorted(versions, key=lambda v: v.name))

    def find(self, reference: str) -> Version:
        """A version by (the beginning of) its digest, or by name: then the champion. Raises DataError."""
        every = self.versions()
        hits = [v for v in every if v.card.startswith(reference)] if len(reference) >= 6 else []
        hits = hits or [v for v in every if v.name == reference and v.champion]
        if len(hits) != 1:
            what = "no version" if not hits else f"{len(hits)} versions"
            raise DataError(f"{what} of a model is called {reference}; medrec models list shows them")
        return hits[0]

    def champion(self, name: str) -> Version | None:
        """The version of a model that is in force, disabled or not; None when there is none."""
        return next((v for v in self.versions() if v.name == name and v.champion), None)

    def promote(self, reference: str, by: str, reason: str, at: str, signer: Signer | None = None) -> Version:
        """Put a version in force that passed the gate.

        Raises DataError for one that did not, or was disabled, and where a promoter would have to sign it.
        """
        _named(by, reason)
        version = self.find(reference)
        self.load(version.name, version.card)
        what = f"{version.name} {version.version}, card {version.card[:12]}…,"
        if version.why_disabled is not None:
            raise DataError(f"{what} is disabled: {version.why_disabled}")
        if version.champion:
            raise DataError(f"{what} is in force already")
        if all(r.kind != "model eligible" for _, r in self._store.about(f"card {version.card}")):
            raise DataError(
                f"{what} did not pass its gate: {version.words}; medrec models show tells what was measured"
            )
        facts: dict[str, object] = {"card": version.card, "model": version.name, "by": by, "why": reason[:WORDS_LENGTH]}
        self._store.promoted(facts, at, signer)
        return self.find(version.card)

    def rollback(self, name: str, by: str, reason: str, at: str) -> Version:
        """Put the version back in force that was before the present one. Raises DataError when there is none."""
        _named(by, reason)
        here = self.champion(name)
        if here is None:
            raise DataError(f"no version of {name} is in force")
        for digest in self._before(here):
            before = next((v for v in self.versions() if v.card == digest), None)
            if before is not None and before.why_disabled is None:
                self.load(name, digest)
                facts = {"card": here.card, "to": digest, "model": name, "by": by, "why": reason[:WORDS_LENGTH]}
                self._store.append("model rolled back", at, facts)
                return self.find(digest)
        raise DataError(f"there is no earlier version of {name} to go back to; disable it, or promote another")

    def disable(self, reference: str, by: str, reason: str, at: str) -> Version:
        """Take a version out of use for good: nights refuse its studies by name. Raises DataError."""
        _named(by, reason)
        version = self.find(reference)
        if version.why_disabled is not None:
            raise DataError(f"{version.name} {version.version} is disabled already: {version.why_disabled}")
        why = f"disabled by {by}: {reason}"[:WORDS_LENGTH]
        facts = {"card": version.card, "model": version.name, "by": by, "why": why, "version": version.version}
        self._store.append("model disabled", at, facts | {"licence": version.licence})
        return self.find(version.card)

    def _before(self, here: Version) -> Iterator[str]:
        """The versions that were in force before, the latest first."""
        packaged = self._packaged.get(here.name)
        history = [] if packaged is None else [packaged.card.digest]
        for _, record in self._store.of_kinds("model promoted", "model rolled back"):
            if record.facts.get("model") == here.name:
                back = record.kind == "model rolled back"
                history.append(str(record.facts["to" if back else "card"]))
                if back:  # what was rolled back is no place to go back to
                    history = [d for d in history[:-1] if d not in (record.facts["card"], record.facts["to"])] + [
                        history[-1]
                    ]
        return (digest for digest in reversed(history) if digest != here.card)


def in_force(configuration: Configuration, home: Home, store: Store) -> tuple[Configuration, dict[str, str]]:
    """The configuration with the promoted versions in place of its own, and why cards are not to be used, by digest.

    Raises ConfigError when a promoted version is gone or was changed.
    """
    registry = Registry(home, store, configuration.cards)
    versions = registry.versions()
    cards = {m.card.name: m for m in configuration.cards}
    wanted = configuration.settings.models
    problems = []
    for version in versions:
        if not version.champion or (wanted and version.name not in wanted):
            continue
        try:
            kept = registry.load(version.name, version.card)
        except WeightsError as error:
            problems.append(str(error))
            continue
        cards[version.name] = CardFiles(kept.card, kept.weights)
    if problems:
        raise ConfigError(problems)
    disabled = {v.card: v.why_disabled for v in versions if v.why_disabled is not None}
    return replace(configuration, cards=tuple(cards[name] for name in sorted(cards))), disabled


def _packaged(card: Card) -> Version:
    return Version(card.name, card.version, card.digest, card.licence, "packaged", False)


def _named(by: str, reason: str) -> None:
    problems = [
        f"--{n}: say {w}" for n, w, v in (("by", "who decides", by), ("reason", "why", reason)) if not v.strip()
    ]
    if problems:
        raise ConfigError(problems)
