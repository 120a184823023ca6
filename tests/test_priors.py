"""Two studies of one head: what grew by a known factor is said to have grown, and of nothing else is it said."""

import gzip
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import RunNight, a_night, copy_home
from mlflow.tracking import MlflowClient
from pydantic import ValidationError
from pydicom.dataset import Dataset
from scipy.spatial.transform import Rotation

from medrec import config, objects, privacy, verification
from medrec.config import Configuration, Retention
from medrec.dicom import Pseudonyms
from medrec.dicom.identity import patient_of
from medrec.dicom.visits import is_nobody, visit_of
from medrec.dispatch.matching import PLANNED, tracked
from medrec.home import Home
from medrec.night import Night, Request
from medrec.phantom import Head, Lesion, Triple, grid, render, uid, write_dicom
from medrec.prediction import ModelCard
from medrec.replay import replay
from medrec.series import Visit
from medrec.store import Store

SIZE, SPACING_MM = (64, 72, 26), (3.0, 3.0, 5.0)
LEFT = Lesion((28.0, -14.0, 12.0), (13.0, 12.0, 13.0))
RIGHT = Lesion((-34.0, 20.0, 4.0), (12.0, 12.0, 12.0))
DAY = ("20200102", "20200411", "20210101")  # 100 and 365 days after the first


def bigger(lesion: Lesion, factor: float) -> Lesion:
    """The same lesion with `factor` times its volume."""
    scale = factor ** (1 / 3)
    r = lesion.radii_mm
    return Lesion(lesion.centre_lps_mm, (r[0] * scale, r[1] * scale, r[2] * scale))


def moved(turn_deg: Triple = (0.0, 0.0, 0.0), shift_mm: Triple = (0.0, 0.0, 0.0)) -> npt.NDArray[np.float64]:
    """4x4, LPS mm: how somebody lies otherwise in the scanner."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def study(
    folder: Path,
    lesions: Sequence[Lesion],
    day: str,
    motion: npt.NDArray[np.float64] | None = None,
    *,
    seed: int = 3,
    noise: int = 0,
    size: tuple[int, int, int] = SIZE,
    spacing_mm: Triple = SPACING_MM,
    tilt_deg: Triple = (0.0, 0.0, 0.0),
    scale: float = 1.0,
    patient_id: str = "PHANTOM-1",
    **header: Any,
) -> tuple[Path, ...]:
    """One examination of the head `seed`: `noise` seeds noise of this day, `motion` is how the head lies on it."""
    motion = np.eye(4) if motion is None else motion
    scan = np.array(grid(size, spacing_mm, tilt_deg))
    # The slices lie as the scanner was set; in the head they lie where the head was not moved from.
    affine = tuple(tuple(float(v) for v in row) for row in np.linalg.inv(motion) @ scan)
    head = Head(tuple(lesions), size, affine, seed=seed, scale=scale)  # type: ignore[arg-type]
    voxels = render(head)[0]
    if noise:
        rng = np.random.default_rng(noise)
        voxels = np.clip(voxels + rng.normal(0, 25, voxels.shape), 0, 4095).astype(np.int16)
    name = header.pop("study_uid", uid("priors", patient_id, folder.name, day))
    return write_dicom(voxels, scan, folder, patient_id=patient_id, study_uid=name, study_date=day, **header)


NEW = Lesion((20.0, 36.0, 18.0), (11.0, 11.0, 11.0))


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three studies of one patient in one night, files in random order, as the flow runs it: three at a time.

    On the second day the left lesion has one and a half times its volume; on the third a new one is there, and the
    right one is gone. The head lies otherwise each time, and slices lie obliquely on the third day.
    """
    place = tmp_path_factory.mktemp("followed")
    days = (
        study(place / "c", (LEFT,), DAY[0], sex="F", birth_date="19500607"),
        study(place / "b", (bigger(LEFT, 1.5), RIGHT), DAY[1], moved((6, -4, 9), (7, -11, 5)), noise=2, sex="F"),
        study(
            *(place / "a", (bigger(LEFT, 1.5), NEW), DAY[2], moved((-5, 3, -8), (-9, 4, 6))),
            noise=3,
            tilt_deg=(10.0, 4.0, 0.0),
            spacing_mm=(2.5, 2.5, 5.0),
            size=(80, 92, 30),
            sex="F",
            birth_date="19500607",
        ),
    )
    inbox, rng = place / "in", np.random.default_rng(1)
    inbox.mkdir()
    for path in (path for day in days for path in day):
        shutil.copy(path, inbox / f"{rng.integers(2**60):x}")
    with (
        Night(Request(inbox, Home(place / "home"), config.load())) as night,
        ThreadPoolExecutor(3) as threads,
    ):
        night.index()
        night.lead(lambda planned: threads.submit(night.analyse, planned), lambda done, total: None)
        night.close()
    return place


