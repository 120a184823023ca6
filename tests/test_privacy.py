"""People's rights: looked up on the record, erased without breaking the chain, renamed, kept for a court."""

import hmac
import io
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
import pytest
from conftest import RunNight, a_night, copy_home
from mlflow.entities import ViewType
from mlflow.tracking import MlflowClient
from test_night import small_study, with_version

from medrec import privacy, verification
from medrec.config import Configuration, Retention, load
from medrec.dicom import Pseudonyms
from medrec.dicom.identity import patient_of
from medrec.dicom.renaming import Renamed
from medrec.errors import ConfigError, DataError
from medrec.home import Home
from medrec.phantom import uid
from medrec.replay import replay
from medrec.store import Store

NAME, PATIENT, ACCESSION = "MUSTERMANN^ERIKA", "ID-4711-Q", "ACC-99-XY"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with Erika's case and another's; her files say who she is."""
    place = tmp_path_factory.mktemp("people")
    for path in small_study(place / "in" / "a", patient_name=NAME, patient_id=PATIENT, study_uid=uid("people", "a")):
        header = pydicom.dcmread(path)
        header.AccessionNumber = ACCESSION
        header.save_as(path)
    small_study(place / "in" / "b", patient_id="other", study_uid=uid("people", "b"), series_description="KNEE")
    a_night(place / "in", place / "home")
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of its own for each test."""
    shutil.copytree(finished / "in", tmp_path / "in")
    copy_home(finished / "home", tmp_path / "home")
    return tmp_path


@pytest.fixture
def home(place: Path) -> Home:
    return Home(place / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home.store_url) as store:
        yield store


def hers(home: Home, store: Store) -> tuple[str, str]:
    """(pseudonym, case)"""
    patient = patient_of(Pseudonyms.load(home.key), PATIENT)
    (case,) = store.of_patient(patient)
    return patient, case


def problems(home: Home, store: Store) -> list[str]:
    found = [*verification.verify(home, store), *verification.verify_mlflow(home, store, "medrec")]
    return [str(p) for p in found]


# Look-ups


def test_a_case_leads_to_its_patient_and_the_look_up_is_on_record(place: Path, home: Home, store: Store) -> None:
    _, case = hers(home, store)
    found = privacy.look_up(case, place / "in", home, store)
    assert (found.name, found.patient_id, found.accession) == (NAME, PATIENT, ACCESSION)
    last = store.about(f"case {case}")[-1][1]
    assert (last.kind, last.facts["how"], last.facts["found"]) == ("identity looked up", "whois", True)
    assert NAME.encode() not in last.body
    (place / "empty").mkdir()
    with pytest.raises(DataError, match="no file of case"):
        privacy.look_up(case, place / "empty", home, store)
    assert store.about(f"case {case}")[-1][1].facts["found"] is False
    assert problems(home, store) == []


def test_an_accession_number_leads_to_its_cases_and_is_not_written_down(place: Path, home: Home, store: Store) -> None:
    _, case = hers(home, store)
    assert [row.case for row in privacy.find_accession(f"{ACCESSION}\n", place / "in", home, store)] == [case]
    assert privacy.find_accession("nobody's", place / "in", home, store) == ()
    for record in store.ledger():
        assert ACCESSION.encode() not in record.body


# Erasure


def everything(home: Home) -> bytes:
    return b"".join(str(p).encode() + p.read_bytes() for p in sorted(home.root.rglob("*")) if p.is_file())


