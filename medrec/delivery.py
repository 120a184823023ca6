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

from medrec import agreement, overview
from medrec.audit import AuditRecord
from medrec.config import CardFiles
from medrec.errors import WeightsError, WorldError
from medrec.home import Home
from medrec.overview import Place
from medrec.registry import Registry
from medrec.report import Status
from medrec.shown import CHAMPION, HEAD, NOTE, SUMMARY, keyed
from medrec.store import CaseRow, ReviewState, Store
from medrec.store.answers import UNREVIEWED
from medrec.tracking import Delivery, Tracker
from medrec.worklist import Reviews

# Longer than MLflow ever takes for one report; a worker that died keeps an entry from other homes for as long.
LEASE = timedelta(minutes=10)
MONITORED = "monitoring delivered"
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
                if not entry.fresh:
                    store.show_again(row.batch)  # its page may have been written without this run
        store.delivered(entry.id, _iso(now))


def deliver_batches(store: Store, tracker: Tracker, home: Home, reviews: Reviews | None = None) -> None:
    """Write every finished night that MLflow does not show yet, with the ledger's head of now as an anchor.

    `reviews` says where reviews stand, as the store has it unless it is told. Raises WorldError when MLflow cannot take
    one.
    """
    reviews = reviews or Reviews({k: _answered(s) for k, s in store.review_states().items() if s.word != UNREVIEWED})
    for batch in store.unshown_batches():
        assert batch.summary is not None
        summary = json.loads(batch.summary)
        page = overview.of_night(summary, home, store, Place(*tracker.place_of(batch.batch)), reviews)
        tags = {NOTE: page.description, **overview.TABLES}
        files = {**page.files, SUMMARY: batch.summary}
        done = tracker.finish_batch(batch.batch, outcome(summary), tags, counts(summary), files, store.position())
        told: dict[str, object] = {"summary": _sha256(batch.summary), "metrics": counts(summary), "keyed": True}
        told["files"] = {name: keyed(batch.summary, _sha256(text)) for name, text in page.files.items()}
        # The record first: killed in between, the night is delivered again, and no run stands there without a record.
        store.append("batch delivered", _iso(datetime.now(UTC)), _told(batch.batch, done, batch.summary) | told)
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


def monitoring_run(store: Store) -> str | None:
    """The run called monitoring, as the ledger has it; None before there is one, or after MLflow was lost."""
    run = None
    for _, record in store.of_kinds(MONITORED, REGISTERED):
        if record.kind == MONITORED:
            run = str(cast(list[str], record.facts["what"])[0])
        elif record.facts["fresh"]:
            run = None
    return run


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


def deliver_agreement(store: Store, tracker: Tracker) -> None:
    """Show in MLflow's run called monitoring how often reviewers agree with the models. Raises WorldError."""
    found = agreement.points(agreement.agreement(store))
    if found:
        deliver_monitoring(store, tracker, agreement.PART, found)


def deliver_monitoring(
    store: Store, tracker: Tracker, part: str, points: agreement.Points, pages: Mapping[str, str] | None = None
) -> None:
    """Show a part's metrics and pages (by file name) in the run called monitoring, with a record when they are new.

    Names of metrics begin with that of the part; what other parts show stays. Raises WorldError when MLflow cannot take
    them.
    """
    pages = pages or {}
    told = [r.facts for _, r in store.about(f"part {part}")]
    digest = _sha256(json.dumps([{name: list(values) for name, values in sorted(points.items())}, pages]))
    here = tracker.monitoring(monitoring_run(store))
    if here is not None and told and (told[-1]["points"], told[-1]["what"]) == (digest, [here.run_id]):
        return
    run = tracker.log_monitoring(here, points, pages)
    shown = {name: _sha256(str(value)) for name, value in run.metrics.items() if name.startswith(f"{part}.")}
    files = {name: found for name, found in tracker.artifacts(run).items() if name in pages}
    facts = {"part": part, "to": "mlflow", "what": [run.run_id], "shown": shown, "files": files, "points": digest}
    store.append(MONITORED, _iso(datetime.now(UTC)), facts)


def _registered(store: Store, tracker: Tracker, models: list[dict[str, object]]) -> None:
    facts = {"cards": [m["card"] for m in models], "models": models, "fresh": tracker.fresh}
    store.append(REGISTERED, _iso(datetime.now(UTC)), facts)
    tracker.fresh = False


def _models(record: AuditRecord) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], record.facts["models"])


def _answered(state: ReviewState) -> str:
    return f"{state.word}{'' if state.signed else ', claimed'}{', in conflict' if state.conflict else ''}"


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


def _replaced(store: Store, row: CaseRow) -> tuple[CaseRow, ...]:
    if row.supersedes is None:
        return ()
    return store.replaced_by(row.case)


def _told(batch: str, done: Delivery, summary: str) -> dict[str, object]:
    """What the ledger keeps of a night in MLflow: a digest for each tag, so that a changed one can be named."""
    tags = {name: keyed(summary, _sha256(value)) for name, value in done.tags.items()}
    told = {"batch": batch, "to": "mlflow", "what": [done.run_id], "tags": tags, "head": done.tags[HEAD]}
    return {**told, "name": done.name}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