@pytest.fixture
def home(followed: Path, tmp_path: Path) -> Home:
    """A copy of that home."""
    return copy_home(followed / "home", tmp_path / "home")


def reports(home: Path) -> list[dict[str, Any]]:
    """The reports in force, in the order in which they were finished."""
    with Store.open(Home(home).store_url) as store:
        keys = [row.case for row in store.cases() if row.superseded_by is None]
    return [json.loads((home / "reports" / key / "report.json").read_text()) for key in keys]


def last(home: Path) -> dict[str, Any]:
    """What the report that was finished last says of an earlier study."""
    return dict(reports(home)[-1]["prior"])


def words(prior: Mapping[str, Any]) -> list[str]:
    return [c["word"] for c in prior["changes"]]


def problems(home: Path) -> list[str]:
    with Store.open(Home(home).store_url) as store:
        return [str(p) for p in verification.verify(Home(home), store)]


# ---------------------------------------------------------------- three studies of one patient


def test_each_study_of_a_night_is_compared_with_the_one_before_it_whatever_the_order_of_files(followed: Path) -> None:
    first, second, third = reports(followed / "home")
    assert first["prior"] is None
    assert (second["prior"]["case"], second["prior"]["days"]) == (first["case"], 100)
    assert (third["prior"]["case"], third["prior"]["days"]) == (second["case"], 265)


def test_what_grew_by_half_is_said_to_have_grown_and_by_how_much(followed: Path) -> None:
    _, second, _ = reports(followed / "home")
    grown = second["prior"]["changes"][0]
    assert (grown["kind"], grown["word"]) == ("same", "grown")
    assert grown["volume_change_percent"] == pytest.approx(50, abs=15)
    true_mm = 2 * (1.5 ** (1 / 3) - 1) * 13
    assert grown["longest_3d_change_mm"] == pytest.approx(true_mm, abs=2.5)


def test_new_and_gone_lesions_are_called_so_where_the_other_study_reaches(followed: Path) -> None:
    _, second, third = reports(followed / "home")
    assert words(second["prior"]) == ["grown", "new"]
    told = {c["word"]: c for c in third["prior"]["changes"]}
    assert set(told) == {"no change beyond repeatability", "new", "gone"}
    assert told["gone"]["before"] == [2]
    assert told["new"]["volume_change_percent"] is None


def test_a_lesion_that_was_found_again_inherits_its_tracking_uid_by_a_record(followed: Path) -> None:
    first, second, third = reports(followed / "home")
    with Store.open(Home(followed / "home").store_url) as store:
        origin = objects.tracking(first["case"], first["created"], 1)
        assert tracked(store, second["case"], PLANNED) == {1: origin}
        assert tracked(store, third["case"], PLANNED) == {1: origin}
        record = next(r for r in store.ledger() if r.kind == "lesions matched")
        assert record.facts["by"] == "medrec, by comparison"


