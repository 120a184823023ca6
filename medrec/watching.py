"""medrec looks at itself: did what comes in or goes out change, and does all that is checked hold.

Owns `Looked`, and `CHECKS`: another part of medrec adds a line there. What changed is on record once, shown in the
monitoring run in MLflow, and told. Reads no pixels. Invariants: an alarm stands in the ledger before it is shown or
told; who is told hears counts and words of ours; a check that cannot be made says so and stops no other.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from medrec import delivery, notices, reviewing, verification
from medrec.agreement import Points
from medrec.config import Configuration, Settings
from medrec.dicom.renaming import Renamed
from medrec.drift import Alarm, Group, Panel, Rules, Seen, Stream, watch
from medrec.errors import DataError, WorldError
from medrec.home import Home
from medrec.notices import Notice
from medrec.observed import is_answer
from medrec.outputs import monitoring
from medrec.schedule import Monitoring
from medrec.store import SeenCase, Store
from medrec.tracking import Tracker

DRIFT = "drift found"
PAGE, PART = "monitoring.html", "watch"
UNKNOWN = "unknown"
DEVICE_DIGITS = 6  # of a device's pseudonym: enough to tell the scanners of one home apart

Check = Callable[[Home, Store, Settings, datetime], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found: `alarms` are new ones in words, `checks` sentences by check, `told` what could not be told."""

    at: str
    studies: int
    streams: int
    learnt: int
    highest: float
    alarms: tuple[str, ...]
    checks: Mapping[str, tuple[str, ...]]
    told: str

    @property
    def exit_code(self) -> int:
        """1 when somebody should look."""
        return 1 if self.alarms or any(self.checks.values()) else 0

    def to_json(self) -> str:
        """One JSON object, on several lines."""
        return json.dumps(asdict(self), indent=1)


def ledger_holds(home: Home, store: Store, settings: Settings, now: datetime) -> tuple[str, ...]:
    """What `medrec audit verify` would name; while a night writes, files stand there before their records."""
    found = [*verification.verify(home, store), *verification.verify_mlflow(home, store, settings.experiment)]
    if home.is_busy():
        return ()
    return tuple(f"{problem.where}: {problem.what}" for problem in found)


def nobody_waits(home: Home, store: Store, settings: Settings, now: datetime) -> tuple[str, ...]:
    """Reports on which nobody decided in time."""
    late = reviewing.overdue(store, settings, now)
    return (reviewing.overdue_words(len(late), settings),) if late else ()


CHECKS: dict[str, Check] = {"ledger": ledger_holds, "reviews": nobody_waits}


def look(home: Home, store: Store, configuration: Configuration, now: datetime) -> Looked:
    """Watch and check, put what is new on record, show it in MLflow and tell it."""
    settings = configuration.settings
    checked = {name: _checked(check, home, store, settings, now) for name, check in CHECKS.items()}
    panel = watched(home, store, settings.monitoring)
    names = _Names.of(home, store, settings.monitoring)
    new = tuple(names.words(alarm) for alarm in panel.alarms)
    for alarm, words in zip(panel.alarms, new, strict=True):
        store.append(DRIFT, _iso(now), _facts(alarm, words))
    every = alarms(store)
    page = monitoring.page(panel, names.group, every, checked, _iso(now))
    day = int(f"{now.astimezone(UTC):%Y%m%d}")
    points = {f"{PART}.{name}": [(day, v)] for name, v in _metrics(panel, len(every), checked).items()}
    problem = _shown(home, store, settings, points, {PAGE: page})
    checked |= {"MLflow": (problem,)} if problem else {}
    told = notices.of_drift(Counter(a.stream.group.model for a in panel.alarms)) + _of_checks(checked)
    evidence = [line.evidence for line in panel.lines if line.evidence is not None]
    return Looked(
        at=_iso(now),
        studies=len(store.observed()),
        streams=len(panel.lines),
        learnt=len(evidence),
        highest=max(evidence, default=0.0) / panel.limit if panel.limit else 0.0,
        alarms=new,
        checks=checked,
        told=notices.send(settings.notify, None, told),
    )


def alarms(store: Store) -> tuple[tuple[str, str], ...]:
    """When something was found to have changed, and what, oldest first."""
    found = []
    for _, record in store.of_kinds(DRIFT):
        with suppress(KeyError, ValueError):
            found.append((record.at, str(record.facts["text"])))
    return tuple(found)


