"""A whole home held against its ledger: chain, files, rows, folders that nobody knows, MLflow.

Owns nothing that is stored. What it finds is a `Problem` each, in the order chain, files, rows, folders, MLflow; the
first is the first that does not match.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, cast

from medrec import credentials, dispatch, labels, mirror
from medrec.audit import AuditRecord, Problem
from medrec.delivery import MONITORED, TRAINING, VERSIONS
from medrec.dicom.renaming import Renamed
from medrec.errors import ConfigError, DataError, WeightsError, WorldError
from medrec.events import CASE_KINDS, ERASED, KINDS, PRUNED, missing
from medrec.home import Home, sha256_of
from medrec.mirror import Delivered, Expected
from medrec.privacy import check_key
from medrec.registry import Registry
from medrec.shown import ARTIFACTS
from medrec.store import CaseRow, Store
from medrec.tracking import Tracker

DRAFT = ".draft-"
P = ParamSpec("P")


def _shaped(check: Callable[P, Iterator[Problem]]) -> Callable[P, Iterator[Problem]]:
    """A check that goes to its end, or says that a record is none of medrec's: a forger may write any shape."""

    @wraps(check)
    def checked(*arguments: P.args, **named: P.kwargs) -> Iterator[Problem]:
        try:
            yield from check(*arguments, **named)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            what = f"a record does not say what medrec writes ({type(error).__name__}); not all was checked"
            yield Problem("ledger", what)

    return checked


@_shaped
def verify(home: Home, store: Store, since: int = 0) -> Iterator[Problem]:
    """What does not match in ledger, files, rows and folders; of cases only those recorded after number `since`."""
    renamed = Renamed.load(home.root, home.key)

    @cache  # all cases of one model name the same weights
    def digest(relative: str) -> str | None:
        return _digest(home.root / relative)

    yield from store.verify(digest, renamed.original, since)
    yield from store.contradictions(renamed.original)
    yield from _signed(store)
    yield from _keys(home, store, digest)
    told = _Told.of(store)
    known = {row.case for row in store.cases()}
    yield from _reports(home, told, known)
    yield from _returned(home, store, told, known)
    yield from _summaries(home, store, told)
    yield from _versions(home, store, digest)
    yield from _masks(home, store)
    for path in sorted(home.kept.glob("[!.]*")):
        if digest(str(path.relative_to(home.root))) != path.name.partition(".")[0]:
            yield Problem(f"{path.name} in kept", "its name is not the digest of its bytes")


@_shaped
def _signed(store: Store) -> Iterator[Problem]:
    """Reviews, promotions, changes of people and audits: by the keys that were on record when they were signed."""
    yield from credentials.check(enumerate(store.ledger(), 1))


def _keys(home: Home, store: Store, digest: Callable[[str], str | None]) -> Iterator[Problem]:
    rotated, mapping = store.latest("key rotated"), digest(home.renamed.name)
    with suppress(ValueError, KeyError):  # a spoilt record is named by itself
        mapping = mapping if rotated is None else str(rotated.facts["mapping"])
    if digest(home.renamed.name) != mapping:
        yield Problem(f"{home.renamed.name} in the home", "it is not the mapping that the last rotation wrote")
    try:
        check_key(home, store)
    except (ConfigError, WorldError) as error:
        yield Problem("key in the home", str(error))


def _reports(home: Home, told: "_Told", known: set[str]) -> Iterator[Problem]:
    for folder in sorted(home.reports.glob("*")):
        if folder.name.startswith(DRAFT):
            continue  # left by a killed night
        if folder.name not in known:
            yield Problem(f"report of case {folder.name}", "the ledger knows nothing of it")
            continue
        for path in sorted(folder.rglob("*")):
            told_of = {str(p.relative_to(home.root)) for p in (path, path.parent)}  # a folder stands for its files
            if not told_of & told.written:
                yield Problem(f"{path.name} of case {folder.name[:12]}…", "no record tells of this file")


def _returned(home: Home, store: Store, told: "_Told", known: set[str]) -> Iterator[Problem]:
    """What goes back to the archive: as recorded, or made from that by what a record says."""
    for folder in sorted(home.outbox.glob("*")):
        key, _, how = folder.name.partition("-")
        if folder.name.startswith(DRAFT):
            continue
        if key not in known:
            yield Problem(f"objects of case {folder.name}", "the ledger knows nothing of it")
            continue
        for path in sorted(folder.rglob("*")) if not how else ():
            if str(path.relative_to(home.root)) not in told.written:
                yield Problem(f"{path.name} for the archive of case {key[:12]}…", "no record tells of this file")
        if how and (why := dispatch.derived(store, home, key, how)):
            yield Problem(f"{how} objects for the archive of case {key[:12]}…", why)