def test_the_ledger_holds_the_comparison_and_still_verifies(followed: Path, home: Home) -> None:
    third = reports(home.root)[-1]
    with Store.open(home.store_url) as store:
        record = next(r for r in store.ledger() if r.facts.get("case") == third["case"])
        assert record.facts["prior"] == third["prior"]["case"]
        assert "prior" in record.facts["stages"]  # type: ignore[operator]
    assert problems(home.root) == []
    for name in ("coarse.nii.gz", "visit.json"):
        path = home.reports / third["case"] / name
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert [p for p in problems(home.root) if "coarse.nii.gz" in p and "changed" in p]
    assert [p for p in problems(home.root) if "visit.json" in p and "changed" in p]


def test_a_replay_makes_the_comparison_again(followed: Path) -> None:
    case = reports(followed / "home")[1]["case"]
    with Store.open(Home(followed / "home").store_url) as store:
        done = replay(case, followed / "in", Home(followed / "home"), store)
    assert done.agrees
    assert "prior" in [s.stage for s in done.stages]


def test_the_page_and_mlflow_tell_of_it(followed: Path) -> None:
    second = reports(followed / "home")[1]
    page = (followed / "home" / "reports" / second["case"] / "report.html").read_text()
    assert "Compared with 100 days ago" in page
    assert "<b>grown</b>" in page
    client = MlflowClient(f"sqlite:///{followed / 'home' / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (run,) = [r for r in runs if r.data.tags.get("medrec.case") == second["case"]]
    assert (run.data.metrics["prior_days"], run.data.metrics["lesions_grown"]) == (100.0, 1.0)
    assert run.data.tags["medrec.prior"] == second["prior"]["case"]
    assert "compared with 100 days ago" in run.data.tags["mlflow.note.content"]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} == {"report.html", "report.json"}


def test_no_day_sex_or_birth_lies_in_the_home(followed: Path) -> None:
    hidden = [b"19500607", b"1950-06-07", *(d.encode() for d in DAY), b"2020-04-11"]
    for path in (followed / "home").rglob("*"):
        if path.is_file() and "outbox" not in path.parts:  # what goes back to the study says whose it is, as it must
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            assert not [h for h in hidden if h in data], path.name


def test_running_again_does_nothing_and_an_older_study_that_comes_later_changes_no_report(
    followed: Path, home: Home, tmp_path: Path
) -> None:
    shutil.copytree(followed / "in", tmp_path / "in")
    before = {p: p.read_bytes() for p in home.reports.rglob("*") if p.is_file()}
    assert {c.status for c in a_night(tmp_path / "in", home.root).cases} == {"already done"}
    study(tmp_path / "in" / "old", (LEFT,), "20190101", sex="F")
    summary = a_night(tmp_path / "in", home.root)
    assert sorted(c.status for c in summary.cases) == ["already done"] * 3 + ["analysed"]
    assert {p: p.read_bytes() for p in before} == before
    assert reports(home.root)[-1]["prior"] is None  # nothing came before it


# ---------------------------------------------------------------- what comes on a later night


def fourth(place: Path, **more: Any) -> Path:
    """A folder with nothing but the fourth study: the archive has moved the others away."""
    study(place / "fourth", (bigger(LEFT, 1.5), NEW), "20210301", noise=4, **({"sex": "F"} | more))
    return place / "fourth"


def test_the_archive_may_be_gone_and_the_key_rotated(home: Home, tmp_path: Path) -> None:
    with Store.open(home.store_url) as store:
        privacy.rotate(home, store, config.load())
    a_night(fourth(tmp_path, birth_date="19500607"), home.root)
    prior = last(home.root)
    assert (prior["reason"], prior["days"]) == ("", 59)
    assert set(words(prior)) == {"no change beyond repeatability"}
    assert problems(home.root) == []


def test_another_model_version_is_said_and_growth_is_not_claimed(home: Home, tmp_path: Path) -> None:
    own = versioned("1.0.1")
    a_night(fourth(tmp_path), home.root, own)
    prior = last(home.root)
    assert "another model (phantom 1.0.0)" in prior["caution"]
    assert set(words(prior)) == {"not told"}
    assert prior["changes"][0]["volume_change_percent"] is not None