def watched(home: Home, store: Store, rules: Monitoring) -> Panel:
    """How everything stands; what is on record as an alarm already begins anew after it."""
    original = Renamed.load(home.root, home.key).original
    since: dict[Stream, int] = {}
    for _, record in store.of_kinds(DRIFT):
        with suppress(KeyError, ValueError):  # a spoilt record is for `audit verify` to name
            facts = record.facts
            group = Group(*(str(facts[name]) for name in Group._fields))
            since[Stream(group, str(facts["feature"]))] = int(str(facts["number"]))
    wanted = Rules(rules.reference, rules.false_alarms_a_year, rules.studies_a_year)
    return watch(_seen(store.observed(), original), wanted, since)


def _seen(cases: tuple[SeenCase, ...], original: Callable[[str], str]) -> Iterator[Seen]:
    """Each study once: what came in by model, what was answered by its version too, which may change."""
    known: set[tuple[str, str]] = set()
    for one in cases:
        row, observed = one.row, one.observed
        if row.model is None:
            continue
        site, scanner = original(observed.site) or UNKNOWN, _scanner(observed.scanner, original(observed.device))
        for answers, model in ((False, row.model), (True, f"{row.model} {row.version}")):
            values = {name: v for name, v in observed.values.items() if is_answer(name) == answers}
            if values and (row.study, model) not in known:
                known.add((row.study, model))
                yield Seen(one.number, row.case, row.finished_at, Group(model, site, scanner), values)


def _scanner(words: str, device: str) -> str:
    return " ".join(part for part in (words, device[:DEVICE_DIGITS]) if part) or UNKNOWN


@dataclass(frozen=True, slots=True)
class _Names:
    """What sites are called: by the operator, or by their present pseudonym."""

    sites: Mapping[str, str]

    @classmethod
    def of(cls, home: Home, store: Store, settings: Monitoring) -> "_Names":
        original = Renamed.load(home.root, home.key).original
        now = {one.observed.site for one in store.observed()} - {""}
        return cls({original(site): settings.sites.get(site, f"site {site}") for site in now})

    def group(self, group: Group) -> str:
        """A group in words."""
        return f"{group.model}, {self.sites.get(group.site, 'site unknown')}, scanner {group.scanner}"

    def words(self, alarm: Alarm) -> str:
        """An alarm in one sentence."""
        return (
            f"{self.group(alarm.stream.group)}: {alarm.stream.feature!r} changed about {alarm.since[:10]}, from "
            f"{alarm.before:.4g} on average of {alarm.studies_before} studies to {alarm.after:.4g} of "
            f"{alarm.studies_after}"
        )


def _facts(alarm: Alarm, words: str) -> dict[str, object]:
    facts: dict[str, object] = {**alarm.stream.group._asdict(), "feature": alarm.stream.feature}
    facts |= {"number": alarm.number, "text": words, "limit": round(alarm.limit)}
    return facts | {"evidence": round(min(alarm.evidence, 1e15))}


def _checked(check: Check, home: Home, store: Store, settings: Settings, now: datetime) -> tuple[str, ...]:
    try:
        return check(home, store, settings, now)
    except (WorldError, DataError) as error:
        return (f"not checked: {error}",)


def _metrics(panel: Panel, alarms: int, checks: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    evidence = [line.evidence for line in panel.lines if line.evidence is not None]
    found = {"alarms": float(alarms), "streams": float(len(panel.lines)), "streams_learnt": float(len(evidence))}
    found["highest_evidence"] = max(evidence, default=0.0) / panel.limit if panel.limit else 0.0
    return found | {f"problems_{name}": float(len(problems)) for name, problems in checks.items()}


def _shown(home: Home, store: Store, settings: Settings, points: Points, pages: Mapping[str, str]) -> str:
    """Bring it to MLflow; returns why that could not be done, "" when it was."""
    try:
        delivery.deliver_monitoring(store, Tracker(home, settings.experiment), PART, points, pages)
    except WorldError as error:
        return f"{error}; shown with the next look"
    return ""


def _of_checks(checks: Mapping[str, tuple[str, ...]]) -> tuple[Notice, ...]:
    return tuple(notices.of_check(name, len(problems)) for name, problems in checks.items() if problems)


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
