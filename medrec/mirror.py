"""MLflow held against what was delivered to it: runs, artifacts, registered models, and whatever was added to them.

Owns what the ledger says that MLflow must show (`Expected`), and the comparison. Reads nothing by itself and knows no
MLflow: `tracking` says what is shown. Not compared: the times of runs, earlier values of a metric, and tags that do not
begin with "medrec." (reviewers write such).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from medrec.audit import Problem
from medrec.shown import (
    BATCH,
    CASE,
    CHALLENGER,
    CHAMPION,
    HEAD,
    MONITORING,
    MONITORING_NAME,
    NOTE,
    OURS,
    PARENT,
    RECORDS,
    REVIEW,
    SUMMARY,
    SUPERSEDED_BY,
    TRAINED,
    VERSION,
    WORKER,
    Registered,
    ShownRun,
    keyed,
    metrics_of,
    night_name,
    params_of,
    run_name,
    tags_of,
)
from medrec.store import CaseRow
from medrec.tracking import Tracker

Facts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Delivered:
    """A case as MLflow must show it: its row, its report's facts, the digests of its artifacts by name."""

    row: CaseRow
    run_id: str
    facts: Facts
    files: Mapping[str, str]
    superseded_by: str | None
    reviews: frozenset[str] = frozenset()
    """What may stand there of its review: what was told last, and what is so now; empty when nothing was told."""


@dataclass(slots=True)
class Expected:
    """What MLflow must show by the ledger.

    `cases` by key; `runs` of all delivered cases, also of those whose report is spoilt; `nights` the record of each
    delivered one, `summaries` what it says now; `open_nights` those that it need not show yet, with whether they ended;
    `waiting` cases that are still to be delivered; `models` what was registered, by name and version; `aliases` the
    version that bears one, by name and alias; `trainings` the record of each delivered one by card, `untold` the cards
    whose record is to come; `monitoring` the last record of each part of the monitoring run.
    """

    cases: Mapping[str, Delivered] = field(default_factory=dict)
    runs: frozenset[str] = frozenset()
    nights: Mapping[str, Facts] = field(default_factory=dict)
    summaries: Mapping[str, str] = field(default_factory=dict)
    open_nights: Mapping[str, bool] = field(default_factory=dict)
    waiting: frozenset[str] = frozenset()
    models: Mapping[tuple[str, str], Facts] = field(default_factory=dict)
    aliases: Mapping[tuple[str, str], str] = field(default_factory=dict)
    trainings: Mapping[str, Facts] = field(default_factory=dict)
    untold: frozenset[str] = frozenset()
    monitoring: Mapping[str, Facts] = field(default_factory=dict)


def check(expected: Expected, tracker: Tracker) -> Iterator[Problem]:
    """What MLflow shows otherwise than it was delivered. Raises WorldError when it cannot be reached."""
    runs = {run.run_id: run for run in tracker.runs()}
    versions = tracker.models() if expected.models else ()
    registered = {m.card: m.version for m in versions}
    for key, case in sorted(expected.cases.items()):
        where = f"MLflow run of case {key[:12]}…"
        run = runs.get(case.run_id)
        if run is None:
            yield Problem(where, f"the run {case.run_id} was deleted")
        else:
            parent = _run_of_night(case.row.batch, expected, runs)
            yield from (Problem(where, what) for what in _of_case(case, run, parent, registered))
            yield from (Problem(where, what) for what in _files("artifact", case.files, tracker.artifacts(run)))
    for name, facts, problems in _recorded(expected):
        where, run_id = f"MLflow run of {name}", str(facts["what"][0])
        run = runs.get(run_id)
        if run is None:
            yield Problem(where, f"the run {run_id} was deleted")
        else:
            yield from (Problem(where, what) for what in problems(facts, run, tracker))
    yield from _monitoring(expected.monitoring, runs, tracker)
    yield from _strangers(expected, runs, shared=tracker.is_elsewhere())
    yield from _models(expected, versions)


def _recorded(expected: Expected) -> Iterator[tuple[str, Facts, Callable[[Facts, ShownRun, Tracker], Iterator[str]]]]:
    """Nights and trainings: what each is called, its record, and how its run is held against that."""
    for batch, facts in sorted(expected.nights.items()):
        yield f"night {batch}", facts, partial(_of_night, expected.summaries.get(batch, ""))
    for card, facts in sorted(expected.trainings.items()):
        yield f"model {card[:12]}…", facts, _of_training


