"""A reviewer's answer to a report: read, checked, signed, and what follows from it; and what waits for one.

Owns the way of `medrec review CASE`. Invariants: what is signed is the report on the disk, which is the one on record;
an answer without a key is only a claim; a mask fits the pixels that the report is of, or nothing of the answer is
taken.
"""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from medrec.config import Configuration, Settings
from medrec.errors import ConfigError, DataError
from medrec.home import Home, sha256_of
from medrec.labels import adding, masks
from medrec.people import Person, name_problem
from medrec.report import Status
from medrec.signing import Signer
from medrec.splits import Side
from medrec.store import CaseRow, Decision, Label, LabelRequest, Origin, ReviewRow, Store
from medrec.store.answers import UNREVIEWED
from medrec.store.reviews import ANY, BLIND, MEDREC_YAML, request_of
from medrec.worklist import Overdue

MAX_COMMENT = 2000


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reviewer says of a report; `segments` names what counts in a mask of several."""

    case: str
    decision: Decision
    by: str
    at: str
    comment: str = ""
    mask: Path | None = None
    segments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an answer: its row, the label that it made, or the one that it asks for."""

    row: ReviewRow
    label: Label | None
    wanted: LabelRequest | None


def review(
    answer: Answer, home: Home, store: Store, configuration: Configuration, signer: Signer | None
) -> Taken | None:
    """Take an answer, signed where there is a signer; None for a claim that was made before.

    Raises ConfigError for what was asked for wrongly, DataError for an answer that cannot be taken.
    """
    _check(answer, signer)
    case = store.case(answer.case)
    if case is None or case.status is not Status.ANALYSED:
        raise DataError(f"there is no report of case {answer.case} to review")
    digests = _read(home, case)
    label = own = None
    if signer is not None:
        own = _named(configuration.settings, signer)
        label = _label(answer, home, store, configuration, case)
    row = ReviewRow(
        "", answer.case, digests["report.json"], digests["report.html"], answer.decision, answer.comment.strip(),
        None if label is None else label.mask_sha256, answer.by, answer.at,
    )  # fmt: skip
    if signer is None:
        claimed = store.claim_review(row)
        return None if claimed is None else Taken(claimed, None, None)
    wants = _wanted(answer, store, case) if label is None else None
    try:
        return Taken(store.sign_review(row, signer, label, wants, own), label, wants)
    except DataError:
        if label is not None:
            masks.forget_unnamed(home, store)
        raise


def _check(answer: Answer, signer: Signer | None) -> None:
    problems = [f"--by: {why}" for why in (name_problem(answer.by),) if why]
    if len(answer.comment) > MAX_COMMENT or not _plain(answer.comment):
        problems.append(f"--comment: wanted at most {MAX_COMMENT} printable characters")
    if answer.mask is not None and answer.decision is not Decision.EDIT:
        problems.append("--mask goes with edit: it says what should have been marked")
    if answer.mask is not None and signer is None:
        problems.append("--mask: only a signed answer makes a label; name your key with --key")
    if answer.mask is not None and not answer.mask.is_file():
        problems.append("--mask: there is no such file")
    if problems:
        raise ConfigError(problems)