def test_an_erased_patient_is_gone_everywhere_and_the_chain_still_verifies(
    place: Path, home: Home, store: Store, run_night: RunNight
) -> None:
    patient, case = hers(home, store)
    row = store.case(case)
    assert row is not None
    salt = store.salt(patient)
    files = [p.read_bytes() for p in (place / "in" / "a").iterdir()]
    import hashlib

    digests = [hashlib.sha256(data).hexdigest() for data in files]
    done = privacy.erase(patient, home, store, load())
    assert (done.cases, done.left) == ((case,), ())
    assert problems(home, store) == []
    assert not (home.reports / case).exists()
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    ids = [e.experiment_id for e in client.search_experiments()]
    assert not client.search_runs(ids, f"tags.`medrec.case` = '{case}'", ViewType.ALL)
    store.close()
    left = everything(home)
    for gone in (row.study, salt, *digests):
        assert [p.name for p in home.root.rglob("*") if p.is_file() and gone.encode() in p.read_bytes()] == []
    # The record that stays tells nothing, even to somebody who has the key and her files, without the salt.
    assert hmac.new(salt.encode(), digests[0].encode(), "sha256").hexdigest().encode() in left
    with Store.open(home.store_url) as again:
        with pytest.raises(DataError, match="erased"):
            replay(case, place / "in", home, again)
        assert again.erased_patients() == {patient}
    summary = run_night(place / "in")
    assert [c.status for c in summary.cases] == ["already done"]
    assert {r["reason"] for r in summary.refusals} == {"erased at the patient's request"}
    assert summary.files["refused"] == len(files)


def test_what_a_killed_erasure_left_is_named_and_taken_away_by_another(home: Home, store: Store) -> None:
    patient, case = hers(home, store)
    shutil.copytree(home.reports / case, home.root / "kept-aside")
    store.erase(patient, (), (), "somebody", "2026-03-01T02:00:00Z")
    assert any("still there" in p for p in problems(home, store))
    assert privacy.erase(patient, home, store, load()).cases == ()
    assert problems(home, store) == []


def test_models_that_were_trained_on_the_patient_are_listed(home: Home, store: Store) -> None:
    patient, case = hers(home, store)
    pixels = json.loads((home.reports / case / "report.json").read_text())["pixels_sha256"]["flair"]
    own = load()
    cards = tuple(
        type(c)(c.card.model_copy(update={"trained_on": (pixels,), "version": "7.0.0"}), c.weights) for c in own.cards
    )
    done = privacy.erase(patient, home, store, Configuration(own.settings, cards[:1]))
    assert done.models == (f"{cards[0].card.name} 7.0.0",)


@pytest.mark.parametrize("who", [0, 1])
def test_a_study_of_several_patients_is_refused_and_erased_with_any_of_them(
    run_night: RunNight, tmp_path: Path, who: int
) -> None:
    ids = (PATIENT, "ID-0815-Z")
    for number, path in enumerate(small_study(tmp_path / "in", study_uid=uid("people", "mixed"))):
        header = pydicom.dcmread(path)
        header.PatientID = ids[number % 2]
        header.save_as(path)
    (line,) = run_night(tmp_path / "in").cases
    assert line.reason.startswith("one study, several patients")
    home = Home(tmp_path / "home")
    with Store.open(home.store_url) as store:
        patient = patient_of(Pseudonyms.load(home.key), ids[who])
        assert privacy.erase(patient, home, store, load()).cases == (line.case,)
        assert problems(home, store) == []
        store.close()
    assert [p for p in home.root.rglob("*") if p.is_file() and line.study.encode() in p.read_bytes()] == []


def test_a_patient_nobody_knows_cannot_be_erased(home: Home, store: Store) -> None:
    with pytest.raises(DataError, match="no case of patient"):
        privacy.erase("nobody", home, store, load())


# Holds and retention


def keeping(days: int) -> Configuration:
    own = load()
    rules = Retention(reports_days=days, batches_days=days)
    return Configuration(own.settings.model_copy(update={"retention": rules}), own.cards)


def test_a_hold_stops_erasure_and_retention_until_it_is_lifted(home: Home, store: Store) -> None:
    patient, case = hers(home, store)
    later = datetime.now(UTC) + timedelta(days=11)
    privacy.hold(case, "court", store)
    with pytest.raises(DataError, match="on hold"):
        privacy.erase(patient, home, store, load())
    assert any("kept, on hold (court)" in line for line in privacy.prune(home, store, keeping(10), later))
    assert (home.reports / case).is_dir()
    privacy.hold(case, "done", store, lift=True)
    privacy.prune(home, store, keeping(10), later)
    assert not (home.reports / case).exists()
    assert list(home.batches.iterdir()) == []
    assert problems(home, store) == []
    with pytest.raises(DataError, match=r"pruned on 20.* by the rule 10 days"):
        replay(case, home.root, home, store)


