"""Answers that people gave, read back from MLflow's tags, and what follows from all that was answered.

MLflow does not tell who set a tag: whatever stands there is a claim, and decides nothing. Owns `Synced`. Invariants: an
answer is understood in three words and nothing else; what would steer a terminal or hide is not kept; MLflow is told
where a review stands in our own words, from the store.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from medrec import blind, delivery, dispatch, reviewing
from medrec.config import Settings
from medrec.dicom import Pseudonyms
from medrec.errors import DataError, WorldError
from medrec.home import Home
from medrec.people import MAX_NAME
from medrec.report import Status
from medrec.reviewing import MAX_COMMENT
from medrec.shown import CASE, COMMENT, PENDING, REPORT, REVIEW, REVIEWER, STATUS, ShownRun
from medrec.store import CaseRow, Decision, ReviewRow, Store
from medrec.tracking import Tracker
from medrec.worklist import Overdue

SAID: Mapping[str, Decision] = {
    "accepted": Decision.ACCEPT, "rejected": Decision.REJECT, "needs-edit": Decision.EDIT,
    PENDING: Decision.WITHDRAWN, "": Decision.WITHDRAWN,
}  # fmt: skip
UNKNOWN_WORD = "none of accepted, rejected and needs-edit"
HOSTILE = "text that cannot be shown as it is, or too long"
SUPERSEDED = "superseded before it was answered"
SHOWN = "review shown"
Clock = Callable[[], str]


@dataclass(slots=True)
class Synced:
    """What a round found: answers that are new, blind labels asked for, cases in conflict, and where reviews stand."""

    claimed: int = 0
    drawn: int = 0
    conflicts: tuple[str, ...] = ()
    overdue: tuple[Overdue, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def sync(home: Home, store: Store, tracker: Tracker | None, settings: Settings, clock: Clock) -> Synced:
    """Read answers back, take rejected reports back, draw the blind sample, and tell MLflow where reviews stand.

    The caller holds the home. Without MLflow (`tracker` is None) all else is done. Raises WorldError.
    """
    done, now = Synced(), datetime.fromisoformat(clock())
    runs: dict[str, ShownRun] = {}
    if tracker is not None:
        for run in tracker.answered():
            if _hear(run, store, done, clock(), shared=tracker.is_elsewhere()):
                runs[run.tags[CASE]] = run
    for case in reviewing.rejected(store):
        dispatch.take_back(store, home, case, "quality", clock)
    if settings.review is not None:
        done.drawn = blind.draw(store, Pseudonyms.load(home.key), settings.review.blind_share, now, clock())
    _count(store, settings, done, now)
    if tracker is not None:
        try:
            done.problems.extend(_show(store, tracker, runs, clock))
            delivery.deliver_agreement(store, tracker)
        except WorldError as error:  # all else is done, and worth telling
            done.problems.append(f"{error}; where reviews stand is shown there later")
    return done


def sync_by_itself(home: Home, store: Store, settings: Settings) -> Synced:
    """A round beside the nights, on MLflow as it is; the caller holds the home. Raises WorldError."""
    tracker = None
    problems = []
    try:
        tracker = Tracker(home, settings.experiment, create=False)
    except WorldError as error:
        problems.append(f"{error}; only what was signed is looked at")
    done = sync(home, store, tracker, settings, utc_now)
    done.problems = problems + done.problems
    return done


def _count(store: Store, settings: Settings, done: Synced, now: datetime) -> None:
    states = store.review_states()
    done.overdue = reviewing.overdue(store, settings, now)
    done.conflicts = tuple(sorted(key for key, state in states.items() if state.conflict))
    counted = Counter(f"{s.word}{'' if s.signed else ', claimed'}" for s in states.values())
    done.counts = dict(sorted(counted.items()))
    done.counts |= {"in conflict": len(done.conflicts)} if done.conflicts else {}
    done.counts |= {"overdue": len(done.overdue)} if done.overdue else {}


def _hear(run: ShownRun, store: Store, done: Synced, at: str, *, shared: bool) -> bool:
    """Note what a run's tags answer, where that is new; False for a run that is not the one of its case."""
    row = store.case(run.tags[CASE])
    if row is None:
        if not shared:
            done.problems.append("an answer in MLflow is about a case that is not here, or was erased; it is left out")
        return False
    if row.mlflow_run_id != run.run_id:  # anybody may write a case's name to any run
        if row.mlflow_run_id is not None:
            done.problems.append(f"an answer in MLflow stands at a run that is not that of case {row.case}: left out")
        return False
    if row.status is not Status.ANALYSED:
        if run.tags.get(STATUS, PENDING) != PENDING:
            done.problems.append("an answer in MLflow is about a study without a report; it is left out")
        return True
    answer = heard(run.tags, row, at)
    if answer.decision is Decision.WITHDRAWN:
        before = [r for r in store.reviews(row.case) if r.by_tag]
        if not before or before[-1].decision is Decision.WITHDRAWN:
            return True
        answer = replace(answer, by=before[-1].by)  # the tag that is gone was theirs, whoever took it away
    try:
        done.claimed += store.claim_review(answer) is not None
    except DataError as error:  # erased since
        done.problems.append(str(error))
    return True


