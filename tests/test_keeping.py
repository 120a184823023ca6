"""What was put away comes back whole; what an earlier release wrote goes on."""

import shutil
import tarfile
from pathlib import Path

import pytest
from conftest import RunNight, a_night, moved_artifacts
from mlflow.tracking import MlflowClient
from test_night import small_study

from medrec import keeping, privacy, verification
from medrec.config import load
from medrec.errors import ConfigError, DataError
from medrec.home import Home
from medrec.phantom import uid
from medrec.replay import replay
from medrec.store import Store

OLD = Path(__file__).parent / "homes" / "0.1.0.tar.xz"


def problems(home: Home) -> list[str]:
    with Store.open(home.store_url) as store:
        found = [*verification.verify(home, store), *verification.verify_mlflow(home, store, "medrec")]
        return [str(p) for p in found]


def test_a_restored_home_verifies_and_goes_on_where_it_was(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in")
    case = run_night(tmp_path / "in").cases[0]
    head = keeping.backup(Home(tmp_path / "home"), tmp_path / "backup.tar")
    assert (tmp_path / "backup.tar").stat().st_mode & 0o777 == 0o600
    shutil.rmtree(tmp_path / "home")
    other = Home(tmp_path / "elsewhere" / "home")
    assert keeping.restore(tmp_path / "backup.tar", other) == head
    assert problems(other) == []
    with Store.open(other.store_url) as store:
        assert [r.kind for r in store.ledger()][-1] == "home restored"
    assert [c.status for c in a_night(tmp_path / "in", other.root).cases] == ["already done"]
    run = MlflowClient(f"sqlite:///{other.mlflow_database}").get_run(str(case.mlflow_run_id))
    assert Path(run.info.artifact_uri, "report.html").is_file()


def test_a_spoilt_backup_makes_no_home(run_night: RunNight, tmp_path: Path) -> None:
    small_study(tmp_path / "in", series_description="KNEE")
    case = run_night(tmp_path / "in").cases[0]
    report = tmp_path / "home" / "reports" / case.case / "report.json"
    report.write_bytes(report.read_bytes()[:-1] + b"x")
    keeping.backup(Home(tmp_path / "home"), tmp_path / "backup.tar")
    home = Home(tmp_path / "new")
    with pytest.raises(DataError, match=r"report\.json"):
        keeping.restore(tmp_path / "backup.tar", home)
    assert not home.root.exists()
    (tmp_path / "cut.tar").write_bytes((tmp_path / "backup.tar").read_bytes()[:4000])
    for name in ("cut.tar", "nothing.tar"):
        with pytest.raises(ConfigError, match="is no backup"):
            keeping.restore(tmp_path / name, home)
    with pytest.raises(ConfigError, match="not empty"):
        keeping.restore(tmp_path / "backup.tar", Home(tmp_path / "home"))
    with pytest.raises(ConfigError, match="replaces nothing"):
        keeping.backup(Home(tmp_path / "home"), tmp_path / "backup.tar")


@pytest.fixture
def old(tmp_path: Path) -> Home:
    """The home of a real night of release 0.1.0: one study analysed, one refused; weights are the packaged ones."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with tarfile.open(OLD) as tar:
        tar.extractall(home, filter="data")
    for model in load().cards:
        for part in (model.card.segmentation, model.card.classification):
            if model.card.name == "phantom" and part is not None:
                shutil.copy(model.weights[part.weights], home / "kept" / f"{part.sha256}.safetensors")
    moved_artifacts(home / "mlflow.db", "/srv/medrec", str(home))
    return Home(home)


def test_a_home_of_the_previous_release_is_upgraded_and_verifies(old: Home, tmp_path: Path) -> None:
    done = list(keeping.upgrade(old))
    assert "every record and every file is as it was written" in done[-1]
    (copy,) = tmp_path.glob("home-before-*.tar")
    with tarfile.open(copy) as tar:
        assert {"medrec.db", "key"} < set(tar.getnames())
    with Store.open(old.store_url) as store:
        assert [r.kind for r in store.ledger()] == ["case analysed", "case refused", "night finished"]
        assert [len(store.about(f"case {row.case}")) for row in store.cases()] == [1, 1]
        assert {store.salt(row.patient) for row in store.cases()} == {""}


def test_the_previous_releases_studies_are_done_and_their_cases_replay_and_can_be_erased(
    old: Home, tmp_path: Path
) -> None:
    small_study(tmp_path / "in" / "a", patient_id="one", study_uid=uid("old", "one"))
    small_study(tmp_path / "in" / "b", patient_id="two", study_uid=uid("old", "two"), series_description="KNEE")
    with Store.open(old.store_url) as store:
        analysed = next(row for row in store.cases() if row.status == "analysed")
        done = replay(analysed.case, tmp_path / "in", old, store)
        assert (done.agrees, done.exact) == (True, False)
    assert "already done" in [c.status for c in a_night(tmp_path / "in", old.root).cases]
    with Store.open(old.store_url) as store:
        privacy.erase(analysed.patient, old, store, load())
        assert [str(p) for p in verification.verify(old, store)] == []
