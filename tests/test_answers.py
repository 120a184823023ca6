"""Answers come back from MLflow as claims, from `medrec review` as decisions; what follows leaves in the same night."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import a_night, copy_home
from mlflow import MlflowClient
from reviewers import accept, key_file, known, person, sign, signer
from test_review import finished
from tiny import tiny_configuration, tiny_studies
from typer.testing import CliRunner

from medrec import agreement, answers, blind, config, privacy, verification
from medrec.answers import HOSTILE, SUPERSEDED, UNKNOWN_WORD, heard
from medrec.cli import app
from medrec.config import Configuration
from medrec.delivery import monitoring_run
from medrec.dicom import Pseudonyms
from medrec.errors import ConfigError, DataError
from medrec.home import Home
from medrec.reviewing import Answer, overdue, review
from medrec.schedule import Review
from medrec.store import Decision, Store
from medrec.tracking import Tracker

AT = "2026-03-01T02:00:00Z"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    people = [person("DOE", "reviewer").model_dump(), person("ROE", "reviewer").model_dump()]
    listed = json.loads(json.dumps(people))
    return tiny_configuration(tmp_path_factory.mktemp("own") / "own", people=listed, review={"blind_share": 0.5})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, own: Configuration) -> Path:
    """A home after a night over two studies, in `in` beside it."""
    place = tmp_path_factory.mktemp("done")
    tiny_studies(place / "in", 2)
    a_night(place / "in", place / "home", own)
    return place


@pytest.fixture
def home(done: Path, tmp_path: Path) -> Home:
    return copy_home(done / "home", tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home.store_url) as store:
        yield store


@pytest.fixture
def cases(store: Store) -> tuple[str, str]:
    first, second = (row.case for row in store.cases())
    return first, second


def client(home: Home) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home.mlflow_database}")


def tag(home: Home, store: Store, case: str, **tags: str) -> None:
    """What a person does in MLflow's pages."""
    row = store.case(case)
    assert row is not None
    for name, value in tags.items():
        client(home).set_tag(row.mlflow_run_id, f"review.{name}", value)


def shown(home: Home, store: Store, case: str) -> str | None:
    row = store.case(case)
    assert row is not None
    return client(home).get_run(row.mlflow_run_id).data.tags.get("medrec.review")


def sync(home: Home, store: Store, own: Configuration) -> answers.Synced:
    return answers.sync(home, store, Tracker(home, "medrec"), own.settings, answers.utc_now)


def problems(home: Home, store: Store) -> list[str]:
    found = [*verification.verify(home, store), *verification.verify_mlflow(home, store, "medrec")]
    return [str(p) for p in found]


# Claims


