"""From the store's outbox to MLflow: what waits is copied, what arrived is in the ledger.

Owns the lease that lets several workers empty one outbox. Invariants: an entry is delivered by the worker that holds
it; what cannot be delivered waits on; a night that MLflow missed is delivered on the next one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from medrec.audit import AuditRecord
from medrec.config import CardFiles
from medrec.errors import WeightsError, WorldError
from medrec.home import Home
from medrec.registry import Registry
from medrec.report import Status
from medrec.shown import CHAMPION, HEAD, fitting, inert
from medrec.store import CaseRow, Store
from medrec.tracking import Delivery, Tracker

# Longer than MLflow ever takes for one report; a worker that died keeps an entry from other homes for as long.
LEASE = timedelta(minutes=10)
SHOWN = 200  # cases in a night's description
REGISTERED, TRAINING, VERSIONS = "models registered", "training delivered", ("model trained", "model imported")


def deliver_cases(store: Store, tracker: Tracker) -> bool:
    """Copy every case that waits to MLflow, oldest first; False when it could not take one."""
    while True:
        now = datetime.now(UTC)
        entry = store.lease("mlflow", tracker.worker, _iso(now), _iso(now + LEASE))
        if entry is None:
            return True
        row = store.case(entry.case)
        if row is not None:
            try:
                done = tracker.deliver(row, _ms(now), fresh=entry.fresh, replaced=_replaced(store, row))
            except (WorldError, OSError) as error:
                store.postponed(entry.id, type(error).__name__, _iso(now))
                return False
            if row.mlflow_run_id != done.run_id:
                told = {"case": row.case, "to": "mlflow", "what": [done.run_id]}
                # The record first, and once: a kill in between leaves neither a run without a record nor two of them.
                if all(r.kind != "delivery" or r.facts != told for _, r in store.about(f"case {row.case}")):
                    store.append("delivery", _iso(now), told)
                store.set_mlflow_run(row.case, done.run_id)
        store.delivered(entry.id, _iso(now))


def deliver_batches(store: Store, tracker: Tracker) -> None:
    """Write every finished night that MLflow does not show yet, with the ledger's head of now as an anchor.

    Raises WorldError when MLflow cannot take one.
    """
    for batch in store.unshown_batches():
        assert batch.summary is not None
        summary = json.loads(batch.summary)
        anchor = store.position()
        done = tracker.finish_batch(
            batch.batch, outcome(summary), description(summary), counts(summary), batch.summary, anchor
        )
        told = _told(batch.batch, done) | {"summary": _sha256(batch.summary), "metrics": counts(summary)}
        # The record first: killed in between, the night is delivered again, and no run stands there without a record.
        store.append("batch delivered", _iso(datetime.now(UTC)), told)
        store.set_batch_run(batch.batch, done.run_id)


def begin(store: Store, tracker: Tracker) -> int:
    """Let an MLflow that holds nothing of this home get everything again; returns how many reports wait for it."""
    return store.requeue("mlflow", _iso(datetime.now(UTC))) if tracker.fresh else 0


def register_models(store: Store, tracker: Tracker, models: Iterable[CardFiles]) -> None:
    """Register the cards that are in force in MLflow; what is new there, or in force since, is in the ledger.

    Raises WorldError when MLflow cannot take one.
    """
    done = [tracker.register(model) for model in models]
    known: dict[tuple[str, str], dict[str, Any]] = {}
    champions: dict[str, str] = {}
    for _, record in store.of_kinds(REGISTERED):
        if record.facts["fresh"]:
            known, champions = {}, {}
        known |= {(m["card"], m["version"]): m for m in _models(record)}
        champions |= {m["name"]: m["version"] for m in _models(record) if CHAMPION in m["aliases"]}
    if tracker.fresh:
        known, champions = {}, {}
    new = []
    for model in done:
        before = known.get((model.card, model.version))
        if before is None:
            new.append(model.facts())
        elif champions.get(model.name) != model.version:  # only the alias is ours to tell anew
            new.append({**before, "aliases": list(model.aliases)})
    if new:
        _registered(store, tracker, new)


def deliver_training(store: Store, tracker: Tracker, model: CardFiles, home: Home) -> str:
    """Show a trained or imported version in MLflow as it is now; returns the run. Raises WorldError."""
    card = model.card
    records = [r for _, r in store.about(f"card {card.digest}")]
    facts = {k: str(v) for r in records if r.kind in VERSIONS for k, v in r.facts.items()}
    folder = home.version(card.name, card.digest)
    run, registered = tracker.log_training(model, folder, facts | {"status": _status(records)})
    where: dict[str, object] = {"card": card.digest, "to": "mlflow", "what": [run.run_id], "name": run.name}
    told = where | {"shown": run.told(), "files": tracker.artifacts(run)}
    if told != next((r.facts for r in reversed(records) if r.kind == TRAINING), None):
        _registered(store, tracker, [registered.facts()])
        store.append(TRAINING, _iso(datetime.now(UTC)), told)
    return run.run_id


def deliver_trainings(store: Store, tracker: Tracker, home: Home) -> None:
    """Show every trained or imported version that MLflow lacks. Raises WorldError when it cannot take one."""
    shown: set[str] = set()
    wanted: dict[str, str] = {}
    for _, record in store.of_kinds(REGISTERED, TRAINING, *VERSIONS):
        if record.kind in VERSIONS:
            wanted[str(record.facts["card"])] = str(record.facts.get("model"))
        elif record.kind == TRAINING:
            shown.add(str(record.facts["card"]))
        elif record.facts["fresh"]:
            shown.clear()
    registry = Registry(home, store)
    for digest in wanted.keys() - shown:
        with suppress(WeightsError):  # its files are gone: `audit verify` says so
            kept = registry.load(wanted[digest], digest)
            deliver_training(store, tracker, CardFiles(kept.card, kept.weights), home)


def _registered(store: Store, tracker: Tracker, models: list[dict[str, object]]) -> None:
    facts = {"cards": [m["card"] for m in models], "models": models, "fresh": tracker.fresh}
    store.append(REGISTERED, _iso(datetime.now(UTC)), facts)
    tracker.fresh = False


def _models(record: AuditRecord) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], record.facts["models"])


def _status(records: list[AuditRecord]) -> str:
    kinds = {r.kind for r in records}
    if "model evaluated" not in kinds:
        return "not evaluated"
    return "eligible" if "model eligible" in kinds else "not eligible"


def outcome(summary: Mapping[str, Any]) -> str:
    """What came of a night's studies, in a few words."""
    counted = Counter(c["verdict"] or c["status"] for c in summary["cases"] if c["status"] != Status.ALREADY_DONE)
    return ", ".join(f"{n} {what}" for what, n in sorted(counted.items())) or "nothing new"


