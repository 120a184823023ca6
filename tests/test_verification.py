"""Whatever is touched in a home, its ledger or MLflow is noticed and named; what leaves can be checked without us."""

import json
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import a_night, copy_home
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient
from test_night import small_study

from medrec import anchors, bundle, mirror, story, verification
from medrec.audit import seal
from medrec.config import load
from medrec.dicom.renaming import Renamed
from medrec.errors import ConfigError, DataError
from medrec.home import Home
from medrec.night import Night, Request
from medrec.phantom import uid
from medrec.shown import inert
from medrec.store import Store
from medrec.tracking import Tracker

AT = "2026-03-01T02:00:00Z"
slowly = settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home after two nights: one case superseded by another, one refused."""
    place = tmp_path_factory.mktemp("finished")
    paths = small_study(place / "in" / "a", patient_id="one", study_uid=uid("verify", "one"))
    small_study(place / "in" / "b", patient_id="two", study_uid=uid("verify", "two"), series_description="KNEE")
    kept = paths[9].read_bytes()
    paths[9].unlink()
    a_night(place / "in", place / "home")
    paths[9].write_bytes(kept)
    a_night(place / "in", place / "home")
    return place / "home"


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Home:
    """A copy to be spoilt."""
    return copy_home(finished, tmp_path / "home")


def problems(home: Home, *, mlflow: bool = False) -> list[str]:
    with Store.open(home.store_url) as store:
        found = [str(p) for p in verification.verify(home, store)]
        return found + ([str(p) for p in verification.verify_mlflow(home, store, "medrec")] if mlflow else [])


def client(home: Home) -> MlflowClient:
    return MlflowClient(f"sqlite:///{home.mlflow_database}")


def runs(home: Home) -> list[object]:
    return list(client(home).search_runs([e.experiment_id for e in client(home).search_experiments()]))


def test_an_untouched_home_has_no_problem(home: Home) -> None:
    assert problems(home, mlflow=True) == []


def sealed_files(home: Home) -> list[Path]:
    with Store.open(home.store_url) as store:
        rows = store.cases()
    files = [p for row in rows for p in (home.reports / row.case).iterdir()]
    return sorted(files + list(home.kept.iterdir()))


@pytest.mark.parametrize("name", ["report.html", "report.json", "segmentation.nii.gz", ".card.json", ".safetensors"])
def test_any_byte_of_any_file_that_a_case_names(home: Home, name: str) -> None:
    path = next(p for p in sealed_files(home) if p.name.endswith(name))
    whole = path.read_bytes()
    for _ in range(8):
        spoilt = bytearray(whole)
        spoilt[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        path.write_bytes(spoilt)
        assert any(path.name in problem for problem in problems(home))
    path.unlink()
    assert any(path.name in problem and "gone" in problem for problem in problems(home))


def _forge(
    home: Home, change: Callable[[list[tuple[int, str, str, bytes]]], list[tuple[int, str, str, bytes]]]
) -> None:
    """The rows of the ledger, changed by somebody with the whole database."""
    with sqlite3.connect(home.root / "medrec.db") as connection:
        for trigger in ("update", "delete", "replace"):
            connection.execute(f"DROP TRIGGER IF EXISTS ledger_no_{trigger}")
        rows = connection.execute("SELECT seq, previous, digest, body FROM ledger ORDER BY seq").fetchall()
        connection.execute("DELETE FROM ledger")
        connection.executemany("INSERT INTO ledger VALUES (?, ?, ?, ?)", change(rows))


@slowly
@given(data=st.data())
@pytest.mark.parametrize("what", ["change", "drop", "swap", "insert", "cut"])
def test_any_record_changed_dropped_swapped_inserted_or_cut_off_is_noticed(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, what: str, data: st.DataObject
) -> None:
    home = Home(tmp_path_factory.mktemp("forged"))
    for name in ("medrec.db", "mlflow.db", "key", "worker"):
        shutil.copy(finished / name, home.root)
    for name in ("reports", "kept", "mlartifacts"):
        (home.root / name).symlink_to(finished / name)
    with Store.open(home.store_url) as store:
        last = store.position()[0]

    def change(rows: list[tuple[int, str, str, bytes]]) -> list[tuple[int, str, str, bytes]]:
        # What comes after the last anchor (the note of the delivery that made it) nobody else knows of.
        i = data.draw(st.integers(0, len(rows) - 2))
        if what == "change":
            at = data.draw(st.integers(0, len(rows[i][3]) - 1))
            body = bytearray(rows[i][3])
            body[at] ^= 1 << data.draw(st.integers(0, 7))
            rows[i] = (*rows[i][:3], bytes(body))
        elif what == "drop":
            del rows[i]
        elif what == "swap":
            j = data.draw(st.integers(0, len(rows) - 1).filter(lambda j: j != i))
            rows[i], rows[j] = (rows[i][0], *rows[j][1:]), (rows[j][0], *rows[i][1:])
        elif what == "insert":
            record = seal(rows[i][1], "configuration changed", AT, {"configuration": "forged"})
            rows = [(n + (n > i), p, d, b) for n, p, d, b in rows]
            rows.append((i + 1, "forged", record.digest, record.body))
        else:
            rows = rows[: min(i, last - 2)]
        return rows

    _forge(home, change)
    assert problems(home) or problems(home, mlflow=True)


def test_a_ledger_that_was_written_anew_as_a_whole_contradicts_mlflows_anchor(home: Home) -> None:
    def anew(rows: list[tuple[int, str, str, bytes]]) -> list[tuple[int, str, str, bytes]]:
        forged, previous = [], "0" * 64
        for number, _, _, body in rows:
            told = json.loads(body)
            if told["kind"] == "case analysed":
                told["facts"]["code"] = "forged"
            record = seal(previous, told["kind"], told["at"], told["facts"])
            forged.append((number, previous, record.digest, record.body))
            previous = record.digest
        return forged

    _forge(home, anew)
    assert problems(home) == []  # the chain alone cannot show it
    assert any("the ledger was rewritten" in p for p in problems(home, mlflow=True))


def test_a_record_of_another_shape_ends_the_audit_in_words(home: Home) -> None:
    def reshaped(rows: list[tuple[int, str, str, bytes]]) -> list[tuple[int, str, str, bytes]]:
        number, previous, _, body = rows[-1]
        told = json.loads(body)
        assert told["kind"] == "batch delivered"
        record = seal(previous, told["kind"], told["at"], {**told["facts"], "tags": [], "what": []})
        return [*rows[:-1], (number, previous, record.digest, record.body)]

    _forge(home, reshaped)
    assert any("does not say what medrec writes" in p for p in problems(home, mlflow=True))


OWNED = [
    *("medrec.case", "medrec.report_sha256", "medrec.batch", "medrec.study", "medrec.patient", "medrec.status"),
    *("medrec.verdict", "mlflow.note.content", "mlflow.parentRunId"),
]


@pytest.mark.parametrize("tag", OWNED)
def test_a_changed_or_deleted_tag_of_a_case_is_named(home: Home, tag: str) -> None:
    for run in runs(home):
        if "medrec.case" not in run.data.tags:  # type: ignore[attr-defined]
            continue
        run_id, kept = run.info.run_id, run.data.tags[tag]  # type: ignore[attr-defined]
        client(home).set_tag(run_id, tag, "forged")
        assert any(tag in p for p in problems(home, mlflow=True))
        client(home).delete_tag(run_id, tag)
        assert any(tag in p for p in problems(home, mlflow=True))
        client(home).set_tag(run_id, tag, kept)
    assert problems(home, mlflow=True) == []


@pytest.mark.parametrize("tag", ["medrec.batch", "medrec.ledger_head", "medrec.ledger_records", "mlflow.note.content"])
def test_a_changed_tag_of_a_night_is_named(home: Home, tag: str) -> None:
    run = next(r for r in runs(home) if "medrec.ledger_head" in r.data.tags)  # type: ignore[attr-defined]
    client(home).set_tag(run.info.run_id, tag, "7")  # type: ignore[attr-defined]
    assert any(tag in p for p in problems(home, mlflow=True))


def test_a_deleted_run_of_a_case_and_of_a_night_is_named(home: Home) -> None:
    for run in runs(home):
        run_id = run.info.run_id  # type: ignore[attr-defined]
        client(home).delete_run(run_id)
        assert any(run_id in p and "deleted" in p for p in problems(home, mlflow=True))
        client(home).restore_run(run_id)


def test_metrics_parameters_names_artifacts_and_runs_that_nobody_delivered_are_named(home: Home) -> None:
    run = next(r for r in runs(home) if r.data.tags.get("medrec.status") == "analysed")  # type: ignore[attr-defined]
    run_id = run.info.run_id  # type: ignore[attr-defined]
    client(home).log_metric(run_id, "lesions", 0)
    client(home).set_tag(run_id, "mlflow.runName", "nothing marked")
    Path(run.info.artifact_uri.removeprefix("file://"), "report.html").write_text("forged")  # type: ignore[attr-defined]
    with sqlite3.connect(home.mlflow_database) as connection:
        connection.execute("UPDATE params SET value = 'forged' WHERE key = 'card_sha256' AND run_uuid = ?", (run_id,))
    copy = client(home).create_run(run.info.experiment_id, tags={"medrec.case": "x"})  # type: ignore[attr-defined]
    client(home).set_terminated(copy.info.run_id)
    found = "\n".join(problems(home, mlflow=True))
    for what in ("metric lesions", "its name", "artifact report.html", "parameter card_sha256", copy.info.run_id):
        assert what in found


def test_a_file_beside_a_report_that_no_record_tells_of_is_named(home: Home) -> None:
    folder = next(p for p in home.reports.iterdir())
    (folder / "report-corrected.html").write_text("nothing marked")
    (problem,) = problems(home)
    assert "report-corrected.html" in problem


def test_a_report_that_was_kept_from_mlflow_is_named(home: Home) -> None:
    with sqlite3.connect(home.root / "medrec.db") as connection:
        connection.execute("UPDATE outbox SET delivered_at = NULL")
    with Store.open(home.store_url) as store:
        row = store.cases()[0]
        store.finish(replace(row, case="new", inputs_sha256="x", mlflow_run_id=None, superseded_by=None), {}, AT)
    assert problems(home, mlflow=True) == []  # it waits
    with sqlite3.connect(home.root / "medrec.db") as connection:
        connection.execute("DELETE FROM outbox WHERE \"case\" = 'new'")
    assert any("neither was delivered" in p for p in problems(home, mlflow=True))


def test_since_leaves_out_what_came_before_and_says_when_it_knows_no_such_record(home: Home) -> None:
    with Store.open(home.store_url) as store:
        first = store.cases()[0]
        second = next(n for n, r in enumerate(store.ledger(), 1) if r.facts.get("case") not in (None, first.case))
        shutil.rmtree(home.reports / first.case / "report.json", ignore_errors=True)
        (home.reports / first.case / "report.json").unlink()
        assert any(first.case[:12] in str(p) for p in verification.verify(home, store))
        assert not any("report.json" in str(p) for p in verification.verify(home, store, second - 1))
        assert verification.number_since(store, "3") == 2
        assert verification.number_since(store, store.head()) == store.position()[0] - 1
        assert verification.number_since(store, "2000-01-01") == 0
        with pytest.raises(ConfigError, match="no number, digest or time"):
            verification.number_since(store, "yesterday")


def test_the_story_of_a_case_says_what_decided_on_what(home: Home) -> None:
    with Store.open(home.store_url) as store:
        rows = store.cases()
        analysed = next(r for r in rows if r.status == "analysed")
        told = "\n".join(story.tell(analysed.case, store))
        for word in ("analysed in night", "phantom 1.0.0", "weights: segmentation", "pixels: flair", "26 input files"):
            assert word in told
        assert "superseded case" in told
        assert f"delivered to mlflow as {analysed.mlflow_run_id}" in told
        with pytest.raises(DataError, match="knows no case"):
            list(story.tell("nothing", store))


# Anchors


@pytest.fixture
def key(tmp_path: Path) -> Path:
    anchors.make_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


def test_openssl_agrees_with_a_signed_anchor(tmp_path: Path, key: Path) -> None:
    path = anchors.write(tmp_path / "anchors", key, (3, "f" * 64), AT)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", f"{key}.pub", "-rawin", "-in", str(path)]
    done = subprocess.run([*command, "-sigfile", str(path.with_suffix(".sig"))], capture_output=True, text=True)
    assert "Verified Successfully" in done.stdout
    path.write_bytes(path.read_bytes().replace(b"3", b"4"))
    assert subprocess.run([*command, "-sigfile", str(path.with_suffix(".sig"))], capture_output=True).returncode


def test_an_anchor_shows_a_rewritten_and_a_cut_ledger_and_a_changed_anchor(
    home: Home, tmp_path: Path, key: Path
) -> None:
    folder, public = tmp_path / "anchors", Path(f"{key}.pub")
    with Store.open(home.store_url) as store:
        path = anchors.write(folder, key, store.position(), AT)
        assert anchors.write(folder, key, store.position(), AT) == path  # nothing is ever replaced
        assert list(anchors.check(folder, public, store.digest_of)) == []
        assert ["is another one now" in str(p) for p in anchors.check(folder, public, lambda n: "other")] == [True]
        assert ["was cut off" in str(p) for p in anchors.check(folder, public, lambda n: None)] == [True]
        path.write_bytes(path.read_bytes().replace(b"2026", b"2025"))
        assert ["not signed" in str(p) for p in anchors.check(folder, public, store.digest_of)] == [True]
        path.with_suffix(".sig").unlink()
        assert ["is gone" in str(p) for p in anchors.check(folder, public, store.digest_of)] == [True]
        with pytest.raises(ConfigError, match="no anchor"):
            list(anchors.check(tmp_path / "empty", public, store.digest_of))


def test_a_night_leaves_its_anchor_where_the_configuration_says(tmp_path: Path, key: Path) -> None:
    small_study(tmp_path / "in", series_description="KNEE")
    folder, own = tmp_path / "anchors", load()
    own = replace(own, settings=own.settings.model_copy(update={"anchors": folder, "anchor_key": key}))
    home = Home(tmp_path / "home")
    with Night(Request(tmp_path / "in", home, own)) as night:
        night.index()
        for planned in night.planned:
            night.analyse(planned)
        assert night.close().warnings == ()
    with Store.open(home.store_url) as store:
        (anchor,) = folder.glob("*.json")
        assert json.loads(anchor.read_text())["head"] == store.head()


def test_a_key_is_private_and_never_replaced(tmp_path: Path, key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="there already"):
        anchors.make_key(key)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        anchors.write(tmp_path / "anchors", key, (1, "f" * 64), AT)


# The bundle


def check_bundle(folder: Path, *heads: str) -> tuple[int, str]:
    """As a third party does: another interpreter, isolated from everything that is installed."""
    command = [sys.executable, "-I", "-S", str(folder / "verify.py"), str(folder), *heads]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/")
    return done.returncode, done.stdout


def test_a_bundle_verifies_with_python_alone_and_names_what_was_changed(home: Home, tmp_path: Path, key: Path) -> None:
    with Store.open(home.store_url) as store:
        anchors.write(tmp_path / "anchors", key, store.position(), AT)
        records = bundle.export(home, store, tmp_path / "bundle", tmp_path / "anchors")
        head = store.head()
    assert check_bundle(tmp_path / "bundle", head) == (0, "every record and every file is as it was written\n")
    assert check_bundle(tmp_path / "bundle", "a" * 64)[0] == 1
    for path in sorted(p for p in (tmp_path / "bundle" / "files").rglob("*") if p.is_file()):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        code, said = check_bundle(tmp_path / "bundle")
        assert code == 1
        assert path.name in said
        path.write_bytes(whole)
    lines = (tmp_path / "bundle" / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == records
    for forged in (
        lines[1:],
        lines[:-1],
        [lines[1], lines[0], *lines[2:]],
        [lines[0].replace(b"1", b"2", 1), *lines[1:]],
    ):
        (tmp_path / "bundle" / "ledger.jsonl").write_bytes(b"".join(forged))
        assert check_bundle(tmp_path / "bundle")[0] == 1


def test_a_bundle_goes_into_a_new_folder_only(home: Home, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with Store.open(home.store_url) as store, pytest.raises(ConfigError, match="not empty"):
        bundle.export(home, store, tmp_path / "full")


def test_text_in_mlflows_markdown_is_no_markup() -> None:
    hostile = "<script>x</script> [a](javascript:x) **b** | c `d` \u202egnp\u0000\n# e"
    shown = inert(hostile)
    assert "\n" not in shown
    assert "\u202e" not in shown
    assert "\0" not in shown
    for mark in "<>[]*|`#":
        assert shown.count(mark) == shown.count("\\" + mark)


def test_the_heads_of_all_nights_are_in_mlflow(home: Home) -> None:
    with Store.open(home.store_url) as store:
        anchored = mirror.anchors(Tracker(home, "medrec", create=False))
        assert len(anchored) == 2
        for records, head in anchored.values():
            assert store.digest_of(records) == head
    assert Renamed.load(home.root, home.key).original("name") == "name"
