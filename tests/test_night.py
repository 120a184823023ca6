"""A whole night on phantoms: everything accounted for, nothing twice, nothing of a person left behind."""

import gzip
import hashlib
import json
import os
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from conftest import RunNight
from mlflow.tracking import MlflowClient

from medrec import config, demonstration
from medrec.config import CardFiles, Configuration
from medrec.errors import AlreadyRunningError, ConfigError, WorldError
from medrec.home import Home
from medrec.models import inference
from medrec.night import Night, Request
from medrec.phantom import Head, Known, Lesion, grid, render, uid, write_dicom
from medrec.store import Store
from medrec.tracking import Tracker

Demo = tuple[Path, tuple[Known, ...]]
LEFT = Lesion((28.0, -14.0, 12.0), (16.0, 14.0, 15.0))


def small_study(folder: Path, lesions: tuple[Lesion, ...] = (LEFT,), **header: object) -> tuple[Path, ...]:
    head = Head(lesions, (64, 72, 26), grid((64, 72, 26), (3.0, 3.0, 5.0)), seed=3)
    return write_dicom(render(head)[0], head.affine, folder, **header)  # type: ignore[arg-type]


def runs_of(home: Path) -> list[dict[str, str]]:
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    ids = [e.experiment_id for e in client.search_experiments()]
    return [{**r.data.tags, "status": r.info.status} for r in client.search_runs(ids)]


def verify(home: Path) -> list[str]:
    def digest(relative: str) -> str | None:
        path = home / relative
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    with Store.open(Home(home).store_url) as store:
        return [str(p) for p in store.verify(digest)]


def test_every_file_is_accounted_for_and_every_known_answer_found(
    demo: Demo, run_night: RunNight, tmp_path: Path
) -> None:
    folder, known = demo
    summary = run_night(folder)
    files = summary.files
    paths = [p for p in folder.rglob("*") if p.is_file()]
    assert files["seen"] == len(paths) == files["analysed"] + files["unused"] + files["refused"]
    assert len(summary.refusals) == files["refused"]
    digests = {hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    assert {r["sha256"] for r in summary.refusals} < digests
    rows = demonstration.compare(known, summary, tmp_path / "home")
    assert all(row.right for row in rows), [row.cells() for row in rows]
    assert summary.exit_code == 0
    assert verify(tmp_path / "home") == []
    for case in summary.cases:
        assert case.report is not None
        report = (tmp_path / "home" / case.report).parent / "report.json"
        facts = json.loads(report.read_text())
        assert (facts["case"], facts["verdict"], facts["status"]) == (case.case, case.verdict, case.status)


def test_left_reads_left_and_its_mirror_reads_right(run_night: RunNight, tmp_path: Path) -> None:
    inbox = tmp_path / "in"
    mirror = Lesion((-LEFT.centre_lps_mm[0], *LEFT.centre_lps_mm[1:]), LEFT.radii_mm)
    for name, lesion in (("left", LEFT), ("right", mirror)):
        small_study(inbox / name, (lesion,), patient_id=name, study_uid=uid("mirror", name))
    home = tmp_path / "home"
    for case in run_night(inbox).cases:
        facts = json.loads((home / str(case.report)).with_name("report.json").read_text())
        mask = nib.load((home / str(case.report)).with_name("segmentation.nii.gz"))
        ras = nib.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0)).mean(0)
        (finding,) = facts["findings"]
        assert finding["side"] == ("left" if ras[0] < 0 else "right")
        assert abs(abs(ras[0]) - 28) < 2
        assert np.allclose(finding["centroid_lps_mm"], ras * [-1, -1, 1], atol=0.01)
    sides = {json.loads(p.read_text())["findings"][0]["side"] for p in home.rglob("reports/*/report.json")}
    assert sides == {"left", "right"}