def test_nothing_is_cleared_away_before_its_time_unasked_or_by_a_dry_run(home: Home, store: Store) -> None:
    _, case = hers(home, store)
    now = datetime.now(UTC)
    assert privacy.prune(home, store, keeping(10), now + timedelta(days=9)) == []
    assert privacy.prune(home, store, load(), now + timedelta(days=9999)) == []
    assert privacy.prune(home, store, keeping(10), now + timedelta(days=11), dry=True)
    assert (home.reports / case).is_dir()


# The key


def test_after_a_rotation_every_name_is_another_and_nothing_is_analysed_again(
    place: Path, home: Home, store: Store, run_night: RunNight
) -> None:
    patient, case = hers(home, store)
    before = store.case(case)
    assert before is not None
    old_key = home.key.read_bytes()
    assert privacy.rotate(home, store, load()) == 5  # two studies, two patients, their scanner
    row = store.case(case)
    assert row is not None
    assert (row.study != before.study, row.patient != patient) == (True, True)
    assert row.patient == patient_of(Pseudonyms.load(home.key), PATIENT)
    assert row.patient != patient_of(Pseudonyms(old_key), PATIENT)
    renamed = Renamed.load(home.root, home.key)
    assert (renamed.original(row.study), renamed.original(row.patient)) == (before.study, patient)
    assert before.study.encode() not in home.renamed.read_bytes()
    assert problems(home, store) == []
    assert [c.status for c in run_night(place / "in").cases] == ["already done", "already done"]
    assert privacy.look_up(case, place / "in", home, store).patient_id == PATIENT
    assert replay(case, place / "in", home, store).agrees
    run_night(place / "in", reanalyse=True, own=with_version(load(), "9.0.0"))
    assert problems(home, store) == []  # of what was made after a rotation, too
    privacy.rotate(home, store, load())
    again = store.case(case)
    assert again is not None
    assert Renamed.load(home.root, home.key).original(again.study) == before.study
    assert problems(home, store) == []


@pytest.mark.parametrize("killed_at", ["before the store", "after the store", "between the files"])
def test_a_rotation_that_was_killed_is_finished_or_undone(
    home: Home, store: Store, killed_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, case = hers(home, store)
    before = store.case(case)
    real, calls = privacy.settle, []

    def killed(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            return
        if killed_at == "between the files":
            (home.root / "key.next").replace(home.key)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(privacy, "settle", killed)
        if killed_at == "before the store":
            patch.setattr(store, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            privacy.rotate(home, store, load())
    real(home, store)
    after = store.case(case)
    assert before is not None
    assert after is not None
    assert (after.study == before.study) == (killed_at == "before the store")
    assert patient_of(Pseudonyms.load(home.key), PATIENT) == after.patient
    assert [str(p) for p in verification.verify(home, store)] == []


def test_an_older_key_is_refused_after_a_rotation(home: Home, store: Store) -> None:
    old = home.key.read_bytes()
    privacy.rotate(home, store, load())
    home.key.write_bytes(old)
    with pytest.raises(ConfigError, match="copy key and renamed"):
        privacy.settle(home, store)


def test_find_reads_the_number_from_stdin_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from medrec.cli import app

    words = ["find", "--accession", "--input", str(place / "in"), "--home", str(place / "home")]
    done = CliRunner().invoke(app, words, input=f"{ACCESSION}\n")
    assert done.exit_code == 0
    assert "finding" in done.stdout
    assert io.StringIO(done.stdout).readline().split()[0] in {p.name for p in (place / "home" / "reports").iterdir()}
