"""People's rights over a home: looking an identity up, erasing a patient, rotating the key, keeping and clearing away.

Every one of them leaves a record in the ledger, look-ups before anything is shown. Invariants: what is erased is gone
from rows, reports, summaries and MLflow, and the chain still verifies; what is on hold is neither erased nor cleared
away; a rotation that was killed is finished or undone at the next start.
"""

import getpass
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from medrec import delivery
from medrec.config import Configuration, Retention
from medrec.dicom import Pseudonyms
from medrec.dicom.identity import Identity, find, whois
from medrec.dicom.renaming import Renamed
from medrec.disk import replace_file
from medrec.errors import ConfigError, DataError, WorldError
from medrec.events import ERASED, PRUNED
from medrec.home import Home
from medrec.labels.masks import forget_unnamed
from medrec.pictures import card_of
from medrec.store import CaseRow, Store
from medrec.tracking import Tracker

SCRUB_WAIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was erased: cases by key, models that were trained on the patient, and what is left elsewhere."""

    cases: tuple[str, ...]
    models: tuple[str, ...]
    left: tuple[str, ...]


def operator() -> str:
    """The name under which the operating system knows who works here."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def look_up(key: str, folder: Path, home: Home, store: Store) -> Identity:
    """Whose case this is, from the archive in `folder`; recorded before it is returned.

    Raises DataError when there is no such case, or none of its files is in the folder.
    """
    row = store.case(key)
    if row is None:
        raise DataError(f"there is no case {key} in this home")
    found = whois(folder, Pseudonyms.load(home.key), row.study)
    _looked_up(store, [key], "whois", found is not None)
    if found is None:
        raise DataError(f"no file of case {key} is in this folder; name the archive that it came from")
    return found


def find_accession(accession: str, folder: Path, home: Home, store: Store) -> tuple[CaseRow, ...]:
    """The cases of the study with this accession number; recorded before they are returned."""
    studies = set(find(folder, Pseudonyms.load(home.key), accession))
    rows = tuple(row for row in store.cases() if row.study in studies)
    _looked_up(store, [row.case for row in rows], "find", bool(rows))
    return rows


def _looked_up(store: Store, cases: list[str], how: str, found: bool) -> None:
    facts: dict[str, object] = {"cases": cases, "by": operator(), "how": how, "found": found}
    store.append("identity looked up", _now(), facts)


# Erasure


def erase(patient: str, home: Home, store: Store, configuration: Configuration) -> Erasure:
    """Forget a patient by pseudonym: rows, salt, reports, MLflow; a second call clears what a killed one left.

    Raises DataError when there is no such patient, or a case is held; WorldError when something cannot be removed.
    """
    models: tuple[str, ...] = ()
    if patient in store.erased_patients():
        cases: tuple[str, ...] = ()
    else:
        facts = [f for key in store.of_patient(patient) if (f := _report(home, key)) is not None]
        digests = {d for f in facts for d in (*f["inputs"], *f["refused_inputs"])}
        pixels = {d for f in facts for d in f["pixels_sha256"].values()}
        pixels |= {known.pixels_sha256 for known in store.known() if known.patient == patient}
        models = tuple(sorted(_trained_on(pixels, home, configuration)))
        cases = store.erase(patient, digests, models, operator(), _now())
    left = _sweep(home, store, configuration)
    return Erasure(cases, models, left)


def _sweep(home: Home, store: Store, configuration: Configuration) -> tuple[str, ...]:
    """Take away whatever is left of erased cases; returns what must be done elsewhere."""
    gone = tuple(str(key) for record in store.ledger() if record.kind == ERASED for key in _list(record.facts["cases"]))
    try:
        for key in gone:
            for folder in (home.reports / key, home.reports / f".draft-{key}", *_drafted(home.returned(key))):
                if folder.exists():
                    shutil.rmtree(folder)
        _forget_files(home)
        forget_unnamed(home, store)
        _write_summaries(home, store)
    except OSError as error:
        raise WorldError(f"a report cannot be removed: {error.strerror}; erase again when it can") from None
    try:
        tracker = Tracker(home, configuration.settings.experiment)
        remote = tracker.forget(gone)
        delivery.deliver_batches(store, tracker, home)
    except WorldError as error:
        return (f"{error}: erase again when it is there",)
    try:
        _scrub(home)
    except sqlite3.Error:
        return ("a database was in use and still holds deleted pages: erase again when nothing else runs",)
    return (f"{remote} deleted runs on the MLflow server: run mlflow gc there",) if remote else ()


