"""A replay agrees with its record, or names the first stage that does not."""

import json
import shutil
from pathlib import Path

import pydicom
import pytest
from conftest import RunNight
from test_night import small_study

from medrec import environment, pipeline
from medrec.audit import AuditRecord, seal
from medrec.errors import DataError
from medrec.home import Home
from medrec.replay import Replay, replay
from medrec.report import Report
from medrec.store import Store


def again(tmp_path: Path, folder: str = "in") -> Replay:
    home = Home(tmp_path / "home")
    with Store.open(home.store_url) as store:
        return replay(store.cases()[0].case, tmp_path / folder, home, store)


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_case_comes_out_bit_for_bit_under_other_names_and_beside_other_studies(
    run_night: RunNight, tmp_path: Path
) -> None:
    paths = small_study(tmp_path / "in")
    run_night(tmp_path / "in")
    (tmp_path / "elsewhere").mkdir()
    for number, path in enumerate(reversed(paths)):
        shutil.copy(path, tmp_path / "elsewhere" / f"{number:03d}")
    (tmp_path / "elsewhere" / "noise").write_bytes(b"x")
    done = again(tmp_path, "elsewhere")
    assert (done.agrees, done.exact, done.first_difference) == (True, True, None)
    assert [s.stage for s in done.stages] == [
        *("kept report", "card", "inputs", "pixels", "weights", "volumes", "prediction", "findings", "report")
    ]


def test_a_file_that_came_later_does_not_spoil_a_replay(run_night: RunNight, tmp_path: Path) -> None:
    paths = small_study(tmp_path / "in")
    run_night(tmp_path / "in")
    late = pydicom.dcmread(paths[0])
    late.SeriesInstanceUID, late.SOPInstanceUID, late.SeriesDescription = "1.2.3", "1.2.3.4", "KNEE"
    late.save_as(tmp_path / "in" / "late")
    assert again(tmp_path).agrees


def test_a_refused_study_is_refused_again_for_the_same_reason(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")[9].unlink()
    run_night(tmp_path / "in")
    done = again(tmp_path)
    assert done.agrees
    assert [s.stage for s in done.stages] == ["kept report", "card", "inputs", "report"]


def test_the_first_stage_that_differs_is_named(run_night: RunNight, tmp_path: Path) -> None:
    paths = small_study(tmp_path / "in")
    case = run_night(tmp_path / "in").cases[0]
    home = tmp_path / "home"
    card = next((home / "kept").glob("*.card.json"))
    weights = next((home / "kept").glob("*.safetensors"))
    report = home / "reports" / case.case / "report.json"
    for path, stage in ((paths[3], "inputs"), (weights, "weights"), (card, "card"), (report, "kept report")):
        flip(path)
        assert again(tmp_path).first_difference == stage
        flip(path)
    assert again(tmp_path).agrees


def record_of(store: Store) -> tuple[int, AuditRecord]:
    return next((n, r) for n, r in enumerate(store.ledger(), 1) if r.kind == "case analysed")


def resealed(store: Store, **changes: object) -> None:
    """A forger with the whole store: the case's record is written anew, with a digest that fits."""
    number, record = record_of(store)
    forged = seal(record.previous, record.kind, record.at, {**record.facts, **changes})
    with store._writing() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_no_update")
        connection.exec_driver_sql(
            "UPDATE ledger SET body = ?, digest = ? WHERE seq = ?", (forged.body, forged.digest, number)
        )


@pytest.mark.parametrize("stage", ["volumes", "prediction", "findings"])
def test_a_stage_that_was_recorded_otherwise_is_named(run_night: RunNight, tmp_path: Path, stage: str) -> None:
    small_study(tmp_path / "in")
    run_night(tmp_path / "in")
    with Store.open(Home(tmp_path / "home").store_url) as store:
        _, record = record_of(store)
        stages = record.facts["stages"]
        assert isinstance(stages, dict)
        resealed(store, stages={**stages, stage: "0" * 64})
    assert again(tmp_path).first_difference == stage


def test_a_report_forged_together_with_its_record_does_not_survive_a_replay(
    run_night: RunNight, tmp_path: Path
) -> None:
    import hashlib

    small_study(tmp_path / "in")
    case = run_night(tmp_path / "in").cases[0]
    report = tmp_path / "home" / "reports" / case.case / "report.json"
    facts = json.loads(report.read_text())
    facts |= {"verdict": "nothing marked", "findings": []}
    report.write_text(json.dumps(facts))
    with Store.open(Home(tmp_path / "home").store_url) as store:
        _, record = record_of(store)
        files = dict(record.facts["files"])  # type: ignore[call-overload]
        files[f"reports/{case.case}/report.json"] = hashlib.sha256(report.read_bytes()).hexdigest()
        resealed(store, files=files)
    done = again(tmp_path)
    assert done.first_difference == "report"
    assert "findings, verdict" in done.stages[-1].detail or "verdict" in done.stages[-1].detail


def test_in_another_environment_small_differences_agree_and_another_verdict_does_not(
    run_night: RunNight, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_study(tmp_path / "in")
    run_night(tmp_path / "in")
    monkeypatch.setattr(environment, "digest", lambda: "another")
    real = pipeline.predict

    def nudged(prepared: object, predictor: object) -> object:
        said = real(prepared, predictor)  # type: ignore[arg-type]
        edge = said.mask.nonzero()  # type: ignore[union-attr]
        said.mask[edge[0][0], edge[1][0], edge[2][0]] = False  # type: ignore[union-attr]
        return said

    monkeypatch.setattr(pipeline, "predict", nudged)
    done = again(tmp_path)
    assert (done.agrees, done.exact) == (True, False)
    assert "1 voxels differ" in next(s.detail for s in done.stages if s.stage == "prediction")
    facts = Report.facts
    monkeypatch.setattr(Report, "facts", lambda self: {**facts(self), "verdict": "nothing marked"})
    assert again(tmp_path).first_difference == "report"


def test_what_cannot_be_replayed_says_why(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in", series_description="KNEE PD")
    case = run_night(tmp_path / "in").cases[0]
    home = Home(tmp_path / "home")
    with Store.open(home.store_url) as store:
        with pytest.raises(DataError, match="no model was run, no model asks for it"):
            replay(case.case, tmp_path / "in", home, store)
        with pytest.raises(DataError, match="is no case nothing"):
            replay("nothing", tmp_path / "in", home, store)