def heard(tags: Mapping[str, str], row: CaseRow, at: str) -> ReviewRow:
    """What the tags of a case's run answer: a claim, with what is wrong with it."""
    word, by, comment = (tags.get(name, "") for name in (STATUS, REVIEWER, COMMENT))
    decision = SAID.get(word.strip().casefold(), Decision.UNKNOWN)
    problem = UNKNOWN_WORD if decision is Decision.UNKNOWN else ""
    if decision is Decision.WITHDRAWN:
        by = comment = ""
    elif row.superseded_by is not None:
        problem = problem or SUPERSEDED
    lines = comment.replace("\n", " ")  # a comment may have several; a word or a name may not
    if _hostile(word.strip(), MAX_NAME) or _hostile(by.strip(), MAX_NAME) or _hostile(lines, MAX_COMMENT):
        decision, problem = Decision.UNKNOWN, HOSTILE
    report = tags.get(REPORT, "")
    return ReviewRow(
        "", row.case, report, "", decision, _plain(comment, MAX_COMMENT), None, _plain(by, MAX_NAME), at,
        problem=problem,
    )  # fmt: skip


def _hostile(text: str, most: int) -> bool:
    return len(text) > most or not text.isprintable()


def _plain(text: str, most: int) -> str:
    """Text as anything may show it: what is no printable character is a space."""
    return "".join(c if c.isprintable() else " " for c in text[:most]).strip()


def _show(store: Store, tracker: Tracker, runs: Mapping[str, ShownRun], clock: Clock) -> Iterator[str]:
    """Tell MLflow where each review stands, where it says something else, and put on record what it was told.

    Yields, in words, which run is gone: the others are told all the same.
    """
    told: dict[str, str] = {}
    for _, record in store.of_kinds(SHOWN, "delivery"):
        case = str(record.facts["case"])
        if record.kind == SHOWN:
            told[case] = str(record.facts["shown"])
        elif record.facts["to"] == "mlflow":
            told.pop(case, None)
    for case, state in sorted(store.review_states().items()):
        row = store.case(case)
        if row is None or row.mlflow_run_id is None:
            continue
        run = runs.get(case)
        stale = run is None or run.tags.get(REVIEW) != state.shown
        if stale and not tracker.show_review(row.mlflow_run_id, state.shown):
            yield f"the run of case {case} was deleted in MLflow; where its review stands is not shown there"
            continue
        if told.get(case) != state.shown:
            store.append(SHOWN, clock(), {"case": case, "to": "mlflow", "shown": state.shown})


def utc_now() -> str:
    """This moment in ISO-8601 UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