def _drafted(folders: tuple[Path, ...]) -> Iterator[Path]:
    """Folders and what a killed night left of them."""
    for folder in folders:
        yield from (folder, folder.with_name(f".draft-{folder.name}"))


def _scrub(home: Home) -> None:
    """Write the databases anew: SQLite leaves what was deleted in free pages and in its journal."""
    for path in (home.root / "medrec.db", home.mlflow_database):
        if path.exists():
            with closing(sqlite3.connect(path, timeout=SCRUB_WAIT_S)) as connection:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _forget_files(home: Home) -> None:
    """What earlier nights found in which file: costs the next night time only, and names pseudonyms and digests."""
    for path in home.index.rglob("*.jsonl"):
        path.unlink()


def _write_summaries(home: Home, store: Store) -> None:
    for batch in store.batches():
        path = home.batches / f"{batch.batch}.json"
        if batch.summary is not None and path.exists() and path.read_text() != batch.summary + "\n":
            write_summary(home, batch.batch, batch.summary)


def write_summary(home: Home, batch: str, summary: str) -> None:
    """Put a night's summary where people find it, whole or not at all."""
    replace_file(home.batches / f"{batch}.json", (summary + "\n").encode())


def complete_summary(home: Home, store: Store, retention: Retention, now: datetime) -> None:
    """Write the summary of the last night where a kill came after the store had it; not one that was cleared away.

    On a store of several homes nobody knows whose the last night was.
    """
    last = next((b for b in reversed(store.batches()) if b.summary is not None), None)
    if last is None or home.shares_store or (home.batches / f"{last.batch}.json").exists():
        return
    if retention.batches_days is None or not _older(last.started_at, retention.batches_days, now):
        write_summary(home, last.batch, str(last.summary))


def _trained_on(pixels: set[str], home: Home, configuration: Configuration) -> Iterator[str]:
    cards = [model.card for model in configuration.cards]
    for path in (*home.kept.glob("*.card.json"), *home.models.glob("*/*/card.yaml")):
        try:
            cards.append(card_of(yaml.safe_load(path.read_bytes())))  # JSON is YAML
        except (ValueError, yaml.YAMLError):
            continue
    yield from {f"{c.name} {c.version}" for c in cards if pixels & set(c.trained_on)}


# Holds and retention


def hold(key: str, why: str, store: Store, *, lift: bool = False) -> None:
    """Keep a case from erasure and retention, or let it go again. Raises DataError when there is no such case."""
    if store.case(key) is None:
        raise DataError(f"there is no case {key} in this home")
    facts: dict[str, object] = {"case": key, "by": operator(), "why": why}
    store.append("hold lifted" if lift else "hold placed", _now(), facts)


def prune(home: Home, store: Store, configuration: Configuration, now: datetime, *, dry: bool = False) -> list[str]:
    """Clear away what is older than the configuration's retention; returns what, in words. `dry` only tells."""
    rules, told, pruned = configuration.settings.retention, [], False
    for row in store.cases():
        days = rules.superseded_days if row.superseded_by is not None else rules.reports_days
        folder = home.reports / row.case
        if days is None or not _older(row.finished_at, days, now) or not folder.is_dir():
            continue
        if why := store.held(row.case):
            told.append(f"case {row.case}: kept, on hold ({why})")
            continue
        told.append(f"case {row.case}: its report, finished {row.finished_at}")
        if not dry:
            _prune(row, f"{days} days", home, store, configuration)
            pruned = True
    for batch in store.batches():
        path = home.batches / f"{batch.batch}.json"
        if rules.batches_days is not None and _older(batch.started_at, rules.batches_days, now) and path.is_file():
            told.append(f"night {batch.batch}: its summary")
            if not dry:
                facts = {"cases": [], "files": [str(path.relative_to(home.root))], "rule": f"{rules.batches_days} days"}
                store.append(PRUNED, _now(), facts)
                path.unlink()
    if pruned:
        delivery.deliver_batches(store, Tracker(home, configuration.settings.experiment), home)
    return told