def _plain(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def _read(home: Home, case: CaseRow) -> dict[str, str]:
    """The digests of the report as it lies there: what is signed is what can be read."""
    folder = home.reports / case.case
    try:
        return {name: sha256_of(folder / name) for name in ("report.json", "report.html")}
    except OSError:
        raise DataError(f"the report of case {case.case} is not in this home: it was cleared away") from None


def enrol_own(store: Store, settings: Settings, signer: Signer, at: str) -> None:
    """Put the signer on record as medrec.yaml has them; the others stay as they are on record.

    Raises ConfigError when medrec.yaml does not name them with this key, DataError when an operator must sign first.
    """
    person = _named(settings, signer)
    register = store.register()
    if register.people.get(person.name) != person:
        store.change_people({**register.people, person.name: person}.values(), MEDREC_YAML, at)


def enrol(store: Store, settings: Settings, signer: Signer, at: str) -> bool:
    """Put the people of medrec.yaml on record with an operator's signature; False when they are. Raises as above."""
    _named(settings, signer)
    return store.change_people(settings.people, MEDREC_YAML, at, signer)


def note_people(store: Store, settings: Settings, at: str) -> str:
    """Put the people of medrec.yaml on record, and say what is new, or why they were not taken; "" for nothing new."""
    before = store.register().people
    now = {p.name: p for p in settings.people}
    if not before and not now:
        return ""
    try:
        if not store.change_people(settings.people, MEDREC_YAML, at):
            return ""
    except DataError as error:
        return str(error)
    changed = sorted(n for n in before.keys() & now.keys() if before[n] != now[n])
    told = [("new", sorted(now.keys() - before.keys())), ("gone", sorted(before.keys() - now.keys()))]
    words = [f"{what}: {', '.join(names)}" for what, names in [*told, ("other key or roles", changed)] if names]
    return f"who may sign changed with medrec.yaml, and nobody signed that: {'; '.join(words)}" if before else ""


def _named(settings: Settings, signer: Signer) -> Person:
    person = next((p for p in settings.people if p.name == signer.name), None)
    if person is None:
        raise ConfigError([f"--by: medrec.yaml names nobody called {signer.name} under people:"])
    if person.key != signer.key:
        raise ConfigError([f"--key: that is not the key of {signer.name}; medrec.yaml names another one"])
    return person


def _label(answer: Answer, home: Home, store: Store, configuration: Configuration, case: CaseRow) -> Label | None:
    """The label that an edited mask makes, checked against the pixels that the report is of."""
    if answer.mask is None:
        return None
    cards = tuple(m.card for m in configuration.cards if m.card.name == case.model)
    if not cards:
        raise DataError(f"--mask: the card {case.model} is not configured any more")
    wish = adding.Wish(answer.by, Origin.EDITED_AI, answer.at, cards, answer.segments, nothing_there=True)
    label = adding.one(answer.mask, home, store, wish, case.study)
    report = json.loads((home.reports / case.case / "report.json").read_bytes())
    if label.pixels_sha256 not in report["pixels_sha256"].values():
        raise DataError("--mask: the image that is known was not what the report is of: other files came since")
    return label


def _wanted(answer: Answer, store: Store, case: CaseRow) -> LabelRequest | None:
    """A label in the place of the network's; blind, where the patient may be tested on."""
    if answer.decision is Decision.ACCEPT:
        return None
    why = "rejected" if answer.decision is Decision.REJECT else "needs an edit"
    locked = store.sides().get(case.patient) is Side.TEST
    return request_of(case, BLIND if locked else ANY, why, answer.by, answer.at)


def overdue(store: Store, settings: Settings, now: datetime) -> tuple[Overdue, ...]:
    """The cases in force on which nobody decided in time, oldest first.

    Where medrec.yaml names a reviewer only a signed answer is a decision, else a claim is too.
    """
    if settings.review is None or settings.review.due_days is None:
        return ()
    before = now - timedelta(days=settings.review.due_days)
    signed = any("reviewer" in p.roles for p in settings.people)
    states = store.review_states()
    answered = {key for key, s in states.items() if (s.signed if signed else s.word != UNREVIEWED)}
    return tuple(
        Overdue(row.case, row.study, (now - datetime.fromisoformat(row.finished_at)).days)
        for row in store.in_force()
        if row.case not in answered and datetime.fromisoformat(row.finished_at) < before
    )


def rejected(store: Store) -> tuple[str, ...]:
    """The cases that a signed answer rejects."""
    return tuple(key for key, s in store.review_states().items() if s.signed and s.word == "rejected")


def overdue_words(count: int, settings: Settings) -> str:
    """How many reports are overdue, for an operator."""
    days = settings.review.due_days if settings.review is not None else None
    return f"{count} reports have waited for a review for more than {days} days: medrec review list --overdue"