def versioned(version: str) -> Configuration:
    loaded = config.load()
    cards = [replace(c, card=c.card.model_copy(update={"version": version})) for c in loaded.cards]
    return replace(loaded, cards=tuple(cards))


@pytest.mark.slow
def test_what_was_measured_anew_is_compared_with_and_its_first_report_is_not(
    followed: Path, home: Home, tmp_path: Path
) -> None:
    own = versioned("1.0.1")
    a_night(followed / "in", home.root, own, reanalyse=True)
    first, second, third = reports(home.root)
    assert {r["model_version"] for r in (first, second, third)} == {"1.0.1"}
    assert (second["prior"]["case"], third["prior"]["case"]) == (first["case"], second["case"])
    assert words(second["prior"]) == ["grown", "new"]
    assert problems(home.root) == []


def test_a_prior_whose_report_was_cleared_away_spoilt_or_erased_is_not_compared_with(
    followed: Path, home: Home, tmp_path: Path
) -> None:
    third = reports(home.root)[-1]["case"]
    path = home.reports / third / "coarse.nii.gz"
    path.write_bytes(path.read_bytes() + b"x")
    a_night(fourth(tmp_path), home.root)
    assert last(home.root)["reason"] == "the report of the earlier study is not as it was written"
    key = reports(home.root)[1]["case"]
    with Store.open(home.store_url) as store:
        settings = replace(config.load(), settings=config.Settings(retention=Retention(reports_days=1)))
        privacy.prune(home, store, settings, datetime.now(UTC) + timedelta(days=3))
        store_rows = [r.case for r in store.cases()]
    assert key in store_rows
    assert not (home.reports / key).exists()
    study(tmp_path / "fifth", (LEFT,), "20210401", sex="F")
    a_night(tmp_path / "fifth", home.root)
    assert "not" in json.loads((home.reports / newest(home) / "report.json").read_text())["prior"]["reason"]
    with Store.open(home.store_url) as store:
        privacy.erase(patient_of(Pseudonyms.load(home.key), "PHANTOM-1"), home, store, config.load())
    assert not [p for p in home.reports.rglob("*") if p.is_file()]


def newest(home: Home) -> str:
    with Store.open(home.store_url) as store:
        return store.cases()[-1].case


def test_a_replay_says_that_what_it_was_compared_with_is_gone(followed: Path, home: Home) -> None:
    first, second, _ = reports(home.root)
    with Store.open(home.store_url) as store:
        facts = {"cases": [first["case"]], "files": [], "rule": "1 days"}
        store.append("files pruned", datetime.now(UTC).isoformat().replace("+00:00", "Z"), facts)
        done = replay(second["case"], followed / "in", home, store)
    assert done.agrees
    assert any(s.stage == "prior" and "not compared" in s.detail for s in done.stages)


# ---------------------------------------------------------------- other people, and doubtful ones


@pytest.mark.slow
def test_swapped_patients_and_ids_that_are_nobodys_are_not_compared_and_why_is_said(
    run_night: RunNight, tmp_path: Path
) -> None:
    pairs: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "S1": ({"sex": "F"}, {"sex": "M"}),
        "B1": ({"birth_date": "19500607"}, {"birth_date": "19500608"}),
        "H1": ({"scale": 1.0}, {"scale": 0.94, "seed": 11}),
        "0000": ({}, {}),
    }
    for name, both in pairs.items():
        for day, header in zip(DAY, both, strict=False):
            study(tmp_path / "in" / f"{name} {day}", (LEFT,), day, patient_id=name, **header)
    run_night(tmp_path / "in")
    by_patient: dict[str, list[str]] = {}
    names = Pseudonyms.load(tmp_path / "home" / "key")
    for report in reports(tmp_path / "home"):
        if report["prior"]:
            by_patient.setdefault(report["patient"], []).append(report["prior"]["reason"])
    said = {name: by_patient[patient_of(names, name)] for name in pairs}
    assert "different sexes under one id" in said["S1"][0]
    assert "different dates of birth under one id" in said["B1"][0]
    assert "do not lie on each other well enough" in said["H1"][0]
    assert "placeholder" in said["0000"][0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "0000",
        "ANON",
        "Anonymous",
        "anonymized",
        "TEST",
        "test-1",
        "unknown",
        "1234",
        "0001",
        "TEST TEST",
        "UNKNOWN PATIENT",
        "NOT AVAILABLE",
        "0123456789",
        "REDACTED",
        "unbekannt",
        "PHANTOM",
    ],
)
def test_an_id_that_many_share_is_nobodys(text: str) -> None:
    assert is_nobody(text)