def _prune(row: CaseRow, rule: str, home: Home, store: Store, configuration: Configuration) -> None:
    folder = home.reports / row.case
    folders = [f for f in (folder, *_drafted(home.returned(row.case))) if f.is_dir()]
    files = sorted(str(path.relative_to(home.root)) for one in folders for path in one.iterdir())
    store.show_again(row.batch)  # its contact sheet has a picture of the case
    # The record first: a file that is gone without one would look like tampering.
    store.append(PRUNED, _now(), {"cases": [row.case], "files": files, "rule": rule})
    for one in folders:
        shutil.rmtree(one)
    if row.mlflow_run_id is not None:
        Tracker(home, configuration.settings.experiment).forget((row.case,))
        store.forget_run(row.case)


def _older(moment: str, days: int, now: datetime) -> bool:
    return datetime.fromisoformat(moment) < now - timedelta(days=days)


# The key


def rotate(home: Home, store: Store, configuration: Configuration) -> int:
    """Put a new key on top and rename every study and patient; returns how many names changed. Holds the home."""
    with home.alone():
        settle(home, store)
        old = Pseudonyms.load(home.key)
        new = old.rotated()
        steps = {name: new.next_name(name) for name in store.pseudonyms()}
        mapping = Renamed.load(home.root, home.key).after(steps).encrypted(new.key)
        for path, data in ((_next(home.key), new.key), (_next(home.renamed), mapping)):
            replace_file(path, data)
        facts = {"by": operator(), "mapping": hashlib.sha256(mapping).hexdigest(), "key": new.fingerprint}
        store.rename(steps, facts, _now(), new.next_name)
        settle(home, store)
        _forget_files(home)
        _write_summaries(home, store)
        store.requeue("mlflow", _now())
        tracker = Tracker(home, configuration.settings.experiment)
        delivery.deliver_cases(store, tracker)
        delivery.deliver_batches(store, tracker, home)
    return len(steps)


def settle(home: Home, store: Store) -> None:
    """Finish or undo a rotation that was killed. Raises ConfigError when the key is not the store's latest."""
    rotated = store.latest("key rotated")
    key, mapping = _next(home.key), _next(home.renamed)
    if rotated is not None and _sha256(mapping) == rotated.facts["mapping"]:  # the store has the new names
        if key.exists():
            key.replace(home.key)
        mapping.replace(home.renamed)
        _write_summaries(home, store)
    else:
        key.unlink(missing_ok=True)
        mapping.unlink(missing_ok=True)
    if rotated is not None and Pseudonyms.load(home.key).fingerprint != rotated.facts["key"]:
        words = (
            "the key in this home is not the one of the last rotation: copy key and renamed from the host that did it"
        )
        raise ConfigError([words])


def check_key(home: Home, store: Store) -> None:
    """Raises ConfigError when the key in the home is none that made the names in the store."""
    known = key_fingerprints(store)
    if known and (not home.key.exists() or Pseudonyms.load(home.key).fingerprint not in known):
        words = "the key in this home is not the one that made the names in the store: bring it back from a backup"
        raise ConfigError([words])


def key_fingerprints(store: Store) -> frozenset[str]:
    """The fingerprints of the keys that may be in the home; empty when no record names one.

    A record that is spoilt names none: `audit verify` names it.
    """
    found = set()
    for kind in ("key rotated", "configuration changed"):
        with suppress(ValueError, KeyError):
            record = store.latest(kind)
            found |= {str(record.facts["key"])} if record is not None else set()
    return frozenset(found)


def _next(path: Path) -> Path:
    return path.with_name(path.name + ".next")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _report(home: Home, key: str) -> dict[str, Any] | None:
    try:
        facts: dict[str, Any] = json.loads((home.reports / key / "report.json").read_bytes())
    except (OSError, ValueError):
        return None
    return facts


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
