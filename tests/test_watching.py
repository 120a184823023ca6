"""medrec looks at itself: what is kept of a case, what changed, and that it is on record, shown, told and forgotten."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import a_night
from phantoms import scan_file
from tiny import ready_home, tiny_configuration, tiny_folder, tiny_studies
from typer.testing import CliRunner

from medrec import config, notices, observed, privacy, verification, watching
from medrec.cli import app
from medrec.config import Configuration
from medrec.errors import WorldError
from medrec.home import Home
from medrec.observed import Observed
from medrec.report import Status, Verdict
from medrec.standing import standing
from medrec.store import CaseRow, Store
from medrec.tracking import Tracker

NOW = datetime(2026, 9, 1, 12, tzinfo=UTC)
NORTH, SOUTH = "0" * 20, "f" * 20


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return ready_home(tmp_path / "home")


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with Store.open(home.store_url) as store:
        yield store


@pytest.fixture
def own(tmp_path: Path) -> Configuration:
    return tiny_configuration(tmp_path / "own", monitoring={"sites": {SOUTH: "South"}})


def a_case(store: Store, number: int, site: str, values: dict[str, float]) -> None:
    at = (datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=number)).isoformat().replace("+00:00", "Z")
    batch = store.batches()[-1].batch
    row = CaseRow(
        f"{number:024x}", f"study {number}", f"patient {number}", batch, "tiny", "1.0.0", "in", Status.ANALYSED, "",
        Verdict.FINDING, None, None, None, at, 9, None,
    )  # fmt: skip
    store.remember_study(row.study, row.patient, at)
    store.finish(row, {"files": {}}, at, observed=Observed(site, "d" * 20, "SIEMENS 3 T", values))


def teach(store: Store, count: int, change_at: int) -> None:
    """Studies of two sites in turn; the noise of one doubles its mean by four standard deviations."""
    rng = np.random.default_rng(0)
    for number in range(1, count + 1):
        site = SOUTH if number % 2 else NORTH
        noise = 1 + 0.25 * rng.standard_normal() + (1 if site == SOUTH and number > change_at else 0)
        values = {"FLAIR noise": noise, "FLAIR skew": rng.standard_normal(), "finding": float(rng.random() < 0.3)}
        a_case(store, number, site, {k: round(v, 5) for k, v in values.items()})


# What is kept


def test_a_night_keeps_geometry_and_answers_of_each_study_and_no_word_of_its_headers(
    tmp_path: Path, home: Home, own: Configuration
) -> None:
    for place in tiny_studies(tmp_path / "in", 2):
        for path in place.iterdir():
            ds = pydicom.dcmread(path)
            ds.InstitutionName, ds.StationName = "Praxis Dr. DOE^JANE ", "DOEROOM"
            ds.MagneticFieldStrength = "1.5"
            ds.save_as(path)
    a_night(tmp_path / "in", home.root, own)
    with Store.open(home.store_url) as store:
        first, second = (one.observed for one in store.observed())
        assert list(verification.verify(home, store)) == []
    assert (first.site, first.device, first.scanner) == (second.site, second.device, "1.5 T")
    assert len(first.site) == len(first.device) == 20
    wanted = {"pixel mm": 14, "slice distance mm": 11, "coverage mm": 176, "tilt degrees": 0, "refused": 0}
    assert {name: first.values[name] for name in wanted} == pytest.approx(wanted)
    assert {"finding", "inconclusive", "FLAIR noise", "highest slice probability"} <= first.values.keys()
    for path in (p for p in home.root.rglob("*") if p.is_file()):
        assert b"DOE" not in path.read_bytes()


def test_a_refused_study_is_counted_and_a_failed_one_is_not(tmp_path: Path, home: Home, own: Configuration) -> None:
    (place,) = tiny_studies(tmp_path / "in", 1)
    sorted(place.iterdir())[7].unlink()
    a_night(tmp_path / "in", home.root, own)
    with Store.open(home.store_url) as store:
        (one,) = store.observed()
    assert dict(one.observed.values) == {"refused": 1.0}


@pytest.mark.parametrize("sigma", [1.0, 20.0])
def test_noise_is_measured_in_spite_of_slopes_and_edges(sigma: float) -> None:
    y, x = np.mgrid[:150, :150]
    picture = 3 * x + 0.5 * y + 500 * (x > 75) + np.random.default_rng(0).normal(0, sigma, x.shape)
    assert observed._noise(picture.astype(np.float32)) == pytest.approx(sigma, rel=0.05)


def test_a_site_without_a_name_is_unknown_and_free_text_is_no_maker() -> None:
    assert scan_file().site == scan_file().device == scan_file().scanner == ""
    from medrec.dicom.parsing import _scanner

    ds = pydicom.Dataset()
    ds.Manufacturer = "Doe & Sons Imaging, formerly GERMANY MEDICAL"
    assert _scanner(ds) == ""
    ds.Manufacturer, ds.MagneticFieldStrength = "GE MEDICAL SYSTEMS", "15000"
    assert _scanner(ds) == "GE 1.5 T"


# What changed


def test_a_change_at_one_site_is_on_record_shown_and_told_once_and_the_other_site_is_left_in_peace(
    home: Home, store: Store, own: Configuration, tmp_path: Path
) -> None:
    teach(store, 260, 200)
    found = watching.look(home, store, own, NOW)
    (words,) = found.alarms
    assert words.startswith("tiny, South, scanner SIEMENS 3 T dddddd: 'FLAIR noise' changed about 2026-03-")
    assert (found.exit_code, found.checks, found.studies) == (1, {"ledger": ()}, 260)
    ((_, record),) = store.of_kinds("drift found")
    assert (record.facts["site"], record.facts["feature"], record.facts["text"]) == (SOUTH, "FLAIR noise", words)
    (run,) = (r for r in Tracker(home, "medrec").runs() if r.name == "monitoring")
    page = Path(run.place.removeprefix("file://"), "monitoring.html").read_text()
    assert words.replace("'", "&#x27;") in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert (run.metrics["alarms"], run.metrics["streams"], run.metrics["problems_ledger"]) == (1, 6, 0)
    assert any(words in warning for warning in standing(home, store, own.settings, NOW).warnings)

    again = watching.look(home, store, own, NOW)
    assert (again.alarms, again.exit_code) == ((), 0)
    assert len([r for r in Tracker(home, "medrec").runs() if r.name == "monitoring"]) == 1
    assert list(verification.verify_mlflow(home, store, "medrec")) == []


def test_what_is_told_of_a_change_is_counts_and_models() -> None:
    (told,) = notices.of_drift({"tiny 1.0.0": 2, "brain_mr": 1})
    assert (told.event, "1 of brain_mr, 2 of tiny 1.0.0" in told.text) == ("drift found", True)
    assert notices.of_drift({}) == ()


def test_answers_are_watched_by_version_and_what_comes_in_whatever_the_version(store: Store, home: Home) -> None:
    a_case(store, 1, NORTH, {"finding": 1.0, "FLAIR noise": 1.0})
    models = {
        line.stream.feature: line.stream.group.model
        for line in watching.watched(home, store, config.load().settings.monitoring).lines
    }
    assert models == {"finding": "tiny 1.0.0", "FLAIR noise": "tiny"}


def test_a_check_that_cannot_be_made_says_so_and_stops_no_other(
    home: Home, store: Store, own: Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> tuple[str, ...]:
        raise WorldError("the disk is away")

    monkeypatch.setattr(watching, "CHECKS", {"first": away, "second": lambda *_: ("two is wrong",)})
    found = watching.look(home, store, own, NOW)
    assert found.checks == {"first": ("not checked: the disk is away",), "second": ("two is wrong",)}
    assert found.exit_code == 1


def test_what_others_show_in_the_monitoring_run_stays(home: Home, store: Store, own: Configuration) -> None:
    from medrec.delivery import deliver_monitoring

    deliver_monitoring(store, Tracker(home, "medrec"), {"agreement": 0.9}, {"reviews.html": "<p>fine"})
    watching.look(home, store, own, NOW)
    (run,) = (r for r in Tracker(home, "medrec").runs() if r.name == "monitoring")
    assert run.metrics["agreement"] == 0.9
    assert list(verification.verify_mlflow(home, store, "medrec")) == []
    Path(run.place.removeprefix("file://"), "reviews.html").write_text("<p>bad")
    (problem,) = verification.verify_mlflow(home, store, "medrec")
    assert "reviews.html was changed" in problem.what


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("UPDATE observed SET numbers = replace(numbers, '0', '1')", "were changed"),
        ("UPDATE observed SET site = 'another'", "were changed"),
        ("DELETE FROM observed", "not in the store any more"),
    ],
)
def test_numbers_that_were_changed_behind_our_back_are_named(home: Home, store: Store, change: str, what: str) -> None:
    a_case(store, 1, NORTH, {"FLAIR noise": 0.5})
    assert list(store.contradictions()) == []
    with sqlite3.connect(home.root / "medrec.db") as connection:
        connection.execute(change)
    (problem,) = store.contradictions()
    assert what in problem.what


def test_numbers_of_an_erased_patient_are_gone_and_the_rest_verifies(home: Home, store: Store) -> None:
    a_case(store, 1, NORTH, {"FLAIR noise": 0.5})
    a_case(store, 2, NORTH, {"FLAIR noise": 0.7})
    store.erase("patient 1", (), (), "b", "2026-03-01T00:00:00Z")
    assert [one.row.study for one in store.observed()] == ["study 2"]
    assert list(store.contradictions()) == []


def test_after_a_rotation_sites_have_other_names_the_numbers_verify_and_no_alarm_is_raised_again(
    home: Home, store: Store, own: Configuration
) -> None:
    teach(store, 260, 200)
    assert len(watching.look(home, store, own, NOW).alarms) == 1
    privacy.rotate(home, store, own)
    assert {one.observed.site for one in store.observed()}.isdisjoint({NORTH, SOUTH})
    assert watching.look(home, store, own, NOW).alarms == ()
    assert list(verification.verify(home, store)) == []


def test_the_command_says_all_in_one_object_and_exits_by_what_it_found(tmp_path: Path, home: Home) -> None:
    folder = tiny_folder(tmp_path / "config")
    result = CliRunner().invoke(app, ["monitor", "--home", str(home.root), "--config", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["alarms"], told["checks"], told["streams"]) == ([], {"ledger": []}, 0)


def test_the_monitor_is_a_deployment_with_a_schedule_of_its_own(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.deployed import DEPLOYMENTS, monitor

    settings = tiny_configuration(tmp_path / "c", monitoring={"cron": "0 12 * * *"}).settings
    assert DEPLOYMENTS["monitor"].flow is monitor
    assert DEPLOYMENTS["monitor"].schedule(settings) == settings.monitoring
    from flows.monitor import looked

    state = looked(home, replace(tiny_configuration(tmp_path / "d"), settings=settings))
    assert (state.is_completed(), state.message) == (True, "0 numbers changed, 0 to look at; 0 watched")
