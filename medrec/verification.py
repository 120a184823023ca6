"""A whole home held against its ledger: chain, files, rows, folders that nobody knows, MLflow.

Owns nothing that is stored. What it finds is a `Problem` each, in the order chain, files, rows, folders, MLflow; the
first is the first that does not match.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from medrec.audit import AuditRecord, Problem
from medrec.dicom.renaming import Renamed
from medrec.errors import ConfigError
from medrec.events import CASE_KINDS, ERASED, KINDS, PRUNED, missing
from medrec.home import Home, sha256_of
from medrec.store import CaseRow, Store
from medrec.tracking import ARTIFACTS, Delivered, Tracker


def verify(home: Home, store: Store, since: int = 0) -> Iterator[Problem]:
    """What does not match in ledger, files, rows and folders; of cases only those recorded after number `since`."""
    renamed = Renamed.load(home.root, home.key)

    @cache  # all cases of one model name the same weights
    def digest(relative: str) -> str | None:
        return _digest(home.root / relative)

    yield from store.verify(digest, renamed.original, since)
    rotated = store.latest("key rotated")
    if rotated is not None and digest(home.renamed.name) != rotated.facts["mapping"]:
        yield Problem(f"{home.renamed.name} in the home", "it is not the mapping that the last rotation wrote")
    told = _Told.of(store)
    known = {row.case for row in store.cases()}
    for folder in sorted(home.reports.glob("[!.]*")):
        if folder.name not in known:
            yield Problem(f"report of case {folder.name}", "the ledger knows nothing of it")
            continue
        for path in sorted(folder.rglob("*")):
            told_of = {str(p.relative_to(home.root)) for p in (path, path.parent)}  # a folder stands for its files
            if not told_of & told.written:
                yield Problem(f"{path.name} of case {folder.name[:12]}…", "no record tells of this file")
    for folder in sorted(home.outbox.glob("[!.]*")):
        if folder.name.removesuffix("-accepted").removesuffix("-rejected") not in known:
            yield Problem(f"objects of case {folder.name}", "the ledger knows nothing of it")
        for path in sorted(folder.rglob("*")) if folder.name in known else ():
            if str(path.relative_to(home.root)) not in told.written:
                yield Problem(
                    f"{path.name} for the archive of case {folder.name[:12]}…", "no record tells of this file"
                )


def verify_mlflow(home: Home, store: Store, experiment: str) -> Iterator[Problem]:
    """What MLflow shows otherwise than it was delivered. Raises WorldError when it cannot be reached."""
    told = _Told.of(store)
    cases, batches = told.cases(home, store), told.batches
    waiting = {entry.case for entry in store.pending("mlflow")}
    for row in store.cases():
        if row.mlflow_run_id != told.runs.get(row.case):
            yield Problem(f"case {row.case[:12]}…", "the store names another MLflow run for it than the ledger")
        elif row.mlflow_run_id is None and row.case not in waiting and row.case not in told.pruned:
            yield Problem(f"case {row.case[:12]}…", "it neither was delivered to MLflow nor waits for it")
    if not cases and not batches:
        return
    if not home.mlflow_database.is_file() and not Tracker.is_elsewhere():
        yield Problem("MLflow", "its database is gone; the next night fills it again")
        return
    tracker = Tracker(home, experiment, create=False)
    yield from tracker.check(cases, batches)
    for batch, (records, head) in sorted(tracker.anchors().items()):
        now = store.digest_of(records)
        if records and now != head:
            what = "was cut off" if now is None else "is another one now"
            yield Problem(f"anchor in MLflow of night {batch}", f"record {records} {what}: the ledger was rewritten")
    for batch, head in sorted(told.heads.items()):
        if head not in {h for _, h in tracker.anchors().values()} and batch in batches:
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
    """What the ledger says was delivered to MLflow: runs and artifacts by case; run, tags, head by night."""

    runs: dict[str, str] = field(default_factory=dict)
    files: dict[str, Mapping[str, str]] = field(default_factory=dict)
    batches: dict[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    pruned: set[str] = field(default_factory=set)

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
        if kind not in KINDS or missing(kind, facts):
            return
        if kind in CASE_KINDS:
            self.files[facts["case"]] = _artifacts(facts)
            self.written |= set(facts["files"])
            self.runs.pop(facts["case"], None)  # what was delivered before showed another report
        elif kind == "delivery" and facts["to"] == "mlflow":
            self.runs[facts["case"]] = str(facts["what"][0])
        elif kind == "batch delivered":
            self.batches[facts["batch"]] = str(facts["what"][0]), facts["tags"]
            self.heads[facts["batch"]] = str(facts["head"])
        elif kind in (ERASED, PRUNED):
            self.pruned |= set(facts["cases"])
            for gone in facts["cases"]:
                self.runs.pop(gone, None)

    def cases(self, home: Home, store: Store) -> dict[str, Delivered]:
        """The delivered cases as MLflow must show them; those whose report is gone or spoilt are named elsewhere."""
        rows = {row.case: row for row in store.cases()}
        shown = {key for key, row in rows.items() if row.mlflow_run_id is not None}
        return {
            key: Delivered(rows[key], run, told, self.files[key], _superseded(rows, shown, key))
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