def _summaries(home: Home, store: Store, told: "_Told") -> Iterator[Problem]:
    """The nights' summaries; on a store of several homes each holds its own."""
    rows = {f"{b.batch}.json": b.summary for b in store.batches()}
    for path in sorted(home.batches.glob("[!.]*")):
        if rows.get(path.name) is None:
            yield Problem(f"{path.name} in batches", "no record tells of this file")
        elif path.read_bytes() != f"{rows[path.name]}\n".encode():
            yield Problem(f"{path.name} in batches", "its bytes changed since it was written")
    for name, summary in sorted(rows.items()):
        gone = summary is not None and not (home.batches / name).exists()
        if gone and not home.shares_store and f"batches/{name}" not in told.cleared:
            yield Problem(f"{name} in batches", "it is gone or cannot be read")


def _masks(home: Home, store: Store) -> Iterator[Problem]:
    """What people outlined; on a store of several homes each holds its own."""
    named = set()
    for label in store.labels(superseded=True):
        if label.mask_sha256 is None:
            continue
        named.add(label.mask_sha256)
        if home.shares_store and not labels.mask_file(home, label.mask_sha256).exists():
            continue
        try:
            labels.mask(home, label)
        except DataError as error:
            yield Problem(f"label {label.label[:12]}…", str(error))
    for path in sorted(home.labels.glob("[!.]*")):
        if path.stem not in named:
            yield Problem(f"{path.name[:12]}… in labels", "no record tells of this file")


def _versions(home: Home, store: Store, digest: Callable[[str], str | None]) -> Iterator[Problem]:
    """Models that were trained or imported here: card, weights, and what was measured of them."""
    measured = {str(r.facts["card"]): str(r.facts["evaluation"]) for _, r in store.of_kinds("model evaluated")}
    registry = Registry(home, store)
    for _, record in store.of_kinds(*VERSIONS):
        card, name = str(record.facts["card"]), str(record.facts.get("model", ""))
        where, folder = f"model {name}, card {card[:12]}…", home.version(name, card)
        if "model" not in record.facts or (home.shares_store and not folder.exists()):
            continue  # of an earlier release, or kept in another home
        try:
            kept = registry.load(name, card)
        except WeightsError as error:
            yield Problem(where, str(error))
            continue
        files = {part.weights: part.sha256 for part in kept.card.networks.values()}
        files |= {"evaluation.json": measured[card]} if card in measured else {}
        for file, written in files.items():
            if digest(str((folder / file).relative_to(home.root))) != written:
                yield Problem(where, f"its {file} was changed or is gone")


@_shaped
def verify_mlflow(home: Home, store: Store, experiment: str) -> Iterator[Problem]:
    """What MLflow shows otherwise than it was delivered. Raises WorldError when it cannot be reached."""
    told = _Told.of(store)
    waiting = frozenset(entry.case for entry in store.pending("mlflow"))
    expected = told.expected(home, store, waiting)
    for row in store.cases():
        if row.mlflow_run_id != told.runs.get(row.case):
            yield Problem(f"case {row.case[:12]}…", "the store names another MLflow run for it than the ledger")
        elif row.mlflow_run_id is None and row.case not in waiting and row.case not in told.pruned:
            yield Problem(f"case {row.case[:12]}…", "it neither was delivered to MLflow nor waits for it")
    if not (expected.cases or expected.nights or expected.trainings or expected.monitoring):
        return
    if not home.mlflow_database.is_file() and not Tracker.is_elsewhere():
        yield Problem("MLflow", "its database is gone; the next night fills it again")
        return
    tracker = Tracker(home, experiment, create=False)
    yield from mirror.check(expected, tracker)
    anchors = mirror.anchors(tracker)
    for batch, (records, head) in sorted(anchors.items()):
        now = store.digest_of(records)
        if records and now != head:
            what = "was cut off" if now is None else "is another one now"
            yield Problem(f"anchor in MLflow of night {batch}", f"record {records} {what}: the ledger was rewritten")
    heads = {head for _, head in anchors.values()}
    for batch, facts in sorted(expected.nights.items()):
        if facts["head"] not in heads:
            yield Problem(f"anchor in MLflow of night {batch}", "the head that was anchored is not there")


def number_since(store: Store, text: str) -> int:
    """The number before the first record that counts: `text` is a number, a digest or a moment in ISO-8601.

    Raises ConfigError when it is none of them.
    """
    if text.isdecimal():
        return max(0, int(text) - 1)
    number = 0
    for number, record in enumerate(store.ledger(), 1):
        if record.digest == text or (text[:2] == "20" and record.at >= text):
            return number - 1
    if text[:2] == "20" and number:
        return number
    raise ConfigError([f"--since: {text} is no number, digest or time of a record in this ledger"])


