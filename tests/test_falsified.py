"""What somebody with the whole home would touch to make a report say something else: each is noticed and named."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import a_night, copy_home
from mlflow.tracking import MlflowClient
from test_night import small_study

from medrec import privacy, story, verification
from medrec.config import Retention, load
from medrec.errors import ConfigError
from medrec.home import Home
from medrec.shown import ShownRun
from medrec.store import Store
from medrec.tracking import Tracker

Attack = Callable[[Home], object]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("falsified")
    small_study(place / "in")
    a_night(place / "in", place / "home")
    return place


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Home:
    return copy_home(finished / "home", tmp_path / "home")


def problems(home: Home) -> str:
    with Store.open(home.store_url) as store:
        found = [*verification.verify(home, store), *verification.verify_mlflow(home, store, "medrec")]
    return "\n".join(str(p) for p in found)


def client(home: Home) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home.mlflow_database}")


def run_of(home: Home, tag: str) -> ShownRun:
    return next(run for run in Tracker(home, "medrec", create=False).runs() if tag in run.tags)


def case_run(home: Home) -> ShownRun:
    return run_of(home, "medrec.case")


def night_run(home: Home) -> ShownRun:
    return run_of(home, "medrec.ledger_head")


def sql(home: Home, statement: str, *values: str, database: str = "medrec.db") -> None:
    with sqlite3.connect(home.root / database) as connection:
        connection.execute(statement, values)


def stranger(home: Home, name: str, **tags: str) -> None:
    experiment = client(home).get_experiment_by_name("medrec")
    assert experiment is not None
    client(home).create_run(experiment.experiment_id, tags={k.replace("__", "."): v for k, v in tags.items()})


def a_file(pattern: str) -> Callable[[Home], Path]:
    return lambda home: next(home.root.glob(pattern))


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoilt(pattern: str) -> Attack:
    return lambda home: spoil(next(home.root.glob(pattern)))


def write(pattern: str, name: str) -> Attack:
    def attack(home: Home) -> None:
        path = next(home.root.glob(pattern)) / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("nothing marked")

    return attack


def copied(suffix: str) -> Attack:
    def attack(home: Home) -> None:
        (folder,) = home.outbox.iterdir()
        shutil.copytree(folder, folder.with_name(folder.name + suffix))

    return attack


def added_version(home: Home) -> None:
    version = client(home).create_model_version("medrec-phantom", str(home.root))
    client(home).set_registered_model_alias("medrec-phantom", "champion", version.version)


MODEL = "mlartifacts/models/phantom/*"
RUN = "mlartifacts/runs/*/artifacts"
SUMMARY = "replace(summary, 'finding', 'nothing marked')"
DELIVERED = """INSERT INTO deliveries
("case", destination, kind, state, why, warnings, attempts, created_at, changed_at)
SELECT "case", 'pacs', 'results', 'confirmed', '', '', 1, '', '' FROM cases"""

# What is done, and the words that name it.
ATTACKS: dict[str, tuple[Attack, str]] = {
    "a night's summary is changed": (spoilt("batches/*.json"), "in batches: its bytes changed"),
    "a night's summary is gone": (lambda h: a_file("batches/*")(h).unlink(), "in batches: it is gone"),
    "a night is made up": (write("batches", "20200101T000000Z-aaaa.json"), "no record tells of this file"),
    "its row is changed": (lambda h: sql(h, f"UPDATE batches SET summary = {SUMMARY}"), "summary in the store"),
    "its start is changed": (lambda h: sql(h, "UPDATE batches SET started_at = '2020'"), "times in the store"),
    "a row of a night is made up": (
        lambda h: sql(h, "INSERT INTO batches VALUES ('2020', '', '', '{}', NULL)"),
        "night 2020: the store has it, but no record",
    ),
    "batch.json in MLflow": (
        lambda h: spoil(Path(night_run(h).place) / "batch.json"), "artifact batch.json was changed",
    ),
    "a night's metric": (
        lambda h: client(h).log_metric(night_run(h).run_id, "cases_analysed", 9), "metric cases_analysed was changed",
    ),
    "a night's name": (
        lambda h: client(h).update_run(night_run(h).run_id, name="night 2020"), "night .*its name was changed",
    ),
    "an artifact beside a report": (write(RUN, "corrected.html"), "artifact corrected.html was added"),
    "an artifact in a folder": (write(RUN, "new/report.html"), "artifact new/report.html was added"),
    "a parameter": (
        lambda h: client(h).log_param(case_run(h).run_id, "radiologist", "agrees"), "parameter radiologist was added",
    ),
    "a metric": (lambda h: client(h).log_metric(case_run(h).run_id, "dice", 1), "metric dice was added"),
    "a tag of ours": (
        lambda h: client(h).set_tag(case_run(h).run_id, "medrec.approved_by", "x"), "medrec.approved_by was added",
    ),
    "another model's version": (
        lambda h: client(h).set_tag(case_run(h).run_id, "medrec.registered_version", "7"), "registered_version was",
    ),
    "a run that was opened again": (
        lambda h: client(h).update_run(case_run(h).run_id, status="RUNNING"), "it is RUNNING",
    ),
    "a second run of the case": (
        lambda h: stranger(h, "", medrec__case=case_run(h).tags["medrec.case"]), "medrec did not deliver it",
    ),
    "a run that names no case": (lambda h: stranger(h, "finding"), "medrec did not make it"),
    "a run of a night": (lambda h: stranger(h, "", medrec__batch="2020"), "medrec did not make it"),
    "weights of a registered model": (spoilt(f"{MODEL}/*segmentation.safetensors"), "safetensors was changed"),
    "card of a registered model": (spoilt(f"{MODEL}/card.json"), "file card.json was changed"),
    "a file beside it": (write(MODEL, "model.pkl"), "file model.pkl was added"),
    "its tag": (
        lambda h: client(h).set_model_version_tag("medrec-phantom", "1", "medrec.licence", "x"), "tag medrec.licence",
    ),
    "its description": (
        lambda h: client(h).update_model_version("medrec-phantom", "1", "certified"), "its description was changed",
    ),
    "its place": (
        lambda h: sql(h, "UPDATE model_versions SET source = ''", database="mlflow.db"), "file card.json is gone",
    ),
    "its version is gone": (lambda h: client(h).delete_model_version("medrec-phantom", "1"), "version 1: it is gone"),
    "another version": (added_version, "version 2: medrec did not register it"),
    "its alias is gone": (
        lambda h: client(h).delete_registered_model_alias("medrec-phantom", "champion"), "champion was moved",
    ),
    "objects as if accepted": (copied("-accepted"), "accepted objects .* no record tells of it"),
    "objects as if rejected": (copied("-rejected"), "rejected objects .* no record tells of it"),
    "a hidden report": (write("reports", ".hidden/report.html"), "report of case .hidden"),
    "what is kept": (write("kept", "a.card.json"), "not the digest of its bytes"),
    "the key": (lambda h: h.key.write_bytes(b"k" * 32), "not the one that made the names"),
    "the key is gone": (lambda h: h.key.unlink(), "not the one that made the names"),
    "a study's patient": (lambda h: sql(h, "UPDATE studies SET patient = 'x'"), "another patient's"),
    "an acceptance": (
        lambda h: sql(h, "INSERT INTO accepted SELECT \"case\", 'Dr X', '' FROM cases"), "tells of the acceptance",
    ),
    "a recall": (
        lambda h: sql(h, "INSERT INTO recalled SELECT \"case\", 'quality', '' FROM cases"), "tells of the recall",
    ),
    "a delivery": (lambda h: sql(h, DELIVERED), "to pacs: no record says that it is confirmed"),
    "an erasure": (lambda h: sql(h, "INSERT INTO erased VALUES ('x', '')"), "the store names 1, the ledger 0"),
    "what a record is about": (lambda h: sql(h, "DELETE FROM ledger_subjects WHERE seq = 2"), "record 2: .*list of"),
}  # fmt: skip


@pytest.mark.parametrize("what", ATTACKS)
def test_it_is_noticed_and_named(home: Home, what: str) -> None:
    attack, words = ATTACKS[what]
    attack(home)
    found = problems(home)
    assert re.search(words, found), found


def test_verifying_changes_nothing_in_mlflow_not_even_where_a_night_is_gone(home: Home) -> None:
    assert problems(home) == ""
    client(home).delete_run(night_run(home).run_id)
    before = len(Tracker(home, "medrec", create=False).runs())
    assert "was deleted" in problems(home)
    assert len(Tracker(home, "medrec", create=False).runs()) == before


def test_a_night_does_not_start_with_another_key(finished: Path, home: Home) -> None:
    home.key.write_bytes(b"k" * 32)
    with pytest.raises(ConfigError, match="not the one that made the names"):
        a_night(finished / "in", home.root)


def test_the_summary_of_a_night_that_was_killed_at_its_end_is_written_by_the_next(finished: Path, home: Home) -> None:
    (path,) = home.batches.iterdir()
    whole = path.read_bytes()
    path.unlink()
    a_night(finished / "in", home.root)
    assert path.read_bytes() == whole
    assert problems(home) == ""


def test_a_summary_that_was_cleared_away_is_not_written_again(home: Home) -> None:
    settings = load().settings.model_copy(update={"retention": Retention(batches_days=1)})
    later = datetime.now(UTC) + timedelta(days=3)
    with Store.open(home.store_url) as store:
        assert privacy.prune(home, store, replace(load(), settings=settings), later)
        privacy.complete_summary(home, store, settings.retention, later)
    assert list(home.batches.iterdir()) == []
    assert problems(home) == ""


def test_a_summary_carries_a_salt_so_that_its_digest_tells_nothing_of_whom_it_no_longer_names(home: Home) -> None:
    (path,) = home.batches.iterdir()
    assert len(json.loads(path.read_text())["salt"]) == 32


HOSTILE = "\x1b[2K\x1b]0;title\x07\u202egnp\r\n"


def test_names_and_words_of_a_forger_steer_no_terminal(home: Home) -> None:
    (home.reports / HOSTILE).mkdir()
    found = problems(home)
    assert found.isprintable()
    assert "report of case ?[2K" in found
    with Store.open(home.store_url) as store:
        (row,) = store.cases()
        privacy.hold(row.case, f"court {HOSTILE}", store)
        told = list(story.tell(row.case, store))
    assert all(line.isprintable() for line in told)
    assert "put on hold" in told[-1]
