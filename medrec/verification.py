"""A whole home held against its ledger: chain, files, rows, folders that nobody knows, MLflow.

Owns nothing that is stored. What it finds is a `Problem` each, in the order chain, files, rows, folders, MLflow; the
first is the first that does not match.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from medrec.audit import Problem
from medrec.dicom import Renamed
from medrec.errors import ConfigError
from medrec.home import Home
from medrec.kinds import CASE_KINDS, ERASED
from medrec.store import CaseRow, Store
from medrec.tracking import ARTIFACTS, Delivered, Tracker


def verify(home: Home, store: Store, since: int = 0) -> Iterator[Problem]:
    """What does not match in ledger, files, rows and folders; of cases only those recorded after number `since`."""
    renamed = Renamed.load(home.root, home.key)

    @cache  # all cases of one model name the same weights
    def digest(relative: str) -> str | None:
        return _digest(home.root / relative)

    yield from store.verify(digest, renamed.original, since)
    known = {row.case for row in store.cases()}
    for folder in sorted(home.reports.glob("[!.]*")):
        if folder.name not in known:
            yield Problem(f"report of case {folder.name}", "the ledger knows nothing of it")


def verify_mlflow(home: Home, store: Store, experiment: str) -> Iterator[Problem]:
    """What MLflow shows otherwise than it was delivered. Raises WorldError when it cannot be reached."""
    cases, batches, heads = _delivered(home, store)
    for row in store.cases():
        if row.mlflow_run_id is not None and row.case not in cases:
            yield Problem(f"case {row.case[:12]}…", "the store names an MLflow run for it, the ledger no delivery")
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
    for batch, head in sorted(heads.items()):
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


def _delivered(
    home: Home, store: Store
) -> tuple[dict[str, Delivered], dict[str, tuple[str, Mapping[str, str]]], dict[str, str]]:
    """What the ledger says was delivered to MLflow: cases, nights with the digests of their tags, and their anchors."""
    runs: dict[str, str] = {}
    files: dict[str, Mapping[str, str]] = {}
    batches: dict[str, tuple[str, Mapping[str, str]]] = {}
    heads: dict[str, str] = {}
    for record in store.ledger():
        kind, facts = record.kind, record.facts
        key = str(facts.get("case"))
        if kind in CASE_KINDS:
            files[key] = _artifacts(facts)
            runs.pop(key, None)  # what was delivered before showed another report
        elif kind == "delivery" and facts["to"] == "mlflow":
            runs[key] = str(facts["what"][0])  # type: ignore[index]
        elif kind == "batch delivered":
            batch = str(facts["batch"])
            batches[batch] = (str(facts["what"][0]), facts["tags"])  # type: ignore[index, assignment]
            heads[batch] = str(facts["head"])
        elif kind == ERASED:
            for gone in facts["cases"]:  # type: ignore[attr-defined]
                runs.pop(str(gone), None)
    rows = {row.case: row for row in store.cases()}
    shown = {key for key, row in rows.items() if row.mlflow_run_id is not None}
    cases = {
        key: Delivered(rows[key], run, told, files[key], _superseded(rows, shown, key))
        for key, run in runs.items()
        if key in rows and (told := _facts(home, rows[key])) is not None
    }
    return cases, batches, heads


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
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