@dataclass(slots=True)
class _Told:
    """What the ledger says was delivered to MLflow: runs and artifacts by case; records by night; models."""

    runs: dict[str, str] = field(default_factory=dict)
    files: dict[str, Mapping[str, str]] = field(default_factory=dict)
    nights: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    models: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    aliases: dict[tuple[str, str], str] = field(default_factory=dict)
    trainings: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    monitoring: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    pruned: set[str] = field(default_factory=set)
    cleared: set[str] = field(default_factory=set)
    shown: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> "_Told":
        """All that the ledger tells."""
        told = cls()
        for record in store.ledger():
            told.add(record)
        return told

    def add(self, record: AuditRecord) -> None:
        """Take up one record; a spoilt one is for `verify` to name."""
        try:
            kind, facts = record.kind, cast(dict[str, Any], record.facts)
        except ValueError:
            return
        if not record.holds or kind not in KINDS or missing(kind, facts):
            return
        if kind in CASE_KINDS:
            self.files[facts["case"]] = _artifacts(facts)
            self.written |= set(facts["files"])
            self.runs.pop(facts["case"], None)  # what was delivered before showed another report
        elif kind == "delivery" and facts["to"] == "mlflow":
            self.runs[facts["case"]] = str(facts["what"][0])
            self.shown.pop(facts["case"], None)  # a new run, of which nothing was told yet
        elif kind == "review shown":
            self.shown[facts["case"]] = str(facts["shown"])
        elif kind == "batch delivered":
            self.nights[facts["batch"]] = facts
        elif kind == "models registered":
            if facts["fresh"]:
                for shown in (self.models, self.aliases, self.trainings, self.monitoring):
                    shown.clear()
            for model in facts["models"]:
                self.models[model["card"]] = model
                self.aliases |= {(model["name"], alias): model["version"] for alias in model["aliases"]}
        elif kind in VERSIONS:
            self.versions.add(facts["card"])
        elif kind == TRAINING:
            self.trainings[facts["card"]] = facts
        elif kind == MONITORED:
            self.monitoring[str(facts["part"])] = facts
        elif kind in (ERASED, PRUNED):
            self.pruned |= set(facts["cases"])
            self.cleared |= set(facts.get("files", ()))
            for gone in facts["cases"]:
                self.runs.pop(gone, None)

    def expected(self, home: Home, store: Store, waiting: frozenset[str]) -> Expected:
        """What MLflow must show."""
        return Expected(
            cases=self.cases(home, store),
            runs=frozenset(self.runs.values()),
            nights=self.nights,
            summaries={b.batch: b.summary for b in store.batches() if b.summary is not None},
            open_nights={b.batch: b.summary is not None for b in store.batches() if b.mlflow_run_id is None},
            waiting=waiting,
            models={(m["name"], m["version"]): m for m in self.models.values()},
            aliases=self.aliases,
            trainings=self.trainings,
            untold=frozenset(self.versions - self.trainings.keys()),
            monitoring=self.monitoring,
        )

    def cases(self, home: Home, store: Store) -> dict[str, Delivered]:
        """The delivered cases as MLflow must show them; those whose report is gone or spoilt are named elsewhere."""
        rows = {row.case: row for row in store.cases()}
        shown = {key for key, row in rows.items() if row.mlflow_run_id is not None}
        now = {key: state.shown for key, state in store.review_states().items()}
        reviews = {key: frozenset({text, now.get(key, text)}) for key, text in self.shown.items()}
        return {
            key: Delivered(
                rows[key], run, told, self.files[key], _superseded(rows, shown, key), reviews.get(key, frozenset())
            )
            for key, run in self.runs.items()
            if key in rows and len(self.files.get(key, ())) == len(ARTIFACTS)
            if (told := _facts(home, rows[key])) is not None
        }


def _superseded(rows: Mapping[str, CaseRow], shown: set[str], key: str) -> str | None:
    """By what MLflow must say that a case was superseded: only after that one was delivered too."""
    by = rows[key].superseded_by
    return by if by in shown else None


def _artifacts(facts: Mapping[str, Any]) -> dict[str, str]:
    return {Path(path).name: digest for path, digest in facts["files"].items() if Path(path).name in ARTIFACTS}


def _facts(home: Home, row: CaseRow) -> dict[str, Any] | None:
    """The facts in report.json; None when it is gone or spoilt, which `verify` names."""
    try:
        facts: dict[str, Any] = json.loads((home.root / (row.report or "")).with_name("report.json").read_bytes())
    except (OSError, ValueError):
        return None
    return facts


def _digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except OSError:
        return None