def counts(summary: Mapping[str, Any]) -> dict[str, int]:
    """A night's numbers, by the name of their metric."""
    found = {f"files_{k.replace(' ', '_')}": int(v) for k, v in summary["files"].items()}
    for status in Status:
        found[f"cases_{status.replace(' ', '_')}"] = sum(c["status"] == status for c in summary["cases"])
    return found


def description(summary: Mapping[str, Any]) -> str:
    """The Markdown that MLflow shows with a night."""
    files = summary["files"]
    lines = [
        f"## Night {summary['batch']}",
        "",
        f"{len(summary['cases'])} studies; {files['seen']} files: {files['analysed']} analysed, "
        f"{files['unused']} unused, {files['refused']} refused"
        + (f", {files['waiting']} waiting." if "waiting" in files else "."),
        "",
        "| study | status | verdict | reason |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {c['study'][:8]} | {c['status']} | {c['verdict'] or ''} | {inert(c['reason'])} |"
        for c in summary["cases"][:SHOWN]
    ]
    return fitting(lines)


def _replaced(store: Store, row: CaseRow) -> tuple[CaseRow, ...]:
    if row.supersedes is None:
        return ()
    return store.replaced_by(row.case)


def _told(batch: str, done: Delivery) -> dict[str, object]:
    """What the ledger keeps of a night in MLflow: a digest for each tag, so that a changed one can be named."""
    tags = {name: _sha256(value) for name, value in done.tags.items()}
    told = {"batch": batch, "to": "mlflow", "what": [done.run_id], "tags": tags, "head": done.tags[HEAD]}
    return {**told, "name": done.name}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
