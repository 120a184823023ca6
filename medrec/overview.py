"""A night as MLflow shows it to a reviewer: the run's description, its contact sheet and its worklist.

Owns what is gathered for them: the night's summary, which says whose night it was, and what each case left in its
folder. Invariants: only studies that are new in the night; a case that was erased, or whose report was cleared away or
belongs to another night by now, leaves no picture; the same summary and folders give the same bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medrec import worklist
from medrec.home import Home
from medrec.outputs import html, sheet, thumbnail
from medrec.report import DISCLAIMER, Status
from medrec.shown import SHEET, fitting, inert, night_name, shown_at
from medrec.store import Store
from medrec.worklist import Overdue, Reviews, Row

WORKLIST = "worklist.json"
# MLflow shows an artifact as a table where this tag, which is its own, says so.
TABLES = {"mlflow.loggedArtifacts": json.dumps([{"path": WORKLIST, "type": "table"}])}
REPORT = html.NAME
SHOWN = 30  # rows of the description, with a link each; the sheet has all


@dataclass(frozen=True, slots=True)
class Place:
    """Where MLflow shows a night: the path of the experiment's runs, and the night's own run."""

    runs: str
    run_id: str

    def link(self, words: str, run_id: str | None, artifact: str) -> str:
        """Words that lead to an artifact of a run; plain words where there is none."""
        return words if run_id is None else f"[{words}]({shown_at(self.runs, run_id, artifact)})"


@dataclass(frozen=True, slots=True)
class Overview:
    """The Markdown of a night's run, and its artifacts (text) by name."""

    description: str
    files: Mapping[str, str]


def of_night(
    summary: Mapping[str, Any], home: Home, store: Store, place: Place, reviews: Reviews | None = None
) -> Overview:
    """All that is shown of a night."""
    reviews, batch = reviews or Reviews(), summary["batch"]
    stored = {row.case: row for row in store.cases(batch)}
    rows, thumbnails = [], {}
    for line in summary["cases"]:
        if line["status"] in worklist.SETTLED:
            continue
        key = line["case"]
        row, folder = stored.get(key), home.reports / key
        facts = _facts(folder) if row is not None else None
        if facts is not None and (folder / thumbnail.NAME).is_file():
            thumbnails[key] = (folder / thumbnail.NAME).read_bytes()
        run_id, gone = (row.mlflow_run_id, worklist.GONE) if row is not None else (None, worklist.TAKEN_UP)
        rows.append(worklist.row(line, facts, reviews.of(key), run_id, gone))
    found, overdue = worklist.ordered(rows), worklist.overdue(summary)
    waiting = sum(c["status"] == Status.WAITING for c in summary["cases"])
    page = sheet.page(night_name(batch), found, thumbnails, waiting, overdue)
    text = description(summary, found, place, [(o, _run(store, o)) for o in overdue])
    return Overview(text, {SHEET: page, WORKLIST: worklist.table(found)})


def description(
    summary: Mapping[str, Any], rows: Sequence[Row], place: Place, overdue: Sequence[tuple[Overdue, str | None]] = ()
) -> str:
    """The Markdown that MLflow shows with a night: what was found, and where each report is.

    Of a long one MLflow shows the first lines until it is asked: counts, the ways to the pages, and what comes first.
    """
    counts = ", ".join(f"**{n} {kind}**" for kind, n in worklist.counted(rows)) or "No study was new"
    files = summary["files"]
    lines = [
        f"{counts}. {place.link('Contact sheet', place.run_id, SHEET)}, "
        f"{place.link('worklist', place.run_id, WORKLIST)}.",
        "",
        *_overdue(overdue, place),
        *_rows(rows, place),
        "",
        f"{len(summary['cases'])} studies; {files['seen']} files: {files['analysed']} analysed, "
        f"{files['unused']} unused, {files['refused']} refused"
        + (f", {files['waiting']} waiting." if "waiting" in files else "."),
    ]
    return fitting(lines, ("", f"*{DISCLAIMER}*"))


def _rows(rows: Sequence[Row], place: Place) -> Iterator[str]:
    if not rows:
        return
    yield "| study | verdict | size | to note | review |"
    yield "|---|---|---|---|---|"
    for r in rows[:SHOWN]:
        first, *others = (*worklist.noted(r), "")
        said = inert(first) + (f"; {len(others) - 1} more" if len(others) > 1 else "")
        size = inert("; ".join(w for w in (r.size, r.where) if w))
        yield f"| {place.link(r.study, r.run_id, REPORT)} | {r.kind} | {size} | {said} | {inert(r.review)} |"
    if len(rows) > SHOWN:
        yield ""
        yield f"… and {len(rows) - SHOWN} more on the contact sheet."


def _overdue(found: Sequence[tuple[Overdue, str | None]], place: Place) -> Iterator[str]:
    if not found:
        return
    named = (f"{place.link(o.study[: worklist.SHORT], run, REPORT)} ({o.days} d)" for o, run in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    yield f"**{len(found)} overdue** from earlier nights: {', '.join(named)}{more}."
    yield ""


def _run(store: Store, overdue: Overdue) -> str | None:
    row = store.case(overdue.case)
    return row.mlflow_run_id if row is not None else None


def _facts(folder: Path) -> dict[str, Any] | None:
    """The facts of a report; None where it was cleared away or is spoilt, which `audit verify` names."""
    try:
        facts: dict[str, Any] = json.loads((folder / "report.json").read_bytes())
    except (OSError, ValueError):
        return None
    return facts
