"""From the store's outbox to MLflow: what waits is copied, what arrived is in the ledger.

Owns the lease that lets several workers empty one outbox. Invariants: an entry is delivered by the worker that holds
it; what cannot be delivered waits on; a night that MLflow missed is delivered on the next one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from medrec.config import CardFiles
from medrec.errors import WorldError
from medrec.report import Status
from medrec.shown import HEAD, inert
from medrec.store import CaseRow, Store
from medrec.tracking import Delivery, Tracker

# Longer than MLflow ever takes for one report; a worker that died keeps an entry from other homes for as long.
LEASE = timedelta(minutes=10)
SHOWN = 200  # cases in a night's description


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
                store.set_mlflow_run(row.case, done.run_id)
                store.append("delivery", _iso(now), {"case": row.case, "to": "mlflow", "what": [done.run_id]})
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
        store.set_batch_run(batch.batch, done.run_id)
        told = _told(batch.batch, done) | {"summary": _sha256(batch.summary), "metrics": counts(summary)}
        store.append("batch delivered", _iso(datetime.now(UTC)), told)


def register_models(store: Store, tracker: Tracker, models: Iterable[CardFiles]) -> None:
    """Register cards with their weights in MLflow; what is new there, or filled anew, is in the ledger.

    Raises WorldError when MLflow cannot take one.
    """
    done = [tracker.register(model) for model in models]
    known = {
        (entry["card"], entry["version"])
        for model in done
        for _, record in store.about(f"card {model.card}")
        if record.kind == "models registered"
        for entry in record.facts["models"]  # type: ignore[attr-defined]
    }
    new = [m for m in done if tracker.fresh or (m.card, m.version) not in known]
    if new:
        facts = {"cards": [m.card for m in new], "models": [m.facts() for m in new], "fresh": tracker.fresh}
        store.append("models registered", _iso(datetime.now(UTC)), facts)


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
    return "\n".join(lines)


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