def anchors(tracker: Tracker) -> dict[str, tuple[int, str]]:
    """The ledger's length and head that each night left in MLflow, by batch."""
    tags = [run.tags for run in tracker.runs() if HEAD in run.tags]
    # Release 0.1.0 left the head alone.
    return {t.get(BATCH, ""): (int(t[RECORDS]), t[HEAD]) for t in tags if t.get(RECORDS, "").isdecimal()}


def _of_case(case: Delivered, run: ShownRun, parent: str, registered: Mapping[str, str]) -> Iterator[str]:
    tags = {**tags_of(case.row, case.facts, case.files["report.json"]), PARENT: parent}
    if case.superseded_by is not None:
        tags[SUPERSEDED_BY] = case.superseded_by
    elif SUPERSEDED_BY in run.tags:
        yield f"its tag {SUPERSEDED_BY} says what no record does"
    version = registered.get(case.facts["card_sha256"])
    if version is not None and run.tags.get(VERSION) not in (version, ""):  # "" where MLflow was filled anew
        yield f"its tag {VERSION} was changed"
    said = run.tags.get(REVIEW)
    if case.reviews and said is None:
        yield f"its tag {REVIEW} is gone"
    elif said is not None and said not in case.reviews:
        yield f"its tag {REVIEW} says what no review does"
    yield from _tags(tags, run, {SUPERSEDED_BY, VERSION, REVIEW})
    if run.name != run_name(case.row):
        yield "its name was changed"
    if run.status != "FINISHED":
        yield f"it is {run.status}, though all of it was delivered"
    params, metrics = params_of(case.facts), metrics_of(case.facts, case.row)
    yield from (f"its parameter {k} was changed" for k, v in params.items() if run.params.get(k) != v)
    yield from (f"its parameter {k} was added" for k in sorted(run.params.keys() - params.keys()))
    yield from _metrics(metrics, run)


def _of_night(summary: str, facts: Facts, run: ShownRun, tracker: Tracker) -> Iterator[str]:
    """A night by its record; earlier releases' say less, and are not keyed."""
    is_keyed = facts.get("keyed", False)
    if is_keyed and hashlib.sha256(summary.encode()).hexdigest() != facts["summary"]:
        yield "it shows what was erased or renamed since: the next night writes it anew"
        return

    def told(digest: str) -> str:
        return keyed(summary, digest) if is_keyed and digest else digest

    digests = {k: told(hashlib.sha256(v.encode()).hexdigest()) for k, v in run.tags.items()}
    yield from (f"its tag {k} was changed" for k, v in sorted(facts["tags"].items()) if digests.get(k) != v)
    yield from _added(facts["tags"].keys() | {WORKER}, run)
    if run.status != "FINISHED":
        yield f"it is {run.status}, though all of it was delivered"
    if "summary" not in facts:
        return
    if run.name != facts["name"]:
        yield "its name was changed"
    yield from _metrics({k: float(v) for k, v in facts["metrics"].items()}, run)
    shown = {name: digest if name == SUMMARY else told(digest) for name, digest in tracker.artifacts(run).items()}
    yield from _files("artifact", {SUMMARY: facts["summary"], **facts.get("files", {})}, shown)


def _of_training(facts: Facts, run: ShownRun, tracker: Tracker) -> Iterator[str]:
    wanted, told = facts["shown"], run.told()
    yield from (f"its {k} was changed" for k in sorted(wanted) if told.get(k) != wanted[k])
    yield from (f"its {k} was added" for k in sorted(told.keys() - wanted.keys()))
    if run.name != facts["name"]:
        yield "its name was changed"
    if run.status != "FINISHED":
        yield f"it is {run.status}, though all of it was delivered"
    yield from _files("artifact", facts["files"], tracker.artifacts(run))


def _monitoring(parts: Mapping[str, Facts], runs: Mapping[str, ShownRun], tracker: Tracker) -> Iterator[Problem]:
    """What each part shows in the run that all share; another part's metrics and pages are that one's."""
    where = "MLflow run monitoring"
    for part, facts in sorted(parts.items()):
        run = runs.get(str(facts["what"][0]))
        if run is None:
            yield Problem(where, f"the run {facts['what'][0]} was deleted")
            continue
        shown = {k: hashlib.sha256(str(v).encode()).hexdigest() for k, v in run.metrics.items()}
        wanted = facts["shown"]
        yield from (Problem(where, f"its metric {k} was changed") for k in sorted(wanted) if shown.get(k) != wanted[k])
        own = {k for k in shown if k.startswith(f"{part}.") or k.partition(".")[0] not in parts}
        yield from (Problem(where, f"its metric {k} was added") for k in sorted(own - wanted.keys()))
    for run_id in sorted({str(facts["what"][0]) for facts in parts.values()} & runs.keys()):
        if runs[run_id].name != MONITORING_NAME or NOTE in runs[run_id].tags:
            yield Problem(where, "its name or its description was changed")
        yield from (Problem(where, what) for what in _added({MONITORING, WORKER}, runs[run_id]))
        pages = {k: v for facts in parts.values() if facts["what"] == [run_id] for k, v in facts["files"].items()}
        yield from (Problem(where, what) for what in _files("artifact", pages, tracker.artifacts(runs[run_id])))


