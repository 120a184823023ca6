"""Nothing that identifies a person leaves the DICOM room: nights, failures, retries, replays, exports, hostile text."""

import base64
import gzip
import io
import json
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pydicom
import pytest
from conftest import RunNight, a_night
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leaks import hits, identities, searched
from PIL import Image, PngImagePlugin
from test_night import runs_of, small_study
from typer.testing import CliRunner

from medrec import bundle, keeping, privacy
from medrec.cli import app
from medrec.home import Home
from medrec.models import inference, still
from medrec.phantom import uid
from medrec.store import Store

WORD = {"PHI0815MUSTERMANN"}


def png(text: str, *, packed: bool) -> bytes:
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", text, zip=packed)
    out = io.BytesIO()
    Image.new("L", (4, 4)).save(out, "PNG", pnginfo=told)
    return out.getvalue()


def zipped(text: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", text)
    return out.getvalue()


PLANTED = b"before PHI0815MUSTERMANN after " * 4
HIDDEN = {
    "plain": PLANTED,
    "UTF-16": PLANTED.decode().encode("utf-16-le"),
    "gzip": gzip.compress(PLANTED),
    "zip": zipped(PLANTED),
    "gzip in zip": zipped(gzip.compress(PLANTED)),
    "PDF stream": b"%PDF-1.7\nstream\n" + zlib.compress(PLANTED) + b"\nendstream",
    "PNG text": png("PHI0815MUSTERMANN", packed=False),
    "PNG packed text": png("PHI0815MUSTERMANN", packed=True),
    "PNG in a data URI": b"<img src='data:image/png;base64," + base64.b64encode(png("PHI0815MUSTERMANN", packed=True)),
}


@pytest.mark.parametrize("where", HIDDEN)
def test_a_planted_identity_is_found_wherever_it_hides(where: str, tmp_path: Path) -> None:
    assert hits(HIDDEN[where], WORD) == WORD
    assert hits(HIDDEN[where].replace(b"0815", b"0816"), {"PHI9999NOBODY"}) == set()
    (tmp_path / "PHI0815MUSTERMANN").touch()
    assert searched(tmp_path, WORD) == {("PHI0815MUSTERMANN", "the name PHI0815MUSTERMANN")}


@pytest.mark.slow
def test_no_identity_of_shared_data_is_left_by_nights_failures_retries_replay_export_and_backup(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    inbox, place, temporary = tmp_path / "in", tmp_path / "place", tmp_path / "tmp"
    for folder in (inbox, place, temporary):
        folder.mkdir()
    patient = sorted((shared_data / "brain_mr" / "dicom").iterdir())[7]
    shutil.copytree(patient, inbox / "PHI^FOLDERNAME")
    for image in sorted((shared_data / "breast_us" / "dicom").glob("*.dcm"))[:2]:
        shutil.copy(image, inbox)
    whole = next(p for p in patient.rglob("*") if p.is_file()).read_bytes()
    (inbox / "cut.dcm").write_bytes(whole[:900])
    words = identities(inbox) | {"FOLDERNAME"}
    assert len(words) > 50
    assert any(word.startswith("PHI") for word in words)
    monkeypatch.setenv("TMPDIR", str(temporary))
    home = Home(place / "home")
    predict = inference.TorchPredictor.predict

    def poisoned(self: object, inputs: object) -> object:
        raise RuntimeError(f"a library that quotes a header: {sorted(words)}")

    monkeypatch.setattr(inference.TorchPredictor, "predict", poisoned)
    with monkeypatch.context() as stills:
        stills.setattr(still.StillPredictor, "predict", poisoned)
        assert {c.status for c in a_night(inbox, home.root).cases} == {"failed"}
    monkeypatch.setattr(inference.TorchPredictor, "predict", predict)
    command = [sys.executable, "-c", "from medrec.cli import main; main()"]
    command += ["nightly", "--input", str(inbox), "--home", str(home.root), "--json"]
    nightly = subprocess.run(command, cwd=place, capture_output=True, text=True)
    (place / "nightly.log").write_text(nightly.stdout + nightly.stderr)
    assert nightly.returncode == 0, nightly.stdout + nightly.stderr
    night = json.loads(nightly.stdout)
    case = next(c["case"] for c in night["cases"] if c["status"] == "analysed")
    monkeypatch.setenv("MEDREC_HOME", str(home.root))
    for words_typed in (
        ["replay", case, "--input", str(inbox)],
        ["audit", "export", "-o", str(place / "bundle")],
        ["backup", str(place / "backup.tar")],
    ):  # in this process: each new one would import the networks again
        done = CliRunner().invoke(app, words_typed)
        (place / f"{words_typed[0]}.log").write_text(done.output)
        assert done.exit_code == 0, done.output
    with Store.open(home.store_url) as store:
        privacy.look_up(case, inbox, home, store)
    said = capfd.readouterr()
    (place / "console").write_text(said.out + said.err)
    left = searched(place, words) | searched(temporary, words)
    assert left == set()


# Hostile headers

HOSTILE = [
    "<script>alert(1)</script>",
    "](javascript:alert(1)) **x** | <img src=x onerror=alert(1)>",
    "=HYPERLINK(1)",
    "\u202egnp.exe\u2066",
    "\x1b]0;title\x07\x1b[2J\x00",
    "../../../etc/passwd",
    "W" * 10_000,
    "{{ 7 * 7 }} {% raw %}",
]
FIELDS = (
    *("SeriesDescription", "StudyDescription", "ProtocolName", "PatientName", "PatientID", "InstitutionName"),
    *("Manufacturer", "ImageComments", "StudyID", "AccessionNumber", "SequenceName"),
)


def test_hostile_text_in_any_header_reaches_no_report_summary_table_or_file_name(
    run_night: RunNight, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(small_study(tmp_path / "in")):
        text = HOSTILE[number % len(HOSTILE)]
        ds = pydicom.dcmread(path)
        ds.SpecificCharacterSet = "ISO_IR 192"
        for name in FIELDS:
            setattr(ds, name, "FLAIR " + text if name == "SeriesDescription" else "H057ILE " + text)
        ds.PatientID = "H057ILE " + "".join(HOSTILE)  # another in each file would be another patient
        ds.save_as(path)
    summary = run_night(tmp_path / "in")
    assert [c.status for c in summary.cases] == ["analysed"]
    assert searched(tmp_path / "home", {"H057ILE", *(text[:200] for text in HOSTILE)}) == set()
    said = capsys.readouterr()
    assert "H057ILE" not in said.out + said.err + summary.to_json()
    names = [str(p.relative_to(tmp_path)) for p in (tmp_path / "home").rglob("*")]
    assert all(name.isascii() and name.isprintable() and len(name) < 250 for name in names)
    for tags in runs_of(tmp_path / "home"):
        assert "<" not in tags["mlflow.note.content"]


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(text=st.text(max_size=60), name=st.sampled_from(FIELDS))
def test_no_text_of_a_header_gets_out_of_the_dicom_room(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str
) -> None:
    from medrec.dicom import parsing
    from medrec.dicom.pseudonyms import Pseudonyms

    global _SAMPLE
    if _SAMPLE is None:
        _SAMPLE = small_study(tmp_path_factory.mktemp("sample"))[0].read_bytes()
    ds = pydicom.dcmread(io.BytesIO(_SAMPLE))
    ds.SpecificCharacterSet = "ISO_IR 192"
    try:
        setattr(ds, name, f"H057ILE{text}")
        out = io.BytesIO()
        ds.save_as(out)
    except (ValueError, UnicodeError):
        return  # cannot be written as DICOM at all
    found = parsing.read(out.getvalue(), len(out.getvalue()), "d", 0, Pseudonyms(b"k" * 32), {})
    assert isinstance(found, parsing.Parsed)
    assert "H057ILE" not in repr(found)


_SAMPLE: bytes | None = None


def test_a_servers_address_is_the_machines_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from medrec import server

    started: list[list[str]] = []

    class StoppedError(Exception):
        pass

    def popen(command: list[str], **_: object) -> None:
        started.append(command)
        raise StoppedError

    home = Home(tmp_path / "home")
    home.create()
    from medrec.tracking import Tracker

    Tracker(home, "medrec")
    monkeypatch.setattr(server.subprocess, "Popen", popen)
    with pytest.raises(StoppedError):
        server.serve(home, 5999, lambda text: None)
    assert started[0][started[0].index("--host") + 1] == "127.0.0.1"


def test_a_bundle_and_a_backup_of_a_night_hold_no_name(run_night: RunNight, tmp_path: Path) -> None:
    for path in small_study(tmp_path / "in", patient_name="PHI0815MUSTERMANN", study_uid=uid("leak", "x")):
        path.rename(path.with_name(f"PHI0815MUSTERMANN-{path.name}"))
    run_night(tmp_path / "in")
    home = Home(tmp_path / "home")
    with Store.open(home.store_url) as store:
        bundle.export(home, store, tmp_path / "out" / "bundle")
    keeping.backup(home, tmp_path / "out" / "backup.tar")
    assert searched(tmp_path / "out", WORD) == set()
