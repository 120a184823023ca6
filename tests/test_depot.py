"""What was written, a second time in a folder or an object store: by digest, whole, and gone when it must be."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tiny import ready_home, tiny_configuration, tiny_studies

import flows
from medrec import privacy
from medrec.accounts import Summary
from medrec.config import Configuration
from medrec.depot import Depot, restore, synchronise
from medrec.errors import ConfigError, WorldError
from medrec.home import Home
from medrec.night import Night, Request
from medrec.outputs import OUTPUTS
from medrec.store import Store
from medrec.verification import verify


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of moto's S3 server."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    import fsspec

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    told = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    fsspec.filesystem("s3").mkdir("medrec-test")
    yield "s3://medrec-test/depot"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"file://{tmp_path / 'depot'}"
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_what_is_kept_comes_back_by_its_digest_and_is_kept_once(url: str) -> None:
    depot = Depot(url)
    digest = depot.put(b"report")
    assert depot.put(b"report") == digest
    assert depot.get(digest) == b"report"
    assert depot.get("0" * 64) is None
    assert depot.remove(digest)
    assert not depot.remove(digest)
    assert depot.get(digest) is None


def test_an_object_that_was_changed_is_not_given_out(tmp_path: Path) -> None:
    depot = Depot(f"file://{tmp_path}")
    digest = depot.put(b"report")
    (tmp_path / "sha256" / digest[:2] / digest).write_bytes(b"forged")
    assert depot.get(digest) is None


@pytest.mark.parametrize("url", ["nothing://x", "s4://bucket"])
def test_a_url_that_nothing_can_open_is_a_mistake(url: str) -> None:
    with pytest.raises(ConfigError, match="depot: this URL cannot be opened"):
        Depot(url)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    return tiny_configuration(tmp_path_factory.mktemp("tiny") / "own")


def a_night(folder: Path, home: Home, own: Configuration) -> Summary:
    with Night(Request(folder, home, own)) as night:
        night.index()
        flows.without_prefect(night, lambda *_: None)
        return night.close()


def test_a_home_that_lost_its_reports_gets_them_back_and_what_is_erased_is_erased_there_too(
    url: str, tiny: Configuration, tmp_path: Path
) -> None:
    home, depot = ready_home(tmp_path / "home"), Depot(url)
    tiny_studies(tmp_path / "in", 2)
    a_night(tmp_path / "in", home, tiny)
    with Store.open(home.store_url) as store:
        first = synchronise(home, store, depot)
        assert first.brought >= 2 * len(OUTPUTS)
        assert synchronise(home, store, depot).brought == 0
        shutil.rmtree(home.reports)
        home.reports.mkdir(mode=0o700)
        back, lost = restore(home, store, depot)
        assert (back, lost) == (2 * len(OUTPUTS), ())
        assert [str(p) for p in verify(home, store)] == []
        one, other = store.cases()
        privacy.erase(one.patient, home, store, tiny)
        assert synchronise(home, store, depot).taken_away == len(OUTPUTS)
        assert restore(home, store, depot) == (0, ())
        assert (home.root / (other.report or "")).is_file()


def test_a_mask_that_another_case_shares_stays_when_one_is_erased(
    url: str, tiny: Configuration, tmp_path: Path
) -> None:
    home, depot = ready_home(tmp_path / "home"), Depot(url)
    tiny_studies(tmp_path / "in", 1)
    tiny_studies(tmp_path / "in", 1, first=17)  # the same pixels, of another patient
    a_night(tmp_path / "in", home, tiny)
    masks = {path.read_bytes() for path in home.reports.rglob("segmentation.nii.gz")}
    assert len(masks) == 1
    with Store.open(home.store_url) as store:
        synchronise(home, store, depot)
        one, _ = store.cases()
        privacy.erase(one.patient, home, store, tiny)
        assert (
            synchronise(home, store, depot).taken_away == len(OUTPUTS) - 3
        )  # mask, coarse image and thumbnail are shared
        shutil.rmtree(home.reports)
        home.reports.mkdir(mode=0o700)
        assert restore(home, store, depot) == (len(OUTPUTS), ())


def test_what_was_pruned_is_not_missed(tmp_path: Path) -> None:
    own = tiny_configuration(tmp_path / "own", retention={"reports_days": 1})
    home, depot = ready_home(tmp_path / "home"), Depot(f"file://{tmp_path / 'depot'}")
    tiny_studies(tmp_path / "in", 1)
    a_night(tmp_path / "in", home, own)
    with Store.open(home.store_url) as store:
        synchronise(home, store, depot)
        privacy.prune(home, store, own, datetime.now(UTC) + timedelta(days=3))
        assert synchronise(home, store, depot).taken_away == len(OUTPUTS)
        assert restore(home, store, depot) == (0, ())


def test_a_depot_that_is_away_costs_a_warning_and_the_next_night_brings_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tiny_configuration(tmp_path / "own", depot=f"file://{tmp_path / 'depot'}")
    home = ready_home(tmp_path / "home")
    tiny_studies(tmp_path / "in", 1)
    put = Depot.put

    def away(self: Depot, data: bytes) -> str:
        raise WorldError("the depot cannot be reached or written (ConnectionError)")

    monkeypatch.setattr(Depot, "put", away)
    summary = a_night(tmp_path / "in", home, own)
    assert [c.status for c in summary.cases] == ["analysed"]
    assert any("the depot cannot be reached" in w for w in summary.warnings)
    monkeypatch.setattr(Depot, "put", put)
    a_night(tmp_path / "in", home, own)
    assert len([p for p in (tmp_path / "depot" / "sha256").rglob("*") if p.is_file()]) >= 3
    assert not [p for p in (tmp_path / "depot").rglob("*") if "outbox" in str(p)]