def test_a_tag_that_somebody_set_is_a_claim_which_releases_nothing_and_is_no_tampering(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    tag(home, store, cases[0], status="accepted", by="DOE", comment="fine")
    assert problems(home, store) == [], "before it was read"
    assert sync(home, store, own).claimed == 1
    (row,) = store.reviews(cases[0])
    assert (row.decision, row.by, row.comment, row.signed, row.problem) == ("accept", "DOE", "fine", False, "")
    assert store.released(cases[0]) is None
    assert agreement.agreement(store) == ()
    assert shown(home, store, cases[0]) == "accepted, claimed: nobody signed it"
    assert problems(home, store) == []
    assert sync(home, store, own).claimed == 0, "the same answer is taken once"
    tag(home, store, cases[0], status="pending")
    assert sync(home, store, own).claimed == 1
    assert shown(home, store, cases[0]) == "unreviewed"
    assert problems(home, store) == []


def test_two_different_answers_and_a_tag_against_a_signature_are_conflicts(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    tag(home, store, cases[0], status="accepted", by="A")
    sync(home, store, own)
    tag(home, store, cases[0], status="rejected", by="B")
    accept(store, cases[1], "DOE", AT)
    tag(home, store, cases[1], status="needs-edit", by="DOE")
    done = sync(home, store, own)
    states = store.review_states()
    assert states[cases[0]].conflict == "answers that differ"
    assert states[cases[1]].conflict == "a tag says something else"
    assert set(done.conflicts) == set(cases)
    assert store.released(cases[1]) == ("DOE", AT), "a tag takes nothing back that was signed"
    assert shown(home, store, cases[1]) == "accepted, signed by DOE (a tag says something else)"
    assert problems(home, store) == []


def claim(home: Home, store: Store, own: Configuration, case: str, decision: str, by: str) -> None:
    """What a person does with `medrec review` and no key."""
    review(Answer(case, Decision(decision), by, AT), home, store, own, None)


def test_a_tag_that_nobody_set_takes_no_answer_back_that_was_given_by_command(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    claim(home, store, own, cases[0], "reject", "ROE")
    accept(store, cases[1], "DOE", AT)
    claim(home, store, own, cases[1], "reject", "ROE")
    for _ in range(3):
        done = sync(home, store, own)
        assert (done.claimed, done.conflicts) == (0, (cases[1],))
    assert shown(home, store, cases[0]) == "rejected, claimed: nobody signed it"
    assert problems(home, store) == []


def test_a_tag_that_is_gone_takes_back_what_tags_said_of_that_person_alone(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    case = cases[0]
    tag(home, store, case, status="accepted", by="DOE")
    sync(home, store, own)
    claim(home, store, own, case, "reject", "ROE")
    for _ in range(2):
        assert sync(home, store, own).claimed == 0, "the tag says what it said before"
    tag(home, store, case, status="needs-edit", by="ROE")
    sync(home, store, own)
    tag(home, store, case, status="pending")
    assert [sync(home, store, own).claimed for _ in range(2)] == [1, 0]
    told = [(row.decision, row.by) for row in store.reviews(case)]
    assert told == [("accept", "DOE"), ("reject", "ROE"), ("edit", "ROE"), ("withdrawn", "ROE")]
    state = store.review_states()[case]
    assert (state.word, state.by, state.conflict) == ("rejected", "ROE", "answers that differ")
    assert problems(home, store) == []


HOSTILE_TEXTS = ["\x1b[2J", "\u202egnp.exe", "x" * 5000, "a\x00b", "\u200bzero"]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
@pytest.mark.parametrize("where", ["review.status", "review.by", "review.comment"])
def test_text_that_steers_hides_or_floods_is_no_answer_and_is_not_kept(
    store: Store, cases: tuple[str, str], where: str, text: str
) -> None:
    row = store.case(cases[0])
    assert row is not None
    answer = heard({"review.status": "accepted", where: text}, row, AT)
    assert (answer.decision, answer.problem) == (Decision.UNKNOWN, HOSTILE)
    assert (answer.by + answer.comment).isprintable()
    assert len(answer.by) <= 64
    assert store.claim_review(answer) is not None


def test_a_comment_may_have_lines_and_a_name_may_not(store: Store, cases: tuple[str, str]) -> None:
    row = store.case(cases[0])
    assert row is not None
    tags = {"review.status": "accepted\n", "review.by": "ROE", "review.comment": "one\ntwo"}
    assert heard(tags, row, AT).problem == ""
    assert heard(tags | {"review.by": "ROE\naccepted, signed by DOE"}, row, AT).problem == HOSTILE


@pytest.mark.parametrize(
    "word", ["accept", "ok", "yes", "accepted!", "REJECT", "<b>accepted</b>", "'; DROP TABLE reviews"]
)
def test_a_word_that_is_none_of_the_three_is_no_answer(store: Store, cases: tuple[str, str], word: str) -> None:
    row = store.case(cases[0])
    assert row is not None
    answer = heard({"review.status": word, "review.by": "DOE"}, row, AT)
    assert (answer.decision, answer.problem) == (Decision.UNKNOWN, UNKNOWN_WORD)


def test_an_answer_to_a_superseded_report_says_so(store: Store, cases: tuple[str, str]) -> None:
    row = store.case(cases[0])
    assert row is not None
    answer = heard({"review.status": " Accepted "}, replace(row, superseded_by="x"), AT)
    assert (answer.decision, answer.problem) == (Decision.ACCEPT, SUPERSEDED)


@pytest.mark.parametrize("where", ["a run of one's own", "the monitoring", "the night", "another case"])
def test_an_answer_counts_only_at_the_run_of_its_case(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str], where: str
) -> None:
    accept(store, cases[0], "DOE", AT)
    sync(home, store, own)
    tag(home, store, cases[0], status="rejected", by="REAL")
    row, other = store.case(cases[0]), store.case(cases[1])
    monitoring = Tracker(home, "medrec").monitoring(monitoring_run(store))
    assert row is not None
    assert other is not None
    assert other.mlflow_run_id is not None
    assert monitoring is not None
    true = client(home).get_run(row.mlflow_run_id)
    run_id = {
        "a run of one's own": lambda: client(home).create_run(true.info.experiment_id, 1).info.run_id,
        "the monitoring": lambda: monitoring.run_id,
        "the night": lambda: true.data.tags["mlflow.parentRunId"],
        "another case": lambda: other.mlflow_run_id,
    }[where]()
    for name, value in (("medrec.case", cases[0]), ("review.status", "accepted"), ("review.by", "FAKE")):
        client(home).set_tag(run_id, name, value)
    for claimed in (1, 0):
        done = sync(home, store, own)
        assert done.claimed == claimed
        assert [p for p in done.problems if "stands at a run that is not that of case" in p]
    assert [(r.decision, r.by) for r in store.reviews(cases[0])] == [("accept", "DOE"), ("reject", "REAL")]
    assert shown(home, store, cases[0]) == "accepted, signed by DOE (a tag says something else)"


def test_an_answer_about_an_erased_case_is_left_out_and_said(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    tag(home, store, cases[0], status="accepted")
    row = store.case(cases[0])
    assert row is not None
    accept(store, cases[1], "DOE", AT)
    store.erase(row.patient, (), (), "operator", AT)  # MLflow still has the run: the erasure was killed
    done = sync(home, store, own)
    assert done.problems == ["an answer in MLflow is about a case that is not here, or was erased; it is left out"]
    assert store.review_states().keys() == {cases[1]}


def test_reviews_go_with_an_erased_patient_and_stay_through_a_rotation(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    sign(store, cases[0], "reject", "DOE", AT, "Mrs Miller again")
    accept(store, cases[1], "DOE", AT)
    sync(home, store, own)
    privacy.rotate(home, store, own)
    assert store.released(cases[1]) == ("DOE", AT)
    assert problems(home, store) == []
    row = store.case(cases[0])
    assert row is not None
    privacy.erase(row.patient, home, store, own)
    assert store.review_states().keys() == {cases[1]}
    assert not [p for p in home.root.rglob("*.db*") if b"Miller" in p.read_bytes()]
    sync(home, store, own)
    assert problems(home, store) == []


# What MLflow shows


@pytest.mark.parametrize("purged", [False, True])
def test_a_deleted_run_is_named_and_all_other_reviews_are_heard_shown_and_counted(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str], purged: bool
) -> None:
    rows = sorted((row for case in cases if (row := store.case(case))), key=lambda row: row.case)
    for row in rows:
        accept(store, row.case, "DOE", AT)
    gone, other = rows
    client(home).delete_run(gone.mlflow_run_id)
    if purged:
        Tracker(home, "medrec").forget((gone.case,))
    tag(home, store, other.case, status="rejected", by="ROE")
    for _ in range(2):
        done = sync(home, store, own)
        assert done.problems == [
            f"the run of case {gone.case} was deleted in MLflow; where its review stands is not shown there"
        ]
        assert done.conflicts == (other.case,)
        assert done.counts == {"accepted": 2, "in conflict": 1}
    assert shown(home, store, other.case) == "accepted, signed by DOE (a tag says something else)"
    told = {str(r.facts["case"]) for r in store.ledger() if r.kind == "review shown"}
    assert told == {other.case}


def attack(home: Home, store: Store, case: str, name: str) -> None:
    row = store.case(case)
    assert row is not None
    monitoring, share = Tracker(home, "medrec").monitoring(monitoring_run(store)), f"agreement.tiny.{row.version}"
    assert monitoring is not None
    {
        "another tag": lambda: client(home).set_tag(row.mlflow_run_id, "medrec.review", "rejected, signed by DOE"),
        "no tag": lambda: client(home).delete_tag(row.mlflow_run_id, "medrec.review"),
        "a better share": lambda: client(home).log_metric(monitoring.run_id, share, 0.5, step=999999),
        "a metric of nobody": lambda: client(home).log_metric(monitoring.run_id, "quality", 1.0),
        "no monitoring": lambda: client(home).delete_run(monitoring.run_id),
        "a verdict there": lambda: client(home).set_tag(monitoring.run_id, "medrec.verdict", "finding"),
        "a description": lambda: client(home).set_tag(monitoring.run_id, "mlflow.note.content", "all is well"),
    }[name]()


def test_a_run_that_somebody_called_monitoring_is_not_written_to(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    accept(store, cases[0], "DOE", "2026-03-01T00:00:00Z")
    sync(home, store, own)
    first, row = monitoring_run(store), store.case(cases[1])
    assert row is not None
    tracker = Tracker(home, "medrec")
    client(home).set_tag(row.mlflow_run_id, "medrec.monitoring", tracker.worker)
    accept(store, cases[1], "DOE", "2026-04-01T00:00:00Z")
    sync(home, store, own)
    assert monitoring_run(store) == first
    (run,) = (r for r in tracker.runs() if r.run_id == row.mlflow_run_id)
    assert not any(name.startswith("agreement") for name in run.metrics)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("another tag", "medrec.review says what no review does"),
        ("no tag", "medrec.review is gone"),
        ("a better share", "monitoring: its metric agreement.tiny.* was changed"),
        ("a metric of nobody", "monitoring: its metric quality was added"),
        ("no monitoring", "monitoring: the run .* was deleted"),
        ("a verdict there", "monitoring: its tag medrec.verdict was added"),
        ("a description", "monitoring: its name or its description was changed"),
    ],
)
def test_what_mlflow_shows_of_reviews_cannot_be_changed_unnoticed(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str], name: str, words: str
) -> None:
    accept(store, cases[0], "DOE", AT)
    sync(home, store, own)
    assert problems(home, store) == []
    attack(home, store, cases[0], name)
    (problem,) = problems(home, store)
    assert re.search(words, problem)


def test_agreement_counts_signed_answers_by_version_and_month_with_its_interval(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    accept(store, cases[0], "DOE", "2026-03-01T00:00:00Z")
    sign(store, cases[1], "edit", "DOE", "2026-03-31T23:59:59Z")
    (march,) = agreement.agreement(store)
    assert (march.model, march.month, march.accepted, march.decided) == ("tiny", "2026-03", 1, 2)
    # Clopper and Pearson for 1 of 2: the roots of p^2 = 0.025 and (1 - p)^2 = 0.025
    assert (march.share.low, march.share.high) == pytest.approx((1 - 0.975**0.5, 0.975**0.5))
    sync(home, store, own)
    sync(home, store, own)
    run = Tracker(home, "medrec").monitoring(monitoring_run(store))
    assert run is not None
    assert run.name == "monitoring"
    name = f"agreement.tiny.{march.version}"
    points = [(m.step, m.value) for m in client(home).get_metric_history(run.run_id, name)]
    assert points == [(202603, 0.5)]
    sign(store, cases[1], "accept", "DOE", "2026-04-01T00:00:00Z")
    sync(home, store, own)
    points = sorted((m.step, m.value) for m in client(home).get_metric_history(run.run_id, name))
    assert points == [(202603, 0.5), (202603, 1.0), (202604, 1.0)]
    assert problems(home, store) == []


# What waits


def test_a_report_on_which_nobody_decided_in_time_is_counted_and_a_claim_is_no_decision(
    store: Store, own: Configuration, cases: tuple[str, str]
) -> None:
    now = datetime.now(UTC)
    assert overdue(store, own.settings, now + timedelta(days=6)) == ()
    late = now + timedelta(days=8)
    assert {(one.case, one.days) for one in overdue(store, own.settings, late)} == {(case, 8) for case in cases}
    accept(store, cases[0], "DOE", AT)
    row = store.reviews(cases[0])[0]
    store.claim_review(replace(row, case=cases[1], key=None, signature=None))
    assert [one.case for one in overdue(store, own.settings, late)] == [cases[1]]
    nobody = own.settings.model_copy(update={"people": ()})
    assert overdue(store, nobody, late) == (), "where nobody can sign, a claim is all there is"
    assert overdue(store, own.settings.model_copy(update={"review": None}), late) == ()


def test_the_blind_sample_is_drawn_once_a_month_by_the_key_and_of_all_cases(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        store.start_batch("night", AT)
        for number in range(40):
            finished(store, f"case {number}", f"patient {number}")  # in March
        rejected = "case 3"
        known(store, [person("DOE")], AT)
        sign(store, rejected, "reject", "DOE", AT)
        one, other = Pseudonyms(b"k" * 32), Pseudonyms(b"l" * 32)
        march, april, june = (datetime(2026, month, 3, tzinfo=UTC) for month in (3, 4, 6))
        assert blind.draw(store, one, 0.1, march, AT) == 0, "the month is not over"
        assert blind.draw(store, one, 0.1, datetime(2099, 1, 1, tzinfo=UTC), AT) == 4
        months = [record.facts["month"] for _, record in store.of_kinds("blind sample drawn")]
        assert months == ["2026-02", "2026-03"], "a clock that runs ahead ends no month that is to come"
        first = store.blind_audited()
        assert blind.draw(store, other, 0.9, april, AT) == 0, "a month is drawn once"
        assert blind.draw(store, one, 0.1, june, AT) == 0, "nothing was finished in April and May"
        assert store.blind_audited() == first
        every = list(store.cases())
        chosen = [frozenset(c.case for c in blind.sample(every, key, "2026-03", 0.1)) for key in (one, other)]
        assert chosen[0] == first
        assert chosen[1] != first, "who does not have the key cannot tell"
        drawn = {c.case for n in range(200) for c in blind.sample(every, Pseudonyms(bytes([n]) * 32), "2026-03", 0.1)}
        assert rejected in drawn
        assert drawn == {c.case for c in every}, "every case may be drawn"
        assert list(store.contradictions()) == []


# The commands


@pytest.fixture
def medrec(home: Home, own: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    folder = next(m.weights for m in own.cards).values()
    monkeypatch.setenv("MEDREC_HOME", str(home.root))
    monkeypatch.setenv("MEDREC_CONFIG", str(next(iter(folder)).parent.parent))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, list(words))
        if isinstance(result.exception, ConfigError | DataError):  # which the entry point makes 2
            assert code == 2, repr(result.exception)
            return "\n".join([str(result.exception), *getattr(result.exception, "problems", ())])
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_the_commands_sign_list_and_refuse(
    medrec: Callable[..., str], home: Home, store: Store, cases: tuple[str, str], tmp_path: Path
) -> None:
    key = str(key_file(tmp_path, signer("DOE")))
    thief = str(key_file(tmp_path, signer("THIEF")))
    one, two = cases
    assert "that is not the key of DOE" in medrec("review", one, "accept", "--by", "DOE", "--key", thief, code=2)
    assert "names nobody called X" in medrec("review", one, "accept", "--by", "X", "--key", thief, code=2)
    assert "no report of case" in medrec("review", "nope", "accept", "--by", "DOE", "--key", key, code=2)
    assert "goes with edit" in medrec("review", one, "accept", "--by", "DOE", "--mask", key, code=2)
    assert "claimed: nobody signed it" in medrec("review", one, "accept", "--by", "DOE")
    assert "accepted, signed by DOE" in medrec("review", one, "accept", "--by", "DOE", "--key", key)
    assert store.released(one) is not None
    assert "taken back for good" in medrec("review", two, "reject", "--by", "DOE", "--key", key, "--comment", "no")
    (wanted,) = store.wanted()
    assert (wanted.case, wanted.wants, wanted.why) == (two, "any", "rejected")
    assert "rejected" in medrec("labels", "list", "--wanted")
    assert "1 accepted" in medrec("review", "sync")
    listed = medrec("review", "list")
    assert "signed" in listed
    assert "1 rejected" in medrec("status")
    assert "signed with the key" in medrec("audit", "show", one)
    medrec("audit", "verify")
    page = home.reports / one / "report.html"
    page.write_text("<p>nothing marked</p>")
    told = medrec("review", one, "edit", "--by", "DOE", "--key", key, code=2)
    assert "about another report than the one on record" in told


def test_a_made_key_goes_into_the_configuration_as_it_is_printed(
    medrec: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = medrec("review", "make-key", "Dr. Ä Müller")
    block = printed[printed.index("people:") :]
    (told,) = yaml.safe_load(block)["people"]
    assert told["name"] == "Dr. Ä Müller"
    assert (tmp_path / "Dr._Ä_Müller.key").stat().st_mode & 0o077 == 0
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "medrec.yaml").write_text(
        f'accept_licences: ["CC BY-NC-SA 4.0", free use with citation]\n{block}'
    )
    assert config.load(tmp_path / "new").settings.people[0].key == told["key"]
    assert "there already" in medrec("review", "make-key", "Dr. Ä Müller", code=2)


def test_an_auditor_signs_that_nothing_was_found_and_nobody_else_does(
    medrec: Callable[..., str], home: Home, store: Store, own: Configuration, tmp_path: Path, done: Path
) -> None:
    key = str(key_file(tmp_path, signer("DOE")))
    assert "DOE is no auditor" in medrec("audit", "verify", "--by", "DOE", "--key", key, code=2)
    for part in (("--since", "2"), ("--without-mlflow",)):
        assert "looks at everything" in medrec("audit", "verify", *part, "--by", "DOE", "--key", key, code=2)
    assert "from record 2 on, without what MLflow shows" in medrec(
        "audit", "verify", "--since", "2", "--without-mlflow"
    )
    people = (*own.settings.people, person("AUDIT", "auditor"))
    store.change_people(people, "medrec.yaml", AT)
    position = store.position()
    store.audited(position, signer("AUDIT"), AT)
    last = list(store.ledger())[-1]
    assert (last.kind, last.facts["head"]) == ("ledger audited", position[1])
    assert problems(home, store) == []


def test_operator_promoter_and_auditor_sign_by_their_commands(
    medrec: Callable[..., str], store: Store, own: Configuration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"BOSS": "operator", "PROM": "promoter", "AUDIT": "auditor"}
    listed = [person(name, role).model_dump(mode="json") for name, role in names.items()]  # type: ignore[arg-type]
    folder = tmp_path / "other"
    shutil.copytree(Path(os.environ["MEDREC_CONFIG"]), folder)
    (folder / "medrec.yaml").write_text(yaml.safe_dump({"models": ["tiny"], "people": listed}))
    monkeypatch.setenv("MEDREC_CONFIG", str(folder))
    key = {name: str(key_file(tmp_path, signer(name))) for name in names}
    promote = ["models", "promote", "tiny", "--reason", "why", "--by", "PROM"]
    assert "signed with the private key of a promoter" in medrec(*promote, code=2)
    assert "not the key of PROM" in medrec(*promote, "--key", key["BOSS"], code=2)
    assert "in force already" in medrec(*promote, "--key", key["PROM"], code=2), "the signature is not what hinders"
    assert "3 people are on record, signed" in medrec("review", "enrol", "--by", "BOSS", "--key", key["BOSS"])
    assert set(store.register().people) == set(names)
    listed[1]["key"] = person("THIEF").key
    (folder / "medrec.yaml").write_text(yaml.safe_dump({"models": ["tiny"], "people": listed}))
    key["PROM"] = str(key_file(tmp_path, signer("PROM", "THIEF")))
    assert "no operator signed it; medrec review enrol" in medrec(*promote, "--key", key["PROM"], code=2)
    assert "signed by AUDIT" in medrec("audit", "verify", "--by", "AUDIT", "--key", key["AUDIT"])
    assert "AUDIT is no operator" in medrec("review", "enrol", "--by", "AUDIT", "--key", key["AUDIT"], code=2)
    medrec("audit", "verify")


def test_an_edited_mask_becomes_a_label_of_its_reviewer_unless_it_does_not_fit(
    medrec: Callable[..., str], home: Home, store: Store, cases: tuple[str, str], tmp_path: Path, done: Path
) -> None:
    key = str(key_file(tmp_path, signer("DOE")))
    made = nib.load(home.reports / cases[0] / "segmentation.nii.gz")
    marks = np.zeros(made.shape, np.uint8)
    marks[3:6, 4:8, 5] = 1
    nib.save(nib.nifti1.Nifti1Image(marks, made.affine), tmp_path / "edited.nii.gz")
    nib.save(nib.nifti1.Nifti1Image(marks[:-1], made.affine), tmp_path / "small.nii.gz")
    words = ["review", cases[0], "edit", "--by", "DOE", "--key", key, "--mask"]
    assert "medrec ingest DIR makes it so" in medrec(*words, str(tmp_path / "edited.nii.gz"), code=2)
    medrec("ingest", str(done / "in"))
    case = store.case(cases[0])
    assert case is not None
    assert "15 x 16 x 16 voxels" in medrec(*words, str(tmp_path / "small.nii.gz"), code=2)
    assert "no private key" in medrec(*words[:-2], key + "x", "--mask", str(tmp_path / "edited.nii.gz"), code=2)
    assert store.reviews(cases[0]) == ()
    assert "your mask is a label, edited-AI" in medrec(*words, str(tmp_path / "edited.nii.gz"))
    (label,) = store.labels()
    assert (label.origin, label.by, label.study) == ("edited-AI", "DOE", case.study)
    (row,) = store.reviews(cases[0])
    assert (row.decision, row.mask_sha256) == ("edit", label.mask_sha256)
    assert store.wanted() == ()
    assert problems(home, store) == []


def test_a_night_reads_answers_reports_what_is_overdue_and_the_next_does_not_forget(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str], done: Path
) -> None:
    tag(home, store, cases[1], status="rejected", by="somebody")
    accept(store, cases[0], "DOE", AT)
    with store._writing() as connection:  # as if it had been finished long ago
        connection.exec_driver_sql("UPDATE cases SET finished_at = '2026-01-01T00:00:00Z'")
    summary = a_night(done / "in", home.root, own)
    assert summary.reviews == {"accepted": 1, "rejected, claimed": 1, "overdue": 1}
    assert [one["case"] for one in summary.overdue] == [cases[1]]
    assert "1 reports have waited for a review for more than 7 days" in "\n".join(summary.warnings)
    assert shown(home, store, cases[0]) == "accepted, signed by DOE"


def test_a_night_says_when_the_people_who_may_sign_changed(
    home: Home, store: Store, own: Configuration, tmp_path: Path, done: Path
) -> None:
    assert set(store.register().people) == {"DOE", "ROE"}
    swapped = (person("DOE", key="thief"), person("BOSS", "operator"))
    other = replace(own, settings=own.settings.model_copy(update={"people": swapped}))
    told = "\n".join(a_night(done / "in", home.root, other).warnings)
    assert "new: BOSS; gone: ROE; other key or roles: DOE" in told
    told = "\n".join(a_night(done / "in", home.root, own).warnings)
    assert "no operator signed it; medrec review enrol" in told
    assert store.register().people["DOE"].key == person("DOE", key="thief").key
    assert problems(home, store) == []


def test_the_deployment_reads_answers_between_nights(
    home: Home, store: Store, own: Configuration, cases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.deployed import DEPLOYMENTS

    schedule = DEPLOYMENTS["review-sync"].schedule
    assert schedule(own.settings) is None
    often = own.settings.model_copy(update={"review": Review(cron="*/30 * * * *", timezone="Europe/Berlin")})
    assert schedule(often).cron == "*/30 * * * *"  # type: ignore[union-attr]
    monkeypatch.setenv("MEDREC_HOME", str(home.root))
    tag(home, store, cases[0], status="accepted")
    assert DEPLOYMENTS["review-sync"].flow.fn().message == "1 new answers, 0 in conflict"
    shutil.rmtree(home.mlflow_artifacts)  # nothing of it is needed
    with home.lock():
        assert "a night is at it" in DEPLOYMENTS["review-sync"].flow.fn().message