def test_running_again_does_nothing(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")
    first = run_night(tmp_path / "in")
    before = (tmp_path / "home" / str(first.cases[0].report)).stat().st_mtime_ns
    second = run_night(tmp_path / "in")
    assert [c.status for c in second.cases] == ["already done"]
    assert second.cases[0].case == first.cases[0].case
    assert second.cases[0].mlflow_run_id == first.cases[0].mlflow_run_id is not None
    assert second.files == first.files
    assert (tmp_path / "home" / str(first.cases[0].report)).stat().st_mtime_ns == before
    assert sum("medrec.case" in tags for tags in runs_of(tmp_path / "home")) == 1


def test_mlflow_holds_the_case_with_its_tags_and_its_version(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")
    case = run_night(tmp_path / "in").cases[0]
    client = MlflowClient(f"sqlite:///{tmp_path / 'home' / 'mlflow.db'}")
    run = client.get_run(str(case.mlflow_run_id))
    assert run.info.status == "FINISHED"
    assert run.data.tags["medrec.case"] == case.case
    assert run.data.tags["medrec.study"] == case.study
    assert run.data.tags["medrec.verdict"] == case.verdict == "finding"
    assert run.data.tags["review.status"] == "pending"
    assert run.data.tags["mlflow.note.content"].startswith("## FINDING")
    night = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert night.info.status == "FINISHED"
    assert night.info.run_name.endswith(": 1 finding")
    assert sorted(p.name for p in (tmp_path / "home" / "kept").glob("*.card.json")) == [
        f"{run.data.params['card_sha256']}.card.json"
    ]
    assert "mlflow.parentRunId" in run.data.tags
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"report.html", "report.json"}
    champion = client.get_model_version_by_alias("medrec-phantom", "champion")
    assert run.data.tags["medrec.registered_version"] == str(champion.version)
    assert champion.tags["medrec.weights_sha256"]


def test_a_study_that_arrives_in_parts_is_done_again_and_supersedes(run_night: RunNight, tmp_path: Path) -> None:
    paths = small_study(tmp_path / "all")
    inbox = tmp_path / "in"
    inbox.mkdir()
    for path in [*paths[:10], *paths[11:]]:
        shutil.copy(path, inbox)
    first = run_night(inbox)
    assert first.cases[0].reason.startswith("missing slice")
    shutil.copy(paths[10], inbox)
    second = run_night(inbox)
    assert [c.status for c in second.cases] == ["analysed"]
    with Store.open(Home(tmp_path / "home").store_url) as store:
        old = store.case(first.cases[0].case)
        assert old is not None
        assert old.superseded_by == second.cases[0].case
    assert verify(tmp_path / "home") == []


def with_version(configuration: Configuration, version: str) -> Configuration:
    def renamed(model: CardFiles) -> CardFiles:
        return CardFiles(model.card.model_copy(update={"version": version}), model.weights)

    return replace(configuration, cards=tuple(renamed(c) for c in configuration.cards))


def test_a_new_model_version_applies_only_when_asked(
    run_night: RunNight, tmp_path: Path, configuration: Configuration
) -> None:
    small_study(tmp_path / "in")
    first = run_night(tmp_path / "in")
    newer = with_version(configuration, "9.0.0")
    assert [c.status for c in run_night(tmp_path / "in", own=newer).cases] == ["already done"]
    third = run_night(tmp_path / "in", own=newer, reanalyse=True)
    assert [c.status for c in third.cases] == ["analysed"]
    assert third.cases[0].case != first.cases[0].case
    assert (tmp_path / "home" / str(first.cases[0].report)).is_file()  # the old one stays
    by = {t["medrec.case"]: t.get("medrec.superseded_by") for t in runs_of(tmp_path / "home") if "medrec.case" in t}
    assert by == {first.cases[0].case: third.cases[0].case, third.cases[0].case: None}
    assert verify(tmp_path / "home") == []


def test_a_poisoned_study_fails_alone_and_is_tried_again(
    run_night: RunNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        small_study(tmp_path / "in" / name, patient_id=name, study_uid=uid("poison", name))
    real, calls = inference.TorchPredictor.predict, []

    def poisoned(self: inference.TorchPredictor, inputs: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("secret DOE^JANE inside a library's message")
        return real(self, inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(inference.TorchPredictor, "predict", poisoned)
    summary = run_night(tmp_path / "in")
    assert sorted(c.status for c in summary.cases) == ["analysed", "failed"]
    assert summary.exit_code == 1
    assert "DOE" not in summary.to_json()
    failed = next(c for c in summary.cases if c.status == "failed")
    assert "RuntimeError" in failed.reason
    again = run_night(tmp_path / "in")
    assert sorted(c.status for c in again.cases) == ["already done", "analysed"]
    assert again.exit_code == 0
    of_case = [t for t in runs_of(tmp_path / "home") if t.get("medrec.case") == failed.case]
    assert [t["medrec.verdict"] for t in of_case] == ["finding"]  # the failed try is gone from MLflow
    assert verify(tmp_path / "home") == []


def test_a_night_ends_well_while_mlflow_is_away_and_delivers_later(
    run_night: RunNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_study(tmp_path / "in")

    def away(*_: object) -> None:
        raise WorldError("MLflow cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "__init__", away)
        summary = run_night(tmp_path / "in")
    assert [(c.status, c.mlflow_run_id) for c in summary.cases] == [("analysed", None)]
    assert summary.exit_code == 0
    assert any("later night" in w for w in summary.warnings)
    later = run_night(tmp_path / "in")
    assert later.cases[0].status == "already done"
    tags = [t for t in runs_of(tmp_path / "home") if "medrec.case" in t]
    assert [(t["medrec.case"], t["status"]) for t in tags] == [(summary.cases[0].case, "FINISHED")]


def test_a_run_that_a_killed_night_left_open_is_taken_up_or_closed(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")
    home = Home(tmp_path / "home")
    home.create()
    tracker = Tracker(home, "medrec")
    tracker.start_batch("killed", 0)
    case = run_night(tmp_path / "in").cases[0]
    assert sorted(t["status"] for t in runs_of(home.root)) == ["FINISHED", "FINISHED", "KILLED"]
    client = MlflowClient(f"sqlite:///{home.mlflow_database}")
    client.update_run(str(case.mlflow_run_id), status="RUNNING")
    with Store.open(home.store_url) as store:
        row = store.case(case.case)
        assert row is not None
        again = Tracker(home, "medrec").deliver(row, 1)
    assert again.run_id == case.mlflow_run_id
    assert client.get_run(again.run_id).info.status == "FINISHED"


def test_a_second_night_on_the_same_home_says_already_running(tmp_path: Path, configuration: Configuration) -> None:
    small_study(tmp_path / "in")
    request = Request(tmp_path / "in", Home(tmp_path / "home"), configuration)
    with Night(request), pytest.raises(AlreadyRunningError, match="already running"), Night(request):
        pass


def test_an_input_inside_the_home_or_around_it_is_refused(tmp_path: Path, configuration: Configuration) -> None:
    (tmp_path / "home" / "in").mkdir(parents=True)
    for folder in (tmp_path / "home" / "in", tmp_path / "home", tmp_path):
        with pytest.raises(ConfigError, match="inside"), Night(Request(folder, Home(tmp_path / "home"), configuration)):
            pass


def test_one_study_with_two_patients_is_refused(run_night: RunNight, tmp_path: Path) -> None:
    paths = small_study(tmp_path / "in")
    header = pydicom.dcmread(paths[4])
    header.PatientID = "SOMEBODY-ELSE"
    header.save_as(paths[4])
    summary = run_night(tmp_path / "in")
    assert summary.cases[0].reason.startswith("one study, several patients")
    assert summary.files["refused"] == summary.files["seen"] == 26


def test_a_study_that_no_model_asks_for_is_a_refused_case_of_unused_files(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in", series_description="KNEE PD")
    summary = run_night(tmp_path / "in")
    assert [c.status for c in summary.cases] == ["refused"]
    assert summary.cases[0].reason.startswith("no model asks for it")
    assert summary.files == {"seen": 26, "analysed": 0, "unused": 26, "refused": 0}
    assert summary.exit_code == 0


def test_part_of_the_head_is_inconclusive_and_says_so(run_night: RunNight, tmp_path: Path) -> None:
    paths = small_study(tmp_path / "in")
    for path in paths[15:]:
        path.unlink()
    summary = run_night(tmp_path / "in")
    assert summary.cases[0].verdict == "inconclusive"
    facts = json.loads((tmp_path / "home" / str(summary.cases[0].report)).with_name("report.json").read_text())
    assert any("coverage incomplete" in flag for flag in facts["flags"])


@pytest.mark.parametrize("name", ["report.html", "report.json", "segmentation.nii.gz"])
def test_one_changed_byte_is_noticed_and_named(run_night: RunNight, tmp_path: Path, name: str) -> None:
    small_study(tmp_path / "in")
    case = run_night(tmp_path / "in").cases[0]
    path = (tmp_path / "home" / str(case.report)).with_name(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = verify(tmp_path / "home")
    assert name in problem
    assert "changed" in problem


def test_changed_or_missing_weights_in_the_home_are_noticed(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")
    run_night(tmp_path / "in")
    weights = sorted((tmp_path / "home" / "kept").glob("*.safetensors"))
    assert len(weights) == 2
    weights[0].unlink()
    data = bytearray(weights[1].read_bytes())
    data[-1] ^= 1
    weights[1].write_bytes(data)
    assert len(verify(tmp_path / "home")) == 2


def test_nothing_of_a_patient_is_left_in_the_home(run_night: RunNight, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "DOE^SECRETFOLDER"
    paths = small_study(folder, patient_name="MUSTERMANN^ERIKA", patient_id="ID-4711-Q")
    for path in paths:
        header = pydicom.dcmread(path)
        header.SeriesDescription = "FLAIR for MUSTERMANN"
        header.AccessionNumber = "ACC-99-XY"
        header.InstitutionName = "Charite Nord"
        header.PatientBirthDate = "19431224"
        header.save_as(path)
    (folder / "cut").write_bytes(paths[0].read_bytes()[:900])
    summary = run_night(tmp_path / "in")
    assert summary.cases[0].status == "analysed"
    header = pydicom.dcmread(paths[0])
    words = ["MUSTERMANN", "ERIKA", "ID-4711-Q", "SECRETFOLDER", "ACC-99-XY", "Charite", "19431224"]
    words += [header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID]
    found = set()
    for path in (tmp_path / "home").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        texts = [content, str(path.relative_to(tmp_path)).encode()]
        texts += [gzip.decompress(content)] if path.suffix == ".gz" else []
        found |= {(w, path.name) for w in words for t in texts if w.encode() in t}
    assert found == set()
    assert not any(w in summary.to_json() for w in words)


def test_a_draft_left_by_a_kill_is_replaced(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")
    with Night(Request(tmp_path / "in", Home(tmp_path / "home"), _configuration())) as night:
        night.index()
        case = night.planned[0].case
    for name in (f".draft-{case}", case):
        folder = tmp_path / "home" / "reports" / name
        folder.mkdir()
        (folder / "half").write_text("x")
    assert run_night(tmp_path / "in").cases[0].case == case
    assert sorted(p.name for p in (tmp_path / "home" / "reports").iterdir()) == [case]
    assert not (tmp_path / "home" / "reports" / case / "half").exists()


def _configuration() -> Configuration:
    from medrec import config

    return config.load()


def test_blank_slices_are_inconclusive_and_never_nothing_marked(run_night: RunNight, tmp_path: Path) -> None:
    for path in small_study(tmp_path / "in")[9:]:
        header = pydicom.dcmread(path)
        header.PixelData = bytes(len(header.PixelData))
        header.save_as(path)
    summary = run_night(tmp_path / "in")
    assert [c.verdict for c in summary.cases] == ["inconclusive"]
    facts = json.loads((tmp_path / "home" / str(summary.cases[0].report)).with_name("report.json").read_text())
    assert any("blank" in flag for flag in facts["flags"])


def test_one_file_that_is_described_otherwise_costs_its_series_only_itself(run_night: RunNight, tmp_path: Path) -> None:
    paths = small_study(tmp_path / "in")
    stray = pydicom.dcmread(paths[0])
    stray.SeriesDescription, stray.SOPInstanceUID = "SCREENSHOT", "1.2.3.4"
    stray.ImagePositionPatient = [0, 0, 500]
    stray.save_as(tmp_path / "in" / "stray")
    summary = run_night(tmp_path / "in")
    assert [c.verdict for c in summary.cases] == ["finding"]
    assert summary.files == {"seen": 27, "analysed": 26, "unused": 0, "refused": 1}
    assert (summary.refusals[0]["reason"] or "").startswith("mixed geometry")


def test_a_broken_copy_is_refused_on_every_night(run_night: RunNight, tmp_path: Path) -> None:
    paths = small_study(tmp_path / "in")
    header = pydicom.dcmread(paths[5])
    header.compress("1.2.840.10008.1.2.4.80", generate_instance_uid=False)
    header.PixelData = header.PixelData[:40] + bytes(len(header.PixelData) - 60) + header.PixelData[-20:]
    header.save_as(tmp_path / "in" / "broken copy")
    broken = hashlib.sha256((tmp_path / "in" / "broken copy").read_bytes()).hexdigest()
    first, second = run_night(tmp_path / "in"), run_night(tmp_path / "in")
    assert [c.status for c in first.cases + second.cases] == ["analysed", "already done"]
    for summary in (first, second):
        assert summary.files == {"seen": 27, "analysed": 26, "unused": 0, "refused": 1}
        assert [r["sha256"] for r in summary.refusals] == [broken]
        assert broken not in summary.cases[0].inputs


def test_a_copy_that_arrives_incomplete_takes_no_report_out_of_force(run_night: RunNight, tmp_path: Path) -> None:
    paths = small_study(tmp_path / "in")
    full = run_night(tmp_path / "in").cases[0]
    kept = paths[11].read_bytes()
    paths[11].unlink()
    assert [c.status for c in run_night(tmp_path / "in").cases] == ["refused"]
    with Store.open(Home(tmp_path / "home").store_url) as store:
        row = store.case(full.case)
        assert row is not None
        assert row.superseded_by is None
    paths[11].write_bytes(kept)
    assert [(c.case, c.status) for c in run_night(tmp_path / "in").cases] == [(full.case, "already done")]


def test_mlflow_is_filled_again_when_its_database_was_lost(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")
    case = run_night(tmp_path / "in").cases[0]
    for path in (tmp_path / "home").glob("mlflow.db*"):
        path.rename(tmp_path / path.name)
    # Within one process MLflow keeps its connection to a path: another home name stands for another process.
    moved = Home(tmp_path / "moved")
    (tmp_path / "home").rename(moved.root)
    with Night(Request(tmp_path / "in", moved, _configuration())) as night:
        night.index()
        for planned in night.planned:
            night.analyse(planned)
        summary = night.close()
    assert any("again" in w for w in summary.warnings)
    assert [t["medrec.case"] for t in runs_of(moved.root) if "medrec.case" in t] == [case.case]


def test_a_card_whose_weights_do_not_fit_stops_the_night_before_any_study(
    tmp_path: Path, configuration: Configuration
) -> None:
    small_study(tmp_path / "in")

    def spoiled(model: CardFiles) -> CardFiles:
        wide = model.card.segmentation.model_copy(update={"settings": {"channels": (8, 16), "res_units": 1}})
        return CardFiles(model.card.model_copy(update={"segmentation": wide}), model.weights)

    own = replace(configuration, cards=tuple(spoiled(c) for c in configuration.cards))
    request = Request(tmp_path / "in", Home(tmp_path / "home"), own)
    with Night(request) as night, pytest.raises(ConfigError, match="do not fit"):
        night.index()
    assert list((tmp_path / "home" / "reports").iterdir()) == []


def test_a_folder_behind_a_link_is_walked_once(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "elsewhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "in")
    assert run_night(tmp_path / "in").files == {"seen": 26, "analysed": 26, "unused": 0, "refused": 0}


def test_a_zipped_study_is_analysed_and_counts_as_one_file(demo: Demo, tmp_path: Path, run_night: RunNight) -> None:
    study = next(k for k in demo[1] if k.expected == "finding")
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "study.zip", "w") as packed:
        for number, path in enumerate(study.files):
            packed.write(path, str(number))
        packed.writestr("readme", "no scan")
    summary = run_night(tmp_path / "in")
    assert summary.files == {"seen": 1, "analysed": 1, "unused": 0, "refused": 0}
    (case,) = summary.cases
    assert case.verdict == "finding"
    assert case.inputs == (hashlib.sha256((tmp_path / "in" / "study.zip").read_bytes()).hexdigest(),)


def test_a_study_that_may_still_be_arriving_waits(demo: Demo, tmp_path: Path, run_night: RunNight) -> None:
    study = next(k for k in demo[1] if k.expected == "finding")
    (tmp_path / "in").mkdir()
    for path in study.files:
        shutil.copyfile(path, tmp_path / "in" / path.name)
    own = config.load()
    own = replace(own, settings=own.settings.model_copy(update={"quiet_minutes": 30.0}))
    summary = run_night(tmp_path / "in", own=own)
    assert summary.cases == ()
    assert summary.files["waiting"] == summary.files["seen"] == len(study.files)
    assert any("still be arriving" in w for w in summary.warnings)
    hour_ago = time.time() - 3600
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (hour_ago, hour_ago))
    summary = run_night(tmp_path / "in", own=own)
    assert [c.status for c in summary.cases] == ["analysed"]
    assert "waiting" not in summary.files
