"""The whole round with a real PACS: pulled, analysed, sent back, read there by other tools, and compared."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import yaml
from orthanc import OURS, Orthanc, debian
from reviewers import accept

from medrec import config
from medrec.accounts import Summary
from medrec.home import Home
from medrec.night import Night, Request
from medrec.phantom import Head, Lesion, grid, render, uid, write_dicom
from medrec.store import State, Store

LEFT = Lesion((28.0, -14.0, 12.0), (16.0, 14.0, 15.0))
OBLIQUE = grid((64, 72, 26), (3.0, 3.0, 5.0), (8.0, -6.0, 5.0))
MEDREC = str(Path(sys.executable).parent / "medrec")


def head(folder: Path, name: str = "ONE") -> tuple[Path, ...]:
    drawn = Head((LEFT,), (64, 72, 26), OBLIQUE, seed=3)
    words = {"patient_id": name, "patient_name": f"{name}^PATIENT", "study_uid": uid("round", name)}
    return write_dicom(render(drawn)[0], drawn.affine, folder, **words)


def configured(tmp_path: Path, pacs: Orthanc, **destination: object) -> Path:
    own = tmp_path / "own"
    own.mkdir(exist_ok=True)
    receive = {"title": OURS, "host": "127.0.0.1", "port": pacs.ours, "callers": ["ORTHANC"], "quiet_s": 0.2}
    settings = {
        "models": ["phantom"],
        "peers": {"pacs": pacs.dimse(), "web": pacs.web()},
        "intake": {"folder": str(tmp_path / "intake"), "receive": receive, "pull": {"peer": "pacs", "days": 3650}},
        "destinations": [{"peer": "pacs", "release": "unreviewed", **destination}],
    }
    (own / "medrec.yaml").write_text(yaml.safe_dump(settings))
    return own


def night(tmp_path: Path, own: Path) -> Summary:
    place = Home(tmp_path / "home")
    (tmp_path / "intake" / "studies").mkdir(parents=True, exist_ok=True)
    request = Request(tmp_path / "intake" / "studies", place, config.load(own), pull=True)
    with Night(request) as one:
        one.index()
        for planned in one.planned:
            one.analyse(planned)
        return one.close()


def test_a_study_goes_from_the_pacs_and_back_to_the_same_place(pacs: Orthanc, tmp_path: Path) -> None:
    sent = head(tmp_path / "scanner", name="SECRETPERSON")
    pacs.put(*sent)
    own = configured(tmp_path, pacs)
    pacs.kill()
    away = night(tmp_path, own)
    assert away.cases == ()
    assert any("does not answer" in w and "goes on with what is here" in w for w in away.warnings)
    pacs.start()
    summary = night(tmp_path, own)
    assert (summary.deliveries, summary.warnings) == ({"confirmed": 1}, ())
    (case,) = summary.cases
    assert case.verdict == "finding"
    folder = (tmp_path / "home" / str(case.report)).parent
    facts = json.loads((folder / "report.json").read_text())
    mask = nib.load(folder / "segmentation.nii.gz")

    # As any workstation would: what lies in the PACS, read by tools that know nothing of us.
    (content,) = pacs.instances("SEG").values()
    (tmp_path / "seg.dcm").write_bytes(content)
    tool = Path(sys.executable).parent / "segimage2itkimage"
    command = [tool, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "--outputType", "nii"]
    subprocess.run(command, check=True, capture_output=True)
    rendered = nib.load(tmp_path / "1.nii.gz")
    ours = places(mask)
    assert np.abs(places(rendered).mean(0) - ours.mean(0)).max() < 0.01
    assert len(places(rendered)) == len(ours)
    known = np.array(LEFT.centre_lps_mm) * (-1, -1, 1)
    assert np.abs(ours.mean(0) - known).max() < 2, "where the lesion was drawn"

    (content,) = pacs.instances("SR").values()
    (tmp_path / "sr.dcm").write_bytes(content)
    page = subprocess.run([debian("dsr2html"), tmp_path / "sr.dcm"], capture_output=True, text=True, check=True).stdout
    assert facts["verdict_text"] in page
    assert f"{facts['findings'][0]['volume_mm3']:.1f}" in page

    (study,) = pacs.get("/studies")
    assert pacs.get(f"/studies/{study}")["PatientMainDicomTags"]["PatientID"] == "SECRETPERSON"
    query = [debian("findscu"), "-S", "-aet", OURS, "-aec", "ORTHANC", "-k", "QueryRetrieveLevel=SERIES"]
    query += ["-k", f"StudyInstanceUID={uid('round', 'SECRETPERSON')}", "-k", "Modality=SR", "-k", "SeriesDescription"]
    found = subprocess.run([*query, "127.0.0.1", str(pacs.dicom)], capture_output=True, text=True, check=True)
    assert "AI, unreviewed" in found.stdout + found.stderr

    again = night(tmp_path, own)  # what we sent lies in the study now: it is neither pulled nor a reason to work
    assert [c.status for c in again.cases] == ["already done"]
    assert again.files == summary.files
    assert len(pacs.instances("SR")) == 1
    no_person_in(tmp_path / "home", sent[0])
    assert "SECRETPERSON" not in summary.to_json()
    with Store.open(Home(tmp_path / "home").store_url) as store:
        assert [row.state for row in store.deliveries()] == [State.CONFIRMED]
        assert list(store.verify()) == []


def no_person_in(home: Path, path: Path) -> None:
    """Identity is in the returned objects and nowhere else."""
    source = pydicom.dcmread(path)
    secrets = [b"SECRETPERSON", str(source.StudyInstanceUID).encode(), str(source.SeriesInstanceUID).encode()]
    for file in home.rglob("*"):
        if file.is_file() and file.suffix != ".dcm":
            assert not [s for s in secrets if s in file.read_bytes()], file.name


def places(image: nib.nifti1.Nifti1Image) -> np.ndarray:
    """(n, 3) RAS mm of the marked voxels."""
    return np.asarray(nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj) > 0)))


@pytest.mark.slow
def test_the_commands_do_the_same_round(pacs: Orthanc, tmp_path: Path) -> None:
    own = configured(tmp_path, pacs, release="after_review")
    environment = {**os.environ, "MEDREC_HOME": str(tmp_path / "home"), "MEDREC_CONFIG": str(own)}

    def medrec(*words: str, code: int = 0) -> str:
        done = subprocess.run([MEDREC, *words], capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    listener = subprocess.Popen([MEDREC, "receive"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE)
    until_listening(pacs.ours)
    sent = head(tmp_path / "scanner")
    client = [debian("storescu"), "-aet", "ORTHANC", "-aec", OURS, "127.0.0.1", str(pacs.ours)]
    subprocess.run([*client, *map(str, sent)], check=True, capture_output=True)
    until = time.monotonic() + 20
    while not list((tmp_path / "intake" / "studies").glob("*/*.dcm")):
        assert time.monotonic() < until
        time.sleep(0.1)
    listener.send_signal(signal.SIGTERM)
    assert listener.wait(20) == 0
    pacs.put(*sent)
    assert "1 of 1 studies complete; 26 images here, 26 expected" in medrec("pull", "--from", "2020-01-01")
    report = json.loads(medrec("nightly", "--json").split("\n}")[0] + "\n}")
    assert report["deliveries"] == {"waiting for review": 1}
    assert "waiting for review" in medrec("deliver")
    with Store.open(Home(tmp_path / "home").store_url) as store:
        accept(store, report["cases"][0]["case"], "DOE^REVIEWER", "2026-01-01T00:00:00Z")
    assert "confirmed" in medrec("deliver")
    assert "in force" in medrec("recall", "phantom", "--since", "2026-01-01")
    assert "in force" in medrec("recall", "phantom", "--since", "20260101"), "a day is a day, however it is written"
    assert "there are reports by phantom" in medrec("recall", "fantom", "--since", "2026-01-01", code=2)
    assert "rejection confirmed" in medrec("recall", "phantom", "--since", "2026-01-01", "--reject", "safety")
    assert len(pacs.instances("KO")) == 1
    medrec("audit", "verify")
    (tmp_path / "home" / "outbox" / report["cases"][0]["case"] / "sr.dcm").write_bytes(b"changed")
    assert "sr.dcm" in medrec("audit", "verify", code=1)
    assert "2026-01-31" in medrec("recall", "phantom", "--since", "yesterday", code=2)


def until_listening(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("nobody listens")


def test_a_configuration_that_names_nobody_is_refused_with_all_its_mistakes(tmp_path: Path) -> None:
    (tmp_path / "medrec.yaml").write_text(
        yaml.safe_dump(
            {
                "peers": {"web": {"kind": "dicomweb", "url": "https://pacs/dicom-web"}},
                "intake": {"folder": "/in", "pull": {"peer": "nobody"}},
                "destinations": [{"peer": "web", "commitment_port": 104}, {"peer": "web"}, {"peer": "other"}],
            }
        )
    )
    with pytest.raises(config.ConfigError) as caught:
        config.load(tmp_path)
    told = "\n".join(caught.value.problems)
    for words in ("no peer named nobody", "no peer named other", "web is there twice", "no storage commitment"):
        assert words in told


def test_the_configuration_that_readme_shows_is_one(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (tmp_path / "medrec.yaml").write_text("#" + readme.split("```yaml\n# medrec.yaml")[1].split("```")[0])
    loaded = config.load(tmp_path)
    assert config.unaccepted(loaded) == []
    settings = loaded.settings
    assert [d.release for d in settings.destinations] == ["after_review"]
    assert settings.intake is not None
    assert settings.intake.pull is not None


def test_nothing_is_configured_by_default() -> None:
    settings = config.load().settings
    assert (settings.peers, settings.intake, settings.destinations) == ({}, None, ())