@pytest.mark.parametrize(
    "text", ["PHANTOM-1", "ANON-0417", "4711", "0001234", "TCGA-DU-5849", "12-345-6", "MRN 900112"]
)
def test_an_id_that_may_be_somebodys_is_theirs(text: str) -> None:
    assert not is_nobody(text)


# ---------------------------------------------------------------- what did not change


@pytest.mark.slow
def test_nothing_is_said_to_have_grown_or_shrunk_in_a_head_that_is_only_examined_again(
    run_night: RunNight, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    for number in range(6):
        turn, shift = rng.uniform(-8, 8, 3), rng.uniform(-10, 10, 3)
        motion = moved((turn[0], turn[1], turn[2]), (shift[0], shift[1], shift[2]))
        study(tmp_path / "in" / str(number), (LEFT, RIGHT), f"202003{number + 10}", motion, noise=number + 1)
    run_night(tmp_path / "in")
    told = [r["prior"] for r in reports(tmp_path / "home")]
    assert told[0] is None
    assert [p["days"] for p in told[1:]] == [1] * 5
    assert {w for p in told[1:] for w in words(p)} == {"no change beyond repeatability"}


def test_a_card_may_bring_its_own_repeatability_with_its_source_and_one_without_keeps_its_digest() -> None:
    card = next(c.card for c in config.load().cards if c.card.name == "phantom")
    assert isinstance(card, ModelCard)
    assert b"priors" not in card.content
    own = {"repeatability_volume_relative": 0.1, "repeatability_diameter_mm": 2.0, "source": "rescans of 20 phantoms"}
    told = ModelCard(**(card.model_dump() | {"priors": own}))
    assert told.digest != card.digest
    with pytest.raises(ValidationError, match="source"):
        ModelCard(**(card.model_dump() | {"priors": {"repeatability_volume_relative": 0.1}}))


# ---------------------------------------------------------------- days and names


def test_days_of_a_patient_keep_their_distance_and_tell_nothing_else() -> None:
    def visit(day: str, patient: str = "A", key: bytes = b"k" * 32, **more: str) -> Visit:
        header = Dataset()
        header.PatientID, header.StudyDate = patient, day
        for name, value in more.items():
            setattr(header, name, value)
        return visit_of(header, Pseudonyms(key))

    first, second = visit("20200228"), visit("20200301")
    assert first.day is not None
    assert second.day is not None
    assert second.day - first.day == 2  # 2020 has a 29 February
    assert first.before(second) is True
    assert second.before(first) is False
    assert first.before(first) is None
    assert first.day not in (visit("20200228", "B").day, visit("20200228", key=b"l" * 32).day)
    assert visit("2020-02-30").day is None
    assert visit("20200228", StudyTime="0915").before(visit("20200228", StudyTime="101500.5")) is True
    sexes = {visit("20200228", p, PatientSex="F").sex for p in "AB"}
    assert len(sexes) == 2
    assert all(len(s) == 20 for s in sexes)


def test_a_name_is_known_again_after_rotations_and_another_is_not() -> None:
    keys = [Pseudonyms(b"k" * 32)]
    for _ in range(3):
        keys.append(keys[-1].rotated())
    names = [key.of("sex", "", "A", "F") for key in keys]
    assert len(set(names)) == 4
    assert all(keys[3].same(name, names[3]) for name in names)
    assert not any(keys[3].same(key.of("sex", "", "A", "M"), names[3]) for key in keys)
    assert len({key.shift_days("", "A") for key in keys}) == 1