def _tags(tags: Mapping[str, str], run: ShownRun, known: set[str]) -> Iterator[str]:
    yield from (f"its tag {k} was changed" for k, v in sorted(tags.items()) if run.tags.get(k) != v)
    yield from _added(tags.keys() | known, run)


def _added(known: set[str], run: ShownRun) -> Iterator[str]:
    yield from (f"its tag {k} was added" for k in sorted(run.tags) if k.startswith(OURS) and k not in known)


def _metrics(wanted: Mapping[str, float], run: ShownRun) -> Iterator[str]:
    yield from (f"its metric {k} was changed" for k, v in wanted.items() if run.metrics.get(k) != v)
    yield from (f"its metric {k} was added" for k in sorted(run.metrics.keys() - wanted.keys()))


def _files(what: str, wanted: Mapping[str, str], shown: Mapping[str, str]) -> Iterator[str]:
    for name, digest in sorted(wanted.items()):
        if shown.get(name) != digest:
            yield f"its {what} {name} {'was changed' if shown.get(name) else 'is gone'}"
    yield from (f"its {what} {name} was added" for name in sorted(shown.keys() - wanted.keys()))


def _run_of_night(batch: str, expected: Expected, runs: Mapping[str, ShownRun]) -> str:
    """The run under which a night's cases stand; a night that is not delivered yet has one without a record."""
    if batch in expected.nights:
        return str(expected.nights[batch]["what"][0])
    return next((r.run_id for r in runs.values() if r.tags.get(BATCH) == batch and CASE not in r.tags), "")


def _strangers(expected: Expected, runs: Mapping[str, ShownRun], *, shared: bool) -> Iterator[Problem]:
    """Runs that nobody delivered; on a server that others use too, those that show something of ours."""
    recorded = (*expected.nights.values(), *expected.trainings.values(), *expected.monitoring.values())
    known = expected.runs | {str(f["what"][0]) for f in recorded}
    for run_id, run in sorted(runs.items()):
        if run_id in known or _on_its_way(run, expected):
            continue
        ours = run.tags.get(BATCH) in expected.nights.keys() | expected.open_nights.keys()
        if CASE in run.tags:
            yield Problem(f"MLflow run {run_id}", "it shows a case, but medrec did not deliver it")
        elif ours or not shared or run.tags.get(PARENT) in known:
            yield Problem(f"MLflow run {run_id}", "medrec did not make it")


def _on_its_way(run: ShownRun, expected: Expected) -> bool:
    """Whether a run is one that is being filled, or that a killed night or training left."""
    if MONITORING in run.tags:
        return not expected.monitoring
    if TRAINED in run.tags:
        return run.tags[TRAINED] in expected.untold
    if CASE in run.tags:
        return run.tags[CASE] in expected.waiting
    batch = run.tags.get(BATCH, "")
    ended = expected.open_nights.get(batch)
    return ended is True or (ended is False and run.name == night_name(batch) and NOTE not in run.tags)


def _models(expected: Expected, versions: tuple[Registered, ...]) -> Iterator[Problem]:
    """Registered versions; a home of an earlier release has no record of them before its next night."""
    shown = {(m.name, m.version): m for m in versions}
    for key, facts in sorted(expected.models.items()):
        where = f"registered model {key[0]}, version {key[1]}"
        if key not in shown:
            yield Problem(where, "it is gone")
            continue
        model = shown[key]
        yield from (Problem(where, what) for what in _files("file", facts["files"], model.files))
        names = sorted(n for n in facts["tags"].keys() | model.tags.keys() if facts["tags"].get(n) != model.tags.get(n))
        yield from (Problem(where, f"its {'description' if n == NOTE else f'tag {n}'} was changed") for n in names)
        for alias in (CHAMPION, CHALLENGER):
            if (alias in model.aliases) != (expected.aliases.get((key[0], alias)) == key[1]):
                yield Problem(where, f"the alias {alias} was moved")
    for key in sorted(shown.keys() - expected.models.keys() if expected.models else ()):
        if shown[key].card not in expected.untold:
            yield Problem(f"registered model {key[0]}, version {key[1]}", "medrec did not register it")
